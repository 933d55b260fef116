package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"lunar/lun"
)

// fakeNow is when everything in a fakePool happens.
var fakeNow = time.Date(2026, 11, 22, 1, 30, 0, 0, time.UTC)

// fakePool is a pool in memory: names, refusals and content are as in the real
// one, accounts are made up but constant.
type fakePool struct {
	capacity int64 // 0: 100 GiB
	mu       sync.Mutex
	luns     []*fakeLUN
	clients  lun.ClientControl
	events   func(lun.Event)
	closed   bool

	report   lun.CheckReport
	warnings []lun.Warning
	reason   string                           // not empty: read-only
	fault    func(method, name string) error  // injected
	onWrite  func(name string, n int64) error // before data is taken
	diff     []lun.DiffRange
}

type fakeLUN struct {
	info  lun.LUNInfo
	data  map[int64][]byte // blocks of zeroUnit
	snaps []*fakeSnapshot
}

type fakeSnapshot struct {
	info lun.SnapshotInfo
	data map[int64][]byte
}

func newFakePool() *fakePool {
	return &fakePool{clients: noClients{}, events: func(lun.Event) {}, report: lun.CheckReport{OK: true}}
}

type noClients struct{}

func (noClients) Clients() []lun.ClientInfo { return nil }
func (noClients) Disconnect(string)         {}
func (noClients) DisconnectID(uint64) error { return lun.ErrNotFound }

func (p *fakePool) failing(method, name string) error {
	if p.fault == nil {
		return nil
	}
	return p.fault(method, name)
}

func (p *fakePool) event(typ, name, message string) {
	p.events(lun.Event{Time: fakeNow, Type: typ, LUN: &name, Message: message})
}

func (p *fakePool) find(name string) (*fakeLUN, error) {
	for _, l := range p.luns {
		if l.info.Name == name {
			return l, nil
		}
	}
	return nil, lun.Errorf(lun.ErrNotFound, "LUN %s: there is no such LUN; see lunar lun list", name)
}

func (p *fakePool) attached(export string) int {
	n := 0
	for _, c := range p.clients.Clients() {
		if c.Export == export {
			n++
		}
	}
	return n
}

func (p *fakePool) show(l *fakeLUN) lun.LUNInfo {
	info := l.info
	info.Snapshots = len(l.snaps)
	info.UsedBytes = int64(len(l.data)) * zeroUnit
	info.ReferencedBytes = info.UsedBytes
	info.Clients = p.attached(info.Name)
	return info
}

func (p *fakePool) CreateLUN(_ context.Context, r lun.CreateLUN) (lun.LUNInfo, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.failing("create", r.Name); err != nil {
		return lun.LUNInfo{}, err
	}
	if _, err := p.find(r.Name); err == nil {
		return lun.LUNInfo{}, lun.Errorf(lun.ErrExists, "LUN %s exists already; choose another name", r.Name)
	}
	info := lun.LUNInfo{
		Name: r.Name, UUID: fmt.Sprintf("6e7a9c1e-0000-4000-8000-%012d", len(p.luns)+1), SizeBytes: r.SizeBytes, Kind: "thin", ReadOnly: r.ReadOnly,
		Online: true, Created: fakeNow, Description: r.Description, MaxSnapshots: 256,
		Area: lun.AreaInfo{OnFull: lun.OnFullRecycle}, Allow: append(lun.Allow{}, r.Allow...),
	}
	if r.QoS != (lun.QoS{}) {
		info.QoS = &r.QoS
	}
	if r.Thick {
		info.Kind, info.Area.ReserveBytes = "thick", r.SizeBytes/5
	}
	setArea(&info.Area, r.SizeBytes, r.Reserve, r.Limit, r.OnFull)
	l := &fakeLUN{info: info, data: map[int64][]byte{}}
	p.luns = append(p.luns, l)
	p.event("lun-create", r.Name, "LUN "+r.Name+" made")
	return p.show(l), nil
}

func setArea(a *lun.AreaInfo, size int64, reserve, limit *lun.Amount, onFull string) {
	if reserve != nil {
		a.ReserveBytes, _ = reserve.Of(size)
	}
	if limit != nil {
		a.LimitBytes = nil
		if n, ok := limit.Of(size); ok {
			a.LimitBytes = &n
		}
	}
	if onFull != "" {
		a.OnFull = onFull
	}
}

