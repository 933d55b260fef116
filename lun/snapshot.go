package lun

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"lunar/cow"
	"lunar/reservation"
)

// timeName is the default name of a snapshot: UTC, to the second.
const timeName = "20060102T150405Z"

// CreateSnapshots freezes the heads of several LUNs at one instant. The clients
// pause for the time of one gate entry; the answer waits until the record of
// the snapshots is durable, and with it everything that was written before.
func (p *Pool) CreateSnapshots(_ context.Context, reqs []SnapshotRequest, o SnapshotOptions) ([]SnapshotInfo, error) {
	if len(reqs) == 0 {
		return nil, Errorf(ErrInvalid, "no LUN named; give at least one LUN[@NAME]")
	}
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	now := p.now().UTC()
	fs, err := p.freezes(reqs, o, now)
	if err != nil {
		return nil, err
	}
	c, err := p.tree.PlanSnapshot(fs)
	if err != nil {
		return nil, apiErr(err)
	}
	began := time.Now()
	if err := p.commit(c, nil); err != nil {
		return nil, err
	}
	took := time.Since(began)
	out := make([]SnapshotInfo, len(fs))
	for i, f := range fs {
		l := p.tree.LUN(f.LUN)
		s, err := p.tree.SnapshotByName(l, f.Name)
		if err != nil {
			return nil, apiErr(err)
		}
		out[i] = p.describe(l, s, p.sumOf(s.ID), 0) // nothing is replaced yet
		p.event("snapshot-create", l.Name, fmt.Sprintf("snapshot %s@%s taken in %s", l.Name, f.Name, took.Round(time.Microsecond)))
	}
	return out, nil
}

// freezes turns the requests into what the tree is asked for; it refuses LUNs
// whose policy is freeze and whose area is full.
func (p *Pool) freezes(reqs []SnapshotRequest, o SnapshotOptions, now time.Time) ([]cow.Freeze, error) {
	meta := cow.Version{Description: o.Description, Labels: o.Labels, Created: now, Protected: o.Protect}
	if o.TTL < 0 {
		return nil, Errorf(ErrInvalid, "ttl %s: want a positive time", o.TTL)
	}
	if o.ProtectFor < 0 {
		return nil, Errorf(ErrInvalid, "protection for %s: want a positive time", o.ProtectFor)
	}
	if o.TTL > 0 {
		meta.Expires = now.Add(o.TTL)
	}
	if o.ProtectFor > 0 {
		meta.Protected, meta.ProtectedUntil = true, now.Add(o.ProtectFor)
	}
	fs := make([]cow.Freeze, 0, len(reqs))
	for _, r := range reqs {
		l, err := p.tree.LUNByName(r.LUN)
		if err != nil {
			return nil, apiErr(err)
		}
		name := r.Name
		if name == "" {
			name = p.freeName(l, now.Format(timeName))
		}
		if err := CheckName("snapshot", name); err != nil {
			return nil, err
		}
		if l.OnFull == OnFullFreeze && p.areaIsFull(l.ID) {
			return nil, Errorf(ErrNoSpace, "LUN %q: its snapshot area is full and its policy is freeze; delete snapshots, or raise the limit with `lunar reservation set %s --limit`", l.Name, l.Name)
		}
		fs = append(fs, cow.Freeze{LUN: l.ID, Name: name, Meta: meta})
	}
	return fs, nil
}

// freeName adds -2, -3 ... to a name that is taken.
func (p *Pool) freeName(l *cow.LUN, base string) string {
	name := base
	for n := 2; ; n++ {
		if _, err := p.tree.SnapshotByName(l, name); err != nil {
			return name
		}
		name = fmt.Sprintf("%s-%d", base, n)
	}
}

