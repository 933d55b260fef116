package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"lunar/lun"
)

func (s *admin) listReservations(w http.ResponseWriter, _ *http.Request) error {
	return answerList(w, s.pool.Reservations(), nil)
}

func (s *admin) showReservation(w http.ResponseWriter, r *http.Request) error {
	info, explain, err := s.pool.Reservation(r.PathValue("lun"))
	if !queryBool(r, "explain") {
		explain = nil
	}
	return answer(w, reservationAnswer{ReservationInfo: info, Explain: explain}, err)
}

func (s *admin) setReservation(w http.ResponseWriter, r *http.Request) error {
	var req lun.SetReservation
	if err := readBody(r, &req); err != nil {
		return err
	}
	if req.Reserve != nil && req.Reserve.None {
		return lun.Errorf(lun.ErrInvalid, "reserve none: want a size or a percentage; 0 is the least")
	}
	if req.OnFull != nil {
		if err := checkOnFull(*req.OnFull); err != nil {
			return err
		}
	}
	info, went, err := s.pool.SetReservation(r.Context(), r.PathValue("lun"), req)
	return answer(w, reservationAnswer{ReservationInfo: info, Snapshots: went}, err)
}

func (s *admin) poolStatus(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, s.pool.Status())
}

func (s *admin) poolCheck(w http.ResponseWriter, r *http.Request) error {
	return streamProgress(w, r, s.pool.Check)
}

func (s *admin) poolScrub(w http.ResponseWriter, r *http.Request) error {
	o := lun.ScrubOptions{Restart: queryBool(r, "restart")}
	if pace := r.URL.Query().Get("pace"); pace != "" {
		n, err := strconv.ParseInt(pace, 10, 64)
		if err != nil {
			return lun.Errorf(lun.ErrInvalid, "pace %q: want bytes a second", pace)
		}
		o.Pace = n
	}
	return streamProgress(w, r, func(ctx context.Context, progress func(done, total int64)) (lun.ScrubReport, error) {
		return s.pool.Scrub(ctx, o, progress)
	})
}

func (s *admin) poolClean(w http.ResponseWriter, r *http.Request) error {
	status, err := s.pool.Clean(r.Context())
	return answer(w, status, err)
}

func (s *admin) poolResize(w http.ResponseWriter, r *http.Request) error {
	var req capacityBody
	if err := readBody(r, &req); err != nil {
		return err
	}
	if req.CapacityBytes < minCapacity {
		return lun.Errorf(lun.ErrInvalid, "capacity %d: want at least %d bytes", req.CapacityBytes, int64(minCapacity))
	}
	err := s.pool.SetCapacity(r.Context(), req.CapacityBytes)
	return answer(w, s.pool.Status(), err)
}

func (s *admin) listClients(w http.ResponseWriter, _ *http.Request) error {
	return answerList(w, s.clients.Clients(), nil)
}

func (s *admin) disconnectClient(w http.ResponseWriter, r *http.Request) error {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		return lun.Errorf(lun.ErrInvalid, "client id %q: want a number of lunar client list", r.PathValue("id"))
	}
	for _, c := range s.clients.Clients() {
		if c.ID == id {
			err := s.clients.DisconnectID(id)
			return answer(w, c, err)
		}
	}
	return lun.Errorf(lun.ErrNotFound, "client %d: there is no such client; see lunar client list", id)
}

func (s *admin) status(w http.ResponseWriter, _ *http.Request) error {
	a := statusAnswer{
		Pool: s.pool.Status(), LUNs: s.pool.LUNs(), Clients: s.clients.Clients(),
		Warnings: append(slices.Clone(s.pool.Warnings()), s.warnings()...), Server: s.info,
	}
	if a.LUNs == nil {
		a.LUNs = []lun.LUNInfo{}
	}
	if a.Clients == nil {
		a.Clients = []lun.ClientInfo{}
	}
	a.Warnings = withStateWarning(a.Pool, a.Warnings)
	return writeJSON(w, a)
}

// withStateWarning makes a pool that takes no writes a critical warning, whether
// or not the pool has it among its own.
func withStateWarning(p lun.PoolStatus, warnings []lun.Warning) []lun.Warning {
	out := []lun.Warning{}
	critical := false
	for _, w := range warnings {
		critical = critical || w.Level == levelCritical
		out = append(out, w)
	}
	if p.State != "ok" && !critical {
		out = append(out, lun.Warning{Level: levelCritical, Message: fmt.Sprintf("the pool is %s: %s", p.State, deref(p.Reason))})
	}
	return out
}

func (s *admin) streamEvents(w http.ResponseWriter, r *http.Request) error {
	out := newStreamer(w, r)
	if !queryBool(r, "follow") {
		for _, e := range s.events.last() {
			if err := out.item(e); err != nil {
				return err
			}
		}
		return out.end(struct{}{}, nil)
	}
	last, f := s.events.follow()
	defer s.events.unfollow(f)
	for _, e := range last {
		if err := out.item(e); err != nil {
			return err
		}
	}
	// An empty line of progress hands out what is buffered and tells the client
	// that everything before it was there already.
	if err := out.send(envelope{Progress: &progress{}}); err != nil {
		return err
	}
	for {
		select {
		case <-r.Context().Done():
			return out.end(nil, errStopping)
		case e, ok := <-f.C:
			if !ok {
				return out.end(nil, lun.Errorf(lun.ErrRefused, "events: this follower was too slow and was dropped; follow again"))
			}
			if err := out.item(e); err != nil {
				return err
			}
			if err := out.flush(); err != nil {
				return err
			}
		}
	}
}

func (s *admin) showConfig(w http.ResponseWriter, _ *http.Request) error {
	return answerList(w, s.config, nil)
}