func (p *fakePool) LUNs() []lun.LUNInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []lun.LUNInfo
	for _, l := range p.luns {
		list = append(list, p.show(l))
	}
	return list
}

// edit changes a LUN and shows it.
func (p *fakePool) edit(method, name string, change func(*fakeLUN) error) (lun.LUNInfo, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.failing(method, name); err != nil {
		return lun.LUNInfo{}, err
	}
	l, err := p.find(name)
	if err == nil {
		err = change(l)
	}
	if err != nil {
		return lun.LUNInfo{}, err
	}
	return p.show(l), nil
}

func (p *fakePool) LUN(name string) (lun.LUNInfo, error) {
	return p.edit("show", name, func(*fakeLUN) error { return nil })
}

func (p *fakePool) SetLUN(_ context.Context, name string, set lun.SetLUN) (lun.LUNInfo, error) {
	return p.edit("set", name, func(l *fakeLUN) error {
		if set.Description != nil {
			l.info.Description = *set.Description
		}
		if set.ReadOnly != nil {
			l.info.ReadOnly = *set.ReadOnly
		}
		if set.MaxSnapshots != nil {
			l.info.MaxSnapshots = *set.MaxSnapshots
		}
		q := orZero(l.info.QoS)
		for value, field := range map[*int64]*int64{set.QoSIOPS: &q.IOPS, set.QoSBytesPerSecond: &q.BytesPerSecond, set.QoSBurstMS: &q.BurstMS} {
			if value != nil {
				*field = *value
			}
		}
		if l.info.QoS = &q; q.IOPS+q.BytesPerSecond == 0 {
			l.info.QoS = nil
		}
		if set.Allow != nil {
			l.info.Allow = *set.Allow
		}
		return nil
	})
}

func (p *fakePool) ResizeLUN(_ context.Context, name string, size int64, force bool) (lun.LUNInfo, error) {
	return p.edit("resize", name, func(l *fakeLUN) error {
		if size < l.info.SizeBytes && !force {
			return lun.Errorf(lun.ErrRefused, "LUN %s: shrinking it to %d cuts data off; use --force", name, size)
		}
		l.info.SizeBytes = size
		return nil
	})
}

func (p *fakePool) RenameLUN(_ context.Context, from, to string) (lun.LUNInfo, error) {
	return p.edit("rename", from, func(l *fakeLUN) error {
		if _, err := p.find(to); err == nil {
			return lun.Errorf(lun.ErrExists, "LUN %s exists already; choose another name", to)
		}
		l.info.Name = to
		return nil
	})
}

func (p *fakePool) DeleteLUN(_ context.Context, name string, force bool) (lun.LUNInfo, error) {
	return p.edit("delete", name, func(l *fakeLUN) error {
		if n := p.attached(name); n > 0 && !force {
			return lun.Errorf(lun.ErrBusy, "LUN %s: %d clients are attached; detach them, or use --force", name, n)
		}
		if len(l.snaps) > 0 && !force {
			return lun.Errorf(lun.ErrRefused, "LUN %s has %d snapshots; delete them first, or use --force", name, len(l.snaps))
		}
		p.luns = slices.DeleteFunc(p.luns, func(o *fakeLUN) bool { return o == l })
		return nil
	})
}

func (p *fakePool) SetOnline(_ context.Context, name string, online bool) (lun.LUNInfo, error) {
	return p.edit("online", name, func(l *fakeLUN) error {
		l.info.Online = online
		return nil
	})
}