// Snapshots lists the snapshots of a LUN, or of all, oldest first per LUN.
func (p *Pool) Snapshots(lun string) ([]SnapshotInfo, error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	luns := p.tree.LUNs()
	if lun != "" {
		l, err := p.tree.LUNByName(lun)
		if err != nil {
			return nil, apiErr(err)
		}
		luns = []*cow.LUN{l}
	}
	out := []SnapshotInfo{}
	p.takeAll()
	for _, l := range luns {
		for _, s := range p.tree.Snapshots(l.ID) {
			info, err := p.snapshotInfo(l, s)
			if err != nil {
				return nil, err
			}
			out = append(out, info)
		}
	}
	return out, nil
}

// Labelled names the snapshots that have a label, whatever its value, oldest first
// per LUN. It looks at no page, and at each snapshot for nanoseconds.
func (p *Pool) Labelled(label string) (out []SnapshotRef) {
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	for _, l := range p.tree.LUNs() {
		for _, s := range p.tree.Snapshots(l.ID) {
			if _, ok := s.Labels[label]; ok {
				out = append(out, SnapshotRef{LUN: l.Name, Name: s.Name})
			}
		}
	}
	return out
}

// Snapshot describes one snapshot.
func (p *Pool) Snapshot(lun, name string) (SnapshotInfo, error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	l, s, err := p.snapshotOf(lun, name)
	if err != nil {
		return SnapshotInfo{}, err
	}
	p.takeAll()
	return p.snapshotInfo(l, s)
}

// snapshotInfo describes a snapshot. Called with adminMu, with what the heads
// hold unsaved taken.
func (p *Pool) snapshotInfo(l *cow.LUN, s *cow.Version) (SnapshotInfo, error) {
	unique, err := p.unique(s)
	if err != nil {
		return SnapshotInfo{}, err
	}
	return p.describe(l, s, p.sumOf(s.ID), unique), nil
}

func (p *Pool) describe(l *cow.LUN, s *cow.Version, c counts, unique int64) SnapshotInfo {
	info := SnapshotInfo{
		LUN: l.Name, Name: s.Name, Created: s.Created, Protected: s.IsProtected(p.lifeNow()), Labels: s.Labels, Description: s.Description,
		SizeBytes: s.Size, UniqueBytes: unique * blockSize, ReferencedBytes: c.ref * blockSize, ChangedBytes: c.owned * blockSize,
		Clients: len(p.attached(l.Name + "@" + s.Name)),
	}
	if info.Labels == nil {
		info.Labels = map[string]string{}
	}
	if !s.Expires.IsZero() {
		info.Expires = &s.Expires
	}
	if info.Protected && !s.ProtectedUntil.IsZero() {
		info.ProtectedUntil = &s.ProtectedUntil
	}
	return info
}

// DeleteSnapshots makes snapshots gone at once; their space comes back in the
// background, or before it returns with Wait.
func (p *Pool) DeleteSnapshots(ctx context.Context, refs []SnapshotRef, o DeleteOptions) (DeleteReport, error) {
	p.adminMu.Lock()
	ids, names, err := p.deletable(refs, o)
	var rep DeleteReport
	if err == nil {
		rep = DeleteReport{Deleted: names}
		p.takeAll()
		var freed int64
		freed, err = p.wouldFree(ids)
		rep.FreedBytes = freed * blockSize
	}
	if err == nil && !o.DryRun {
		if err = p.deleteVersions(ids, "deleted"); err == nil {
			p.expectFrom(ids, rep.FreedBytes/blockSize)
		}
	}
	p.adminMu.Unlock()
	if err != nil || o.DryRun {
		return rep, err
	}
	if o.Wait {
		err = p.WaitReclaim(ctx)
	}
	return rep, err
}

// deletable resolves and checks the snapshots to delete. Called with adminMu.
func (p *Pool) deletable(refs []SnapshotRef, o DeleteOptions) (ids []cow.VersionID, names []string, err error) {
	seen := map[cow.VersionID]bool{}
	for _, r := range refs {
		_, s, err := p.snapshotOf(r.LUN, r.Name)
		if err != nil {
			return nil, nil, err
		}
		if s.IsProtected(p.lifeNow()) && !o.Force {
			return nil, nil, Errorf(ErrRefused, "snapshot %s is protected; `lunar snapshot unprotect %s` first, or use --force", r, r)
		}
		if !seen[s.ID] {
			seen[s.ID] = true
			ids, names = append(ids, s.ID), append(names, r.String())
		}
	}
	for _, name := range names { // when nothing else refuses
		if o.DryRun {
			break
		}
		if err := p.fence(name, o.Force); err != nil {
			return nil, nil, err
		}
	}
	return ids, names, nil
}

