package main

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"lunar/lun"
)

// withLabels gives every snapshot a set of labels, if only an empty one: in JSON
// it is {} and never null. The server's own temporary snapshots are as visible as
// any: they hold space.
func withLabels(list []lun.SnapshotInfo) []lun.SnapshotInfo {
	for i := range list {
		if list[i].Labels == nil {
			list[i].Labels = map[string]string{}
		}
	}
	return list
}

func answerSnapshot(w http.ResponseWriter, info lun.SnapshotInfo, err error) error {
	return answer(w, withLabels([]lun.SnapshotInfo{info})[0], err)
}

func (s *admin) listSnapshots(w http.ResponseWriter, r *http.Request) error {
	name := r.URL.Query().Get("lun")
	if name != "" {
		if err := lun.CheckName("LUN", name); err != nil {
			return err
		}
	}
	list, err := s.pool.Snapshots(name)
	if filter := labelFilter(r.URL.Query()["label"]); len(filter) > 0 {
		list = slices.DeleteFunc(list, func(s lun.SnapshotInfo) bool { return !filter.holds(s.Labels) })
	}
	return answerList(w, withLabels(list), err)
}

func (s *admin) showSnapshot(w http.ResponseWriter, r *http.Request) error {
	info, err := s.pool.Snapshot(r.PathValue("lun"), r.PathValue("snapshot"))
	return answerSnapshot(w, info, err)
}

func (s *admin) createSnapshots(w http.ResponseWriter, r *http.Request) error {
	var req snapshotBody
	if err := readBody(r, &req); err != nil {
		return err
	}
	if err := checkSnapshotBody(req); err != nil {
		return err
	}
	list, err := s.pool.CreateSnapshots(r.Context(), req.Targets, req.SnapshotOptions)
	return answerList(w, withLabels(list), err)
}

func checkSnapshotBody(req snapshotBody) error {
	if len(req.Targets) == 0 {
		return lun.Errorf(lun.ErrInvalid, "snapshot: no LUN is named; name one or more")
	}
	for _, t := range req.Targets {
		if err := lun.CheckName("LUN", t.LUN); err != nil {
			return err
		}
		if t.Name == "" {
			continue
		}
		if err := lun.CheckName("snapshot", t.Name); err != nil {
			return err
		}
	}
	return errors.Join(checkSpan("time to live", req.TTL), checkSpan("protection for", req.ProtectFor),
		checkLabels(req.Labels), checkDescription(req.Description))
}

func checkSpan(what string, d time.Duration) error {
	if d < 0 || d > maxTTL {
		return lun.Errorf(lun.ErrInvalid, "%s %s: want from 0 (for ever) to %s", what, d, maxTTL)
	}
	return nil
}

func (s *admin) setSnapshot(w http.ResponseWriter, r *http.Request) error {
	var req lun.SetSnapshot
	if err := readBody(r, &req); err != nil {
		return err
	}
	if err := checkSetSnapshot(req); err != nil {
		return err
	}
	info, err := s.pool.SetSnapshot(r.Context(), r.PathValue("lun"), r.PathValue("snapshot"), req)
	return answerSnapshot(w, info, err)
}

func checkSetSnapshot(req lun.SetSnapshot) error {
	if err := checkLabels(req.Labels); err != nil {
		return err
	}
	for _, k := range req.DropLabels {
		if err := checkLabel(k, ""); err != nil {
			return err
		}
	}
	if req.TTL != nil {
		if err := checkSpan("time to live", *req.TTL); err != nil {
			return err
		}
	}
	if req.Description != nil {
		return checkDescription(*req.Description)
	}
	return nil
}

func (s *admin) renameSnapshot(w http.ResponseWriter, r *http.Request) error {
	var req renameBody
	if err := readBody(r, &req); err != nil {
		return err
	}
	if err := lun.CheckName("snapshot", req.Name); err != nil {
		return err
	}
	info, err := s.pool.RenameSnapshot(r.Context(), r.PathValue("lun"), r.PathValue("snapshot"), req.Name)
	return answerSnapshot(w, info, err)
}

func (s *admin) protectSnapshot(w http.ResponseWriter, r *http.Request) error {
	var req protectBody
	if err := readBody(r, &req); err != nil {
		return err
	}
	if err := checkSpan("protection for", req.For); err != nil {
		return err
	}
	info, err := s.pool.ProtectSnapshot(r.Context(), r.PathValue("lun"), r.PathValue("snapshot"), req.Protected, req.For)
	return answerSnapshot(w, info, err)
}

func (s *admin) deleteSnapshots(w http.ResponseWriter, r *http.Request) error {
	var req deleteBody
	if err := readBody(r, &req); err != nil {
		return err
	}
	if len(req.Snapshots) == 0 {
		return lun.Errorf(lun.ErrInvalid, "snapshot delete: no snapshot is named; name one or more")
	}
	report, err := s.pool.DeleteSnapshots(r.Context(), req.Snapshots, req.DeleteOptions)
	if report.Deleted == nil {
		report.Deleted = []string{}
	}
	return answer(w, report, err)
}

func (s *admin) rollback(w http.ResponseWriter, r *http.Request) error {
	var req rollbackBody
	if err := readBody(r, &req); err != nil {
		return err
	}
	if err := lun.CheckName("snapshot", req.Snapshot); err != nil {
		return err
	}
	info, err := s.pool.Rollback(r.Context(), r.PathValue("lun"), req.Snapshot, req.RollbackOptions)
	if err != nil {
		return err
	}
	return writeJSON(w, s.rollbackAnswer(info))
}

func (s *admin) rollbackAnswer(info lun.RollbackInfo) rollbackAnswer {
	a := rollbackAnswer{LUN: info.LUN, To: info.To, Online: info.Online}
	if info.Kept == nil {
		return a
	}
	_, name, at := strings.Cut(*info.Kept, "@")
	if !at {
		name = *info.Kept
	}
	kept := lun.SnapshotRef{LUN: info.LUN, Name: name}.String()
	a.Kept = &kept
	// It was made a moment ago; who deletes it meanwhile loses only the details.
	if snap, err := s.pool.Snapshot(info.LUN, name); err == nil {
		a.SnapshotInfo = &withLabels([]lun.SnapshotInfo{snap})[0]
	}
	return a
}