func (p *fakePool) CreateSnapshots(_ context.Context, reqs []lun.SnapshotRequest, o lun.SnapshotOptions) ([]lun.SnapshotInfo, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var made []*fakeSnapshot
	for _, r := range reqs {
		if err := p.failing("snapshot", r.LUN); err != nil {
			return nil, err
		}
		l, err := p.find(r.LUN)
		if err != nil {
			return nil, err
		}
		name := r.Name
		if name == "" {
			name = fakeNow.Format("20060102T150405Z")
		}
		if _, err := p.findSnapshot(r.LUN, name); err == nil {
			return nil, lun.Errorf(lun.ErrExists, "snapshot %s@%s exists already; choose another name", r.LUN, name)
		}
		s := &fakeSnapshot{data: map[int64][]byte{}, info: lun.SnapshotInfo{
			LUN: r.LUN, Name: name, Created: fakeNow, Protected: o.Protect || o.ProtectFor > 0, ProtectedUntil: fakeEnd(o.ProtectFor), Expires: fakeEnd(o.TTL), Labels: o.Labels, Description: o.Description,
			SizeBytes: l.info.SizeBytes, ReferencedBytes: int64(len(l.data)) * zeroUnit,
		}}
		for k, v := range l.data {
			s.data[k] = slices.Clone(v)
		}
		made = append(made, s)
	}
	var list []lun.SnapshotInfo
	for _, s := range made {
		l, _ := p.find(s.info.LUN)
		l.snaps = append(l.snaps, s)
		list = append(list, s.info)
	}
	return list, nil
}

func (p *fakePool) findSnapshot(lunName, name string) (*fakeSnapshot, error) {
	l, err := p.find(lunName)
	if err != nil {
		return nil, err
	}
	for _, s := range l.snaps {
		if s.info.Name == name {
			return s, nil
		}
	}
	return nil, lun.Errorf(lun.ErrNotFound, "snapshot %s@%s: there is no such snapshot; see lunar snapshot list %s", lunName, name, lunName)
}

func (p *fakePool) Snapshots(lunName string) ([]lun.SnapshotInfo, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if lunName != "" {
		if _, err := p.find(lunName); err != nil {
			return nil, err
		}
	}
	var list []lun.SnapshotInfo
	for _, l := range p.luns {
		for _, s := range l.snaps {
			if lunName == "" || lunName == l.info.Name {
				s.info.LUN = l.info.Name
				list = append(list, s.info)
			}
		}
	}
	return list, nil
}

func (p *fakePool) Snapshot(lunName, name string) (lun.SnapshotInfo, error) {
	return p.editSnapshot(lunName, name, func(*lun.SnapshotInfo) {})
}

func (p *fakePool) editSnapshot(lunName, name string, change func(*lun.SnapshotInfo)) (lun.SnapshotInfo, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.findSnapshot(lunName, name)
	if err != nil {
		return lun.SnapshotInfo{}, err
	}
	change(&s.info)
	return s.info, nil
}

func (p *fakePool) RenameSnapshot(_ context.Context, lunName, from, to string) (lun.SnapshotInfo, error) {
	return p.editSnapshot(lunName, from, func(s *lun.SnapshotInfo) { s.Name = to })
}

func (p *fakePool) ProtectSnapshot(_ context.Context, lunName, name string, on bool, d time.Duration) (lun.SnapshotInfo, error) {
	return p.editSnapshot(lunName, name, func(s *lun.SnapshotInfo) {
		s.Protected, s.ProtectedUntil = on, fakeEnd(d)
	})
}

// fakeEnd is a span from now on; nil for 0.
func fakeEnd(d time.Duration) *time.Time {
	if d == 0 {
		return nil
	}
	end := fakeNow.Add(d)
	return &end
}

func (p *fakePool) SetSnapshot(_ context.Context, lunName, name string, r lun.SetSnapshot) (lun.SnapshotInfo, error) {
	return p.editSnapshot(lunName, name, func(s *lun.SnapshotInfo) {
		if r.Description != nil {
			s.Description = *r.Description
		}
		labels := map[string]string{}
		maps.Copy(labels, s.Labels)
		for _, k := range r.DropLabels {
			delete(labels, k)
		}
		maps.Copy(labels, r.Labels)
		s.Labels = labels
		if r.TTL != nil {
			s.Expires = fakeEnd(*r.TTL)
		}
	})
}

func (p *fakePool) DeleteSnapshots(_ context.Context, refs []lun.SnapshotRef, o lun.DeleteOptions) (lun.DeleteReport, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	report := lun.DeleteReport{}
	for _, r := range refs {
		s, err := p.findSnapshot(r.LUN, r.Name)
		if err != nil {
			return lun.DeleteReport{}, err
		}
		if s.info.Protected && !o.Force {
			return lun.DeleteReport{}, lun.Errorf(lun.ErrRefused, "snapshot %s is protected; lunar snapshot unprotect %s first, or use --force", r, r)
		}
		report.FreedBytes += s.info.ReferencedBytes
		report.Deleted = append(report.Deleted, r.String())
	}
	if o.DryRun {
		return report, nil
	}
	for _, r := range refs {
		l, _ := p.find(r.LUN)
		l.snaps = slices.DeleteFunc(l.snaps, func(s *fakeSnapshot) bool { return s.info.Name == r.Name })
	}
	return report, nil
}

