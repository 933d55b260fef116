package main

import (
	"cmp"
	"net/http"
	"time"

	"lunar/lun"
)

func (s *admin) listLUNs(w http.ResponseWriter, _ *http.Request) error {
	return answerList(w, s.pool.LUNs(), nil)
}

func (s *admin) showLUN(w http.ResponseWriter, r *http.Request) error {
	info, err := s.pool.LUN(r.PathValue("lun"))
	return answer(w, info, err)
}

func (s *admin) createLUN(w http.ResponseWriter, r *http.Request) error {
	var req lun.CreateLUN
	if err := readBody(r, &req); err != nil {
		return err
	}
	if err := checkCreate(req); err != nil {
		return err
	}
	info, err := s.pool.CreateLUN(r.Context(), req)
	return answer(w, info, err)
}

// checkCreate holds for the API what the command line holds for its users.
func checkCreate(req lun.CreateLUN) error {
	if err := lun.CheckName("LUN", req.Name); err != nil {
		return err
	}
	if err := lun.CheckLUNSize(req.SizeBytes); err != nil {
		return err
	}
	if req.Reserve != nil && req.Reserve.None {
		return lun.Errorf(lun.ErrInvalid, "reserve none: want a size or a percentage; 0 is the least")
	}
	if req.OnFull != "" {
		if err := checkOnFull(req.OnFull); err != nil {
			return err
		}
	}
	return checkDescription(req.Description)
}

func (s *admin) setLUN(w http.ResponseWriter, r *http.Request) error {
	var req lun.SetLUN
	if err := readBody(r, &req); err != nil {
		return err
	}
	if req.Description != nil {
		if err := checkDescription(*req.Description); err != nil {
			return err
		}
	}
	if req.MaxSnapshots != nil && *req.MaxSnapshots < 0 {
		return lun.Errorf(lun.ErrInvalid, "max_snapshots %d: want 0 (any number) or more", *req.MaxSnapshots)
	}
	info, err := s.pool.SetLUN(r.Context(), r.PathValue("lun"), req)
	if err == nil {
		s.changed(info.Name)
		info, err = s.pool.LUN(info.Name) // clients may have had to go
	}
	return answer(w, info, err)
}

func (s *admin) deleteLUN(w http.ResponseWriter, r *http.Request) error {
	info, err := s.pool.DeleteLUN(r.Context(), r.PathValue("lun"), queryBool(r, "force"))
	return answer(w, info, err)
}

func (s *admin) resizeLUN(w http.ResponseWriter, r *http.Request) error {
	var req resizeBody
	if err := readBody(r, &req); err != nil {
		return err
	}
	if err := lun.CheckLUNSize(req.SizeBytes); err != nil {
		return err
	}
	info, err := s.pool.ResizeLUN(r.Context(), r.PathValue("lun"), req.SizeBytes, req.Force)
	return answer(w, info, err)
}

func (s *admin) renameLUN(w http.ResponseWriter, r *http.Request) error {
	var req renameBody
	if err := readBody(r, &req); err != nil {
		return err
	}
	if err := lun.CheckName("LUN", req.Name); err != nil {
		return err
	}
	info, err := s.pool.RenameLUN(r.Context(), r.PathValue("lun"), req.Name)
	return answer(w, info, err)
}

func (s *admin) setOnline(w http.ResponseWriter, r *http.Request) error {
	var req onlineBody
	if err := readBody(r, &req); err != nil {
		return err
	}
	info, err := s.pool.SetOnline(r.Context(), r.PathValue("lun"), req.Online)
	return answer(w, info, err)
}

func (s *admin) clone(w http.ResponseWriter, r *http.Request) error {
	var req cloneBody
	if err := readBody(r, &req); err != nil {
		return err
	}
	if err := lun.CheckName("LUN", req.Name); err != nil {
		return err
	}
	info, err := s.pool.Clone(r.Context(), r.PathValue("lun"), req.Snapshot, req.Name, req.Thick)
	return answer(w, info, err)
}

func (s *admin) diff(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	from := lun.SnapshotRef{LUN: r.PathValue("lun"), Name: q.Get("from")}
	to := lun.SnapshotRef{LUN: cmp.Or(q.Get("to_lun"), from.LUN), Name: q.Get("to")}
	info, err := s.pool.LUN(from.LUN)
	if err != nil {
		return err
	}
	out := newStreamer(w, r)
	var last time.Time
	err = s.pool.Diff(r.Context(), from, to, func(d lun.DiffRange) error {
		if time.Since(last) >= progressEvery {
			last = time.Now()
			if err := out.send(envelope{Progress: &progress{Done: d.Offset, Total: max(info.SizeBytes, d.Offset)}}); err != nil {
				return err
			}
		}
		return out.item(d)
	})
	return out.end(struct{}{}, err)
}

// queryBool reads a switch of a request that has no body.
func queryBool(r *http.Request, key string) bool {
	return r.URL.Query().Get(key) == "true"
}