// deleteVersions makes snapshots gone for the user. Called with adminMu.
func (p *Pool) deleteVersions(ids []cow.VersionID, why string) error {
	var names []string
	lun := ""
	for _, id := range ids {
		v := p.tree.Version(id)
		lun = p.tree.LUN(v.LUN).Name
		names = append(names, lun+"@"+v.Name)
	}
	const batch = 20_000 // a change must fit one record
	for len(ids) > 0 {
		n := min(batch, len(ids))
		c, err := p.tree.PlanDelete(ids[:n])
		if err != nil {
			return apiErr(err)
		}
		if err := p.commit(c, nil); err != nil {
			return err
		}
		ids = ids[n:]
	}
	p.event("snapshot-delete", lun, "snapshot "+strings.Join(names, " ")+" "+why)
	p.janitor.kick(jobReclaim)
	return nil
}

// Rollback makes the LUN's head a new branch from one of its snapshots. The
// state before is kept as a snapshot unless Discard. O(1) at any size: no page
// is looked at.
func (p *Pool) Rollback(_ context.Context, lun, name string, o RollbackOptions) (RollbackInfo, error) {
	if err := p.mayRollback(lun, name, o.Discard); err != nil {
		return RollbackInfo{}, err
	}
	// Without adminMu: a request that is waited for here may wait for it.
	if err := p.fence(lun, o.Force); err != nil {
		return RollbackInfo{}, err
	}
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	l, s, err := p.snapshotOf(lun, name)
	if err != nil {
		return RollbackInfo{}, err
	}
	info := RollbackInfo{LUN: lun, To: lun + "@" + name, Online: !(l.Offline || o.Force && !o.Online)}
	var keep *cow.Freeze
	if !o.Discard {
		now := p.now().UTC()
		keep = &cow.Freeze{LUN: l.ID, Name: p.freeName(l, "before-rollback-"+now.Format(timeName)), Meta: cow.Version{Created: now, Description: "state before the rollback to " + name}}
		kept := lun + "@" + keep.Name
		info.Kept = &kept
	}
	c, err := p.tree.PlanRollback(l.ID, s.ID, keep, o.Force && !o.Online)
	if err != nil {
		return RollbackInfo{}, apiErr(err)
	}
	if err := p.commitRollback(c, l, s, o.Discard); err != nil {
		return RollbackInfo{}, err
	}
	msg := "LUN " + lun + " rolled back to " + name
	if info.Kept != nil {
		msg += "; the state before is " + *info.Kept
	}
	p.event("rollback", lun, msg)
	p.janitor.kick(jobReclaim)
	return info, nil
}

// commitRollback moves the charges of the LUN as the new head sees them, admits
// the growth of its area like a write, and commits. The size is the snapshot's
// from now on: a promise that grows with it is taken first, one that shrinks is
// given up when it is done.
func (p *Pool) commitRollback(c cow.Change, l *cow.LUN, s *cow.Version, discard bool) error {
	n := *l
	n.Size = s.Size
	before, err := p.account(l)
	if err != nil {
		return err
	}
	after, err := p.account(&n)
	if err != nil {
		return err
	}
	if n.Size > l.Size {
		if err := p.repromise(l.ID, before, after); err != nil {
			return Errorf(ErrNoSpace, "rollback of %q to %s brings its size of %s back: %w", l.Name, s.Name, human(s.Size), err)
		}
	}
	err = p.moveToRollback(c, l, s, discard)
	switch {
	case err != nil && n.Size > l.Size:
		return errors.Join(err, p.repromise(l.ID, after, before))
	case err == nil && n.Size < l.Size:
		return p.repromise(l.ID, before, after)
	}
	return err
}