func (p *fakePool) Rollback(_ context.Context, lunName, snapshot string, o lun.RollbackOptions) (lun.RollbackInfo, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, err := p.findSnapshot(lunName, snapshot)
	if err != nil {
		return lun.RollbackInfo{}, err
	}
	if n := p.attached(lunName); n > 0 && !o.Force {
		return lun.RollbackInfo{}, lun.Errorf(lun.ErrBusy, "LUN %s: %d clients are attached; detach them, or use --force", lunName, n)
	}
	l, _ := p.find(lunName)
	info := lun.RollbackInfo{LUN: lunName, To: lunName + "@" + snapshot, Online: !o.Force || o.Online}
	if !o.Discard {
		name := "before-rollback-" + fakeNow.Format("20060102T150405Z")
		kept := lunName + "@" + name
		info.Kept = &kept
		l.snaps = append(l.snaps, &fakeSnapshot{data: l.data, info: lun.SnapshotInfo{LUN: lunName, Name: name, Created: fakeNow, SizeBytes: l.info.SizeBytes}})
	}
	l.info.Online = info.Online
	l.data = map[int64][]byte{}
	for k, v := range s.data {
		l.data[k] = slices.Clone(v)
	}
	return info, nil
}

func (p *fakePool) Clone(ctx context.Context, lunName, snapshot, newName string, thick bool) (lun.LUNInfo, error) {
	source, err := p.LUN(lunName)
	if err != nil {
		return lun.LUNInfo{}, err
	}
	if snapshot != "" {
		if _, err := p.Snapshot(lunName, snapshot); err != nil {
			return lun.LUNInfo{}, err
		}
	}
	if _, err := p.CreateLUN(ctx, lun.CreateLUN{Name: newName, SizeBytes: source.SizeBytes, Thick: thick}); err != nil {
		return lun.LUNInfo{}, err
	}
	return p.edit("clone", newName, func(l *fakeLUN) error {
		if snapshot != "" {
			parent := lunName + "@" + snapshot
			l.info.Parent = &parent
		}
		return nil
	})
}

func (p *fakePool) Diff(_ context.Context, from, to lun.SnapshotRef, fn func(lun.DiffRange) error) error {
	if _, err := p.Snapshot(from.LUN, from.Name); err != nil {
		return err
	}
	if to.Name != "" {
		if _, err := p.Snapshot(to.LUN, to.Name); err != nil {
			return err
		}
	}
	for _, d := range p.diff {
		if err := fn(d); err != nil {
			return err
		}
	}
	return p.failing("diff", from.LUN)
}

func (p *fakePool) reservation(l lun.LUNInfo) lun.ReservationInfo {
	r := lun.ReservationInfo{LUN: l.Name, SizeBytes: l.SizeBytes, UsedBytes: l.UsedBytes, Area: l.Area}
	if list, _ := p.Snapshots(l.Name); len(list) > 0 {
		oldest, days := list[0].Name, 12.25
		r.OldestSnapshot, r.FullInDays = &oldest, &days
	}
	return r
}

func (p *fakePool) Reservations() []lun.ReservationInfo {
	var list []lun.ReservationInfo
	for _, l := range p.LUNs() {
		list = append(list, p.reservation(l))
	}
	return list
}

func (p *fakePool) Reservation(name string) (lun.ReservationInfo, []string, error) {
	l, err := p.LUN(name)
	if err != nil {
		return lun.ReservationInfo{}, nil, err
	}
	return p.reservation(l), []string{"size      " + fmt.Sprint(l.SizeBytes), "area used 0"}, nil
}

