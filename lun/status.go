package lun

import (
	"context"
	"errors"
	"fmt"
	"math"

	"lunar/cow"
	"lunar/reservation"
)

// lunInfo describes a LUN. Called with adminMu.
func (p *Pool) lunInfo(name string) (LUNInfo, error) {
	l, err := p.tree.LUNByName(name)
	if err != nil {
		return LUNInfo{}, apiErr(err)
	}
	return p.describeLUN(l, p.sumOf(l.Head)), nil
}

func (p *Pool) describeLUN(l *cow.LUN, c counts) LUNInfo {
	a := p.reserved(l.ID)
	info := LUNInfo{
		Name: l.Name, UUID: l.UUID, SizeBytes: l.Size, Kind: kindName(l.Thick), ReadOnly: l.ReadOnly, Online: !l.Offline,
		UsedBytes: a.Live * blockSize, ReferencedBytes: c.ref * blockSize, Clients: len(p.attached(l.Name)), Created: l.Created,
		Description: l.Description, Area: areaInfo(l, a), Snapshots: p.tree.SnapshotCount(l.ID), MaxSnapshots: l.MaxSnapshots,
		Allow: append(Allow{}, l.Allow...),
	}
	if l.QoS != (QoS{}) {
		q := l.QoS
		info.QoS = &q
	}
	if l.Parent != "" {
		info.Parent = &l.Parent
	}
	return info
}

func areaInfo(l *cow.LUN, a reservation.Account) AreaInfo {
	out := AreaInfo{UsedBytes: a.Area * blockSize, ReserveBytes: a.Reserve * blockSize, OnFull: l.OnFull}
	if a.Limit >= 0 {
		n := a.Limit * blockSize
		out.LimitBytes = &n
	}
	return out
}

// LUNs describes all LUNs in order of name.
func (p *Pool) LUNs() []LUNInfo {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	out := []LUNInfo{}
	for _, l := range p.tree.LUNs() {
		out = append(out, p.describeLUN(l, p.sumOf(l.Head)))
	}
	return out
}

// LUN describes one LUN.
func (p *Pool) LUN(name string) (LUNInfo, error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	return p.lunInfo(name)
}

func (p *Pool) isThick(id cow.LUNID) bool {
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	l := p.tree.LUN(id)
	return l != nil && l.Thick
}

// Reservations describes the capacity of all LUNs.
func (p *Pool) Reservations() []ReservationInfo {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	out := []ReservationInfo{}
	for _, l := range p.tree.LUNs() {
		out = append(out, p.reservationInfo(l))
	}
	return out
}

func (p *Pool) reservationInfo(l *cow.LUN) ReservationInfo {
	a := p.reserved(l.ID)
	out := ReservationInfo{LUN: l.Name, SizeBytes: l.Size, UsedBytes: a.Live * blockSize, Area: areaInfo(l, a)}
	if s := p.tree.Snapshots(l.ID); len(s) > 0 {
		out.OldestSnapshot = &s[0].Name
	}
	if days, ok := p.fullIn(l, a); ok {
		out.FullInDays = &days
	}
	return out
}

// fullIn foresees when the area reaches its limit at the rate at which it grew
// since its oldest snapshot.
func (p *Pool) fullIn(l *cow.LUN, a reservation.Account) (days float64, ok bool) {
	s := p.tree.Snapshots(l.ID)
	if a.Limit < 0 || len(s) == 0 || a.Area == 0 {
		return 0, false
	}
	age := p.now().Sub(s[0].Created).Hours() / 24
	if age <= 0 {
		return 0, false
	}
	return float64(max(a.Limit-a.Area, 0)) / (float64(a.Area) / age), true
}

// Reservation describes one LUN's capacity with the arithmetic line by line.
func (p *Pool) Reservation(name string) (ReservationInfo, []string, error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	l, err := p.tree.LUNByName(name)
	if err != nil {
		return ReservationInfo{}, nil, apiErr(err)
	}
	return p.reservationInfo(l), p.ledger.Explain(uint64(l.ID)), nil
}

// SetReservation changes a LUN's reserve, limit or policy. If the area is above
// a new limit and the policy is recycle, the oldest snapshots go; they are
// returned, in a dry run too.
func (p *Pool) SetReservation(_ context.Context, name string, r SetReservation) (ReservationInfo, []string, error) {
	edit := func(l *cow.LUN) error {
		if r.Reserve != nil {
			l.Reserve = r.Reserve.String()
		}
		if r.Limit != nil {
			l.Limit = r.Limit.String()
		}
		if r.OnFull != nil {
			l.OnFull = *r.OnFull
		}
		return checkPolicy(*l)
	}
	info, drop, err := p.planReservation(name, edit)
	if err != nil || r.DryRun {
		return info, names(drop), err
	}
	if _, err := p.update(name, edit); err != nil {
		return info, nil, err
	}
	if len(drop) > 0 {
		if _, err := p.DeleteSnapshots(background(), drop, DeleteOptions{}); err != nil {
			return info, nil, err
		}
	}
	info, _, err = p.Reservation(name)
	return info, names(drop), err
}