func (p *Pool) moveToRollback(c cow.Change, l *cow.LUN, s *cow.Version, discard bool) error {
	dLive, dArea, err := p.admitRollback(l, s, discard)
	if err != nil {
		return err
	}
	p.ledger.Settle(uint64(l.ID), dLive, dArea, dLive, dArea)
	id := l.ID
	err = p.commitRetiring(c, id, func() { p.rebalance(id) })
	if err != nil {
		p.ledger.Release(uint64(l.ID), dLive, dArea)
	}
	return err
}

// mayRollback refuses what cannot be done before anybody is disconnected for it.
func (p *Pool) mayRollback(lun, name string, discard bool) error {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	if err := p.writable(); err != nil {
		return err
	}
	l, s, err := p.snapshotOf(lun, name)
	if err != nil {
		return err
	}
	dLive, dArea, err := p.admitRollback(l, s, discard)
	if err == nil {
		p.ledger.Settle(uint64(l.ID), dLive, dArea, 0, 0)
	}
	return err
}

// admitRollback asks for what a rollback moves between live data and area; the
// caller settles it.
func (p *Pool) admitRollback(l *cow.LUN, s *cow.Version, discard bool) (dLive, dArea int64, err error) {
	if discard {
		return 0, 0, nil // what goes to the area is on its way out of it
	}
	a, live := p.reserved(l.ID), p.sumOf(s.ID).local
	dLive, dArea = live-a.Live, a.Live-live
	if d := p.ledger.Admit(uint64(l.ID), dLive, dArea); d.Verdict != reservation.Admit {
		return 0, 0, Errorf(ErrNoSpace, "rollback of %q to %s would need %s more in its snapshot area, which has no room for it; use --discard, or raise the limit with `lunar reservation set %s --limit`",
			l.Name, s.Name, human(dArea*blockSize), l.Name)
	}
	return dLive, dArea, nil
}

// snapshotOf finds a snapshot and its LUN. Called with adminMu.
func (p *Pool) snapshotOf(lun, name string) (*cow.LUN, *cow.Version, error) {
	l, err := p.tree.LUNByName(lun)
	if err != nil {
		return nil, nil, apiErr(err)
	}
	s, err := p.tree.SnapshotByName(l, name)
	return l, s, apiErr(err)
}

// rebalance splits what a LUN's versions own between its live data and its
// area as its head sees it now. Called under the gate's write side.
func (p *Pool) rebalance(id cow.LUNID) {
	a := p.reserved(id)
	d := p.sumOf(p.tree.LUN(id).Head).local - a.Live
	p.ledger.Charge(uint64(id), d, -d)
}

func (p *Pool) clone(lun, snap, to string, thick bool) (LUNInfo, error) {
	if err := CheckName("LUN", to); err != nil {
		return LUNInfo{}, err
	}
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	src, err := p.tree.LUNByName(lun)
	if err != nil {
		return LUNInfo{}, apiErr(err)
	}
	size, parent := src.Size, lun
	var s *cow.Version
	if snap != "" {
		if s, err = p.tree.SnapshotByName(src, snap); err != nil {
			return LUNInfo{}, apiErr(err)
		}
		size, parent = s.Size, lun+"@"+snap
	}
	l, err := p.newLUN(CreateLUN{Name: to, SizeBytes: size, Thick: thick})
	if err != nil {
		return LUNInfo{}, err
	}
	l.Parent, l.Allow = parent, src.Allow // who may not see the source may not see its copy
	var c cow.Change
	if s != nil {
		c, err = p.tree.PlanClone(s.ID, l)
	} else {
		c, err = p.tree.PlanCloneHead(src.ID, l)
	}
	if err != nil {
		return LUNInfo{}, apiErr(err)
	}
	if err := p.addLUN(c); err != nil {
		return LUNInfo{}, err
	}
	p.event("clone", to, "LUN "+to+" cloned from "+parent)
	return p.lunInfo(to)
}
