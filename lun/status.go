package lun

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

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

// fullIn foresees when the area reaches its limit: at the faster of the rates at which
// it grew in the last hour and in the last day. Until one of them is known after a
// start, it is the rate since its oldest snapshot.
func (p *Pool) fullIn(l *cow.LUN, a reservation.Account) (days float64, ok bool) {
	rates := p.rates.of(l.ID, p.now().Unix(), a.Area)
	if s := p.tree.Snapshots(l.ID); len(rates) == 0 && len(s) > 0 {
		if age := p.now().Sub(s[0].Created).Hours() / 24; age > 0 {
			rates = append(rates, float64(a.Area)/age)
		}
	}
	return reservation.FullIn(rates, a.Area, a.Limit)
}

// areaRates remembers how the areas grew, in memory only.
type areaRates struct {
	mu sync.Mutex
	by map[cow.LUNID]*reservation.History
}

func (r *areaRates) of(id cow.LUNID, at, used int64) []float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.by[id]; h != nil {
		return h.Rates(at, used)
	}
	return nil
}

// noteRates takes a sample of every area. The janitor calls it.
func (p *Pool) noteRates() {
	at := p.now().Unix()
	all := p.ledger.Snapshot().Accounts
	p.rates.mu.Lock()
	defer p.rates.mu.Unlock()
	old := p.rates.by
	p.rates.by = make(map[cow.LUNID]*reservation.History, len(all))
	for _, e := range all {
		h := old[cow.LUNID(e.ID)]
		if h == nil {
			h = &reservation.History{}
		}
		h.Note(at, e.Area)
		p.rates.by[cow.LUNID(e.ID)] = h
	}
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
	info, drop, err := p.planReservation(name, edit, r.DryRun)
	if err != nil || r.DryRun {
		return info, names(drop), err
	}
	if _, err := p.update(name, edit); err != nil {
		return info, nil, err
	}
	went, err := p.shrinkArea(name)
	if err != nil {
		return info, went, err
	}
	info, _, err = p.Reservation(name)
	return info, went, err
}

// shrinkArea drops the oldest snapshots of an area that is recycled and above its
// limit, as far as they can go, and returns their names.
func (p *Pool) shrinkArea(name string) ([]string, error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	l, err := p.tree.LUNByName(name)
	if err != nil {
		return nil, apiErr(err)
	}
	a := p.reserved(l.ID)
	need := a.Area - a.Limit - p.comingOf(l.ID)
	if a.Limit < 0 || need <= 0 || l.OnFull != OnFullRecycle {
		return []string{}, nil
	}
	ids, frees, err := p.oldestFreeing(l, need, reservation.NoLimit)
	if err != nil {
		return nil, err
	}
	went := names(p.refs(l, ids))
	return went, p.take([]taking{{l, ids, frees}}, "recycled: the limit of the snapshot area was lowered")
}

func (p *Pool) refs(l *cow.LUN, ids []cow.VersionID) (refs []SnapshotRef) {
	for _, id := range ids {
		refs = append(refs, SnapshotRef{LUN: l.Name, Name: p.tree.Version(id).Name})
	}
	return refs
}

func names(refs []SnapshotRef) []string {
	out := []string{}
	for _, r := range refs {
		out = append(out, r.String())
	}
	return out
}

// planReservation says which snapshots a new policy would drop.
func (p *Pool) planReservation(name string, edit func(*cow.LUN) error, dry bool) (ReservationInfo, []SnapshotRef, error) {
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
	if dry {
		if drop, err = p.promiseWouldTake(l, a); err != nil {
			return info, nil, err
		}
	}
	if a.Limit >= 0 && now.Area > a.Limit && n.OnFull == OnFullRecycle {
		ids, _, err := p.oldestFreeing(l, now.Area-a.Limit-p.comingOf(l.ID), reservation.NoLimit)
		if err != nil {
			return info, nil, err
		}
		drop = append(drop, p.refs(l, ids)...)
	}
	return info, drop, nil
}

// promiseWouldTake names the snapshots of others that go if a LUN is promised what a
// says, or says why that is refused. Called with adminMu.
func (p *Pool) promiseWouldTake(l *cow.LUN, a reservation.Account) (drop []SnapshotRef, err error) {
	err = p.ledger.TryPolicy(uint64(l.ID), a.Reserve, a.Limit, a.OnFull)
	var lack *reservation.ShortError
	if !errors.As(err, &lack) {
		return nil, err
	}
	plan, short, planErr := p.planTakeBack(lack.Blocks, l.ID)
	if planErr != nil || short > 0 {
		return nil, Errorf(ErrNoSpace, "LUN %q: %w", l.Name, errors.Join(err, planErr))
	}
	for _, x := range plan {
		drop = append(drop, p.refs(x.lun, x.ids)...)
	}
	return drop, nil
}

// Status is the capacity of the pool.
func (p *Pool) Status() PoolStatus {
	t := p.ledger.Totals()
	payload, live, _ := p.space.totals()
	st := PoolStatus{
		CapacityBytes: t.Capacity * blockSize, UsedBytes: t.Used * blockSize, PromisedBytes: t.Promised * blockSize,
		SharedBytes: t.Shared * blockSize, IndexBytes: int64(p.index.DiskBytes()), FreeBytes: t.Free * blockSize,
		DeadBytes: max(payload-live, 0) * blockSize, State: "ok",
		IndexWrittenBytes: int64(p.index.WrittenBytes()), MovedBytes: p.moved.Load() * blockSize, ScatteredPages: p.defrag.pages(),
		HeadroomBytes: t.Headroom * blockSize, ProvisionedBytes: t.Provisioned * blockSize, OverCommit: twoDigits(t.OverCommit()),
		PendingBytes: t.Pending * blockSize, ForeignBytes: t.Foreign * blockSize, WriteAmplification: twoDigits(p.amplification()),
	}
	if p.log != nil {
		st.Segments = p.log.Stats().Files
	}
	st.HoleBytes = p.space.given.Load() * blockSize
	st.Backups, st.PinnedBytes = p.Backups(), int64(p.space.pinned())*p.id.SegmentBytes
	if r := p.whyReadOnly(); r != nil {
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
	if r := p.whyReadOnly(); r != nil {
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
	if err := p.ledger.SetCapacity(bytes/blockSize, p.indexBytesAt(bytes)/blockSize); err != nil {
		kind := ErrNoSpace
		if errors.Is(err, reservation.ErrInvalid) {
			kind = ErrInvalid
		}
		return Errorf(kind, "capacity %s: %w", human(bytes), err)
	}
	p.state.room.Store(bytes)
	return nil
}