func names(refs []SnapshotRef) []string {
	out := []string{}
	for _, r := range refs {
		out = append(out, r.String())
	}
	return out
}

// planReservation says which snapshots a new policy would drop.
func (p *Pool) planReservation(name string, edit func(*cow.LUN) error) (ReservationInfo, []SnapshotRef, error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	l, err := p.tree.LUNByName(name)
	if err != nil {
		return ReservationInfo{}, nil, apiErr(err)
	}
	n := *l
	if err := edit(&n); err != nil {
		return ReservationInfo{}, nil, err
	}
	a, err := p.account(&n)
	if err != nil {
		return ReservationInfo{}, nil, err
	}
	now := p.reserved(l.ID)
	info := p.reservationInfo(l)
	var drop []SnapshotRef
	if a.Limit >= 0 && now.Area > a.Limit && n.OnFull == OnFullRecycle {
		ids, _, err := p.oldestFreeing(l, now.Area-a.Limit-p.comingOf(l.ID), reservation.NoLimit)
		if err != nil {
			return info, nil, err
		}
		for _, id := range ids {
			drop = append(drop, SnapshotRef{LUN: l.Name, Name: p.tree.Version(id).Name})
		}
	}
	return info, drop, nil
}

// Status is the capacity of the pool.
func (p *Pool) Status() PoolStatus {
	t := p.ledger.Totals()
	payload, live, _ := p.space.totals()
	st := PoolStatus{
		CapacityBytes: t.Capacity * blockSize, UsedBytes: t.Used * blockSize, PromisedBytes: t.Promised * blockSize,
		SharedBytes: t.Shared * blockSize, IndexBytes: int64(p.index.DiskBytes()), FreeBytes: t.Free * blockSize,
		DeadBytes: max(payload-live, 0) * blockSize, State: "ok",
		IndexWrittenBytes: int64(p.index.WrittenBytes()), MovedBytes: p.moved.Load() * blockSize,
		HeadroomBytes: t.Headroom * blockSize, ProvisionedBytes: t.Provisioned * blockSize, OverCommit: twoDigits(t.OverCommit()),
		PendingBytes: t.Pending * blockSize, ForeignBytes: t.Foreign * blockSize, WriteAmplification: twoDigits(p.amplification()),
	}
	if p.log != nil {
		st.Segments = p.log.Stats().Files
	}
	if r := p.readOnly.Load(); r != nil {
		st.State, st.Reason = "read-only", r
	}
	st.Reclaim = p.Reclaiming()
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	for _, l := range p.tree.LUNs() {
		st.LUNs++
		st.Snapshots += p.tree.SnapshotCount(l.ID)
	}
	return st
}

func twoDigits(x float64) float64 { return math.Round(x*100) / 100 }

// Warnings lists what an administrator should look at.
func (p *Pool) Warnings() []Warning {
	out := []Warning{}
	add := func(level reservation.Level, format string, args ...any) {
		switch level {
		case reservation.LevelWarning:
			out = append(out, Warning{"warning", fmt.Sprintf(format, args...)})
		case reservation.LevelCritical:
			out = append(out, Warning{"critical", fmt.Sprintf(format, args...)})
		}
	}
	if r := p.readOnly.Load(); r != nil {
		add(reservation.LevelCritical, "pool is read-only: %s", *r)
	}
	if level, text := p.diskWarning(); text != "" {
		add(level, "%s", text)
	}
	t := p.ledger.Totals()
	add(reservation.Warn(t.Capacity-t.Free, t.Capacity), "%s", poolFull(t))
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	for _, l := range p.tree.LUNs() {
		a := p.reserved(l.ID)
		if a.Limit >= 0 {
			add(reservation.Warn(a.Area, a.Limit), "%s", areaFullText(l.Name, a))
		}
		if l.Offline {
			add(reservation.LevelWarning, "LUN %s is offline; `lunar lun online %s` puts it back", l.Name, l.Name)
		}
	}
	return out
}

// SetCapacity resizes the pool; it is durable when it returns.
func (p *Pool) SetCapacity(_ context.Context, bytes int64) error {
	if err := p.writable(); err != nil {
		return err
	}
	was := p.state.capacity()
	if err := p.resize(bytes); err != nil {
		return err
	}
	if err := p.Checkpoint(); err != nil {
		return err
	}
	p.watchDisk()
	p.high.Store(int64(p.highMark()))
	p.event("pool-resize", "", fmt.Sprintf("the capacity of the pool is %s now, it was %s", human(bytes), human(was)))
	return nil
}

// resize changes the capacity in memory, unless what is promised and used does not
// fit any more. The next checkpoint makes it durable.
func (p *Pool) resize(bytes int64) error {
	if err := p.ledger.SetCapacity(bytes / blockSize); err != nil {
		kind := ErrNoSpace
		if errors.Is(err, reservation.ErrInvalid) {
			kind = ErrInvalid
		}
		return Errorf(kind, "capacity %s: %w", human(bytes), err)
	}
	p.state.room.Store(bytes)
	p.ledger.SetIndex(p.indexBytes() / blockSize)
	return nil
}