func (p *fakePool) SetReservation(_ context.Context, name string, set lun.SetReservation) (lun.ReservationInfo, []string, error) {
	var goes []string
	l, err := p.edit("reservation", name, func(l *fakeLUN) error {
		if set.Limit != nil {
			for _, s := range l.snaps {
				goes = append(goes, name+"@"+s.info.Name)
			}
		}
		if set.DryRun {
			return nil
		}
		policy := ""
		if set.OnFull != nil {
			policy = *set.OnFull
		}
		setArea(&l.info.Area, l.info.SizeBytes, set.Reserve, set.Limit, policy)
		return nil
	})
	if err != nil {
		return lun.ReservationInfo{}, nil, err
	}
	return p.reservation(l), goes, nil
}

func (p *fakePool) Status() lun.PoolStatus {
	s := lun.PoolStatus{
		CapacityBytes: cmp.Or(p.capacity, 100<<30), UsedBytes: 42 << 30, PromisedBytes: 8 << 30, SharedBytes: 1 << 30, IndexBytes: 3 << 20,
		FreeBytes: 49 << 30, DeadBytes: 512 << 20, Segments: 700, State: "ok",
		HeadroomBytes: 8 << 30, ProvisionedBytes: 125 << 30, OverCommit: 1.25, WriteAmplification: 1.5,
	}
	for _, l := range p.LUNs() {
		s.LUNs++
		s.Snapshots += l.Snapshots
	}
	if p.reason != "" {
		s.State, s.Reason = "read-only", &p.reason
	}
	return s
}

func (p *fakePool) Warnings() []lun.Warning { return p.warnings }

func (p *fakePool) Check(_ context.Context, progress func(done, total int64)) (lun.CheckReport, error) {
	progress(1, 2)
	progress(2, 2)
	return p.report, p.failing("check", "")
}

func (p *fakePool) Scrub(ctx context.Context, _ lun.ScrubOptions, progress func(done, total int64)) (lun.ScrubReport, error) {
	r, err := p.Check(ctx, progress)
	return lun.ScrubReport{CheckReport: r, Damaged: []lun.Damage{}}, err
}

func (p *fakePool) Clean(context.Context) (lun.PoolStatus, error) {
	return p.Status(), p.failing("clean", "")
}

func (p *fakePool) SetCapacity(_ context.Context, bytes int64) error {
	if err := p.failing("pool-resize", ""); err != nil {
		return err
	}
	p.capacity = bytes
	return nil
}

func (p *fakePool) Access(name string) (lun.Access, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, err := p.find(name)
	if err != nil {
		return lun.Access{}, false
	}
	return accessOf(l.info), true
}

func accessOf(l lun.LUNInfo) lun.Access {
	return lun.Access{UUID: l.UUID, LUN: l.Name, Online: l.Online, Allow: l.Allow, QoS: orZero(l.QoS)}
}

func (p *fakePool) Exports(visible func(lun.Access) bool) []lun.Export {
	var list []lun.Export
	for _, l := range p.LUNs() {
		if !visible(accessOf(l)) {
			continue
		}
		list = append(list, lun.Export{Name: l.Name, SizeBytes: l.SizeBytes, Description: l.Description, ReadOnly: l.ReadOnly})
	}
	return list
}

func (p *fakePool) SetClients(c lun.ClientControl) { p.clients = c }

func (p *fakePool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return p.failing("close", "")
}

func (p *fakePool) OpenVolume(name, snapshot string) (volume, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.failing("open", name); err != nil {
		return nil, err
	}
	l, err := p.find(name)
	if err != nil {
		return nil, err
	}
	if snapshot == "" {
		if !l.info.Online {
			return nil, lun.Errorf(lun.ErrRefused, "LUN %s is offline; lunar lun online %s", name, name)
		}
		return &fakeVolume{pool: p, name: name, data: l.data, size: func() int64 { return l.info.SizeBytes }}, nil
	}
	s, err := p.findSnapshot(name, snapshot)
	if err != nil {
		return nil, err
	}
	return &fakeVolume{pool: p, name: name, snapshot: snapshot, data: s.data, size: func() int64 { return s.info.SizeBytes }, ro: true}, nil
}

// describe lists a pool for tests that ask what is left.
func (p *fakePool) describe() string {
	var b strings.Builder
	for _, l := range p.LUNs() {
		fmt.Fprintf(&b, "%s %d online=%v %q snapshots=%d\n", l.Name, l.SizeBytes, l.Online, l.Description, l.Snapshots)
	}
	return b.String()
}
