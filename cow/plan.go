package cow

import (
	"fmt"
	"slices"
	"time"
)

// planner hands out identifiers and collects a Change; the tree is not touched.
type planner struct {
	t *Tree
	c Change
}

func (t *Tree) planner() *planner { return &planner{t: t, c: Change{Next: t.next}} }

func (p *planner) id() uint64 { p.c.Next++; return p.c.Next - 1 }

func (p *planner) put(v Version) { p.c.Versions = append(p.c.Versions, v) }
func (p *planner) putLUN(l LUN)  { p.c.LUNs = append(p.c.LUNs, l) }

// mark adds what m says of the versions ids, if there are any.
func (p *planner) mark(ids []VersionID, m Mark) {
	if len(ids) > 0 {
		m.IDs = sortedIDs(ids)
		p.c.Marks = append(p.c.Marks, m)
	}
}

func (p *planner) fork(f VersionID) BranchID {
	b := BranchID(p.id())
	p.c.Branches = append(p.c.Branches, Branch{ID: b, Fork: f})
	return b
}

// PlanCreate plans a new, empty LUN. l.ID and l.Head are assigned.
func (t *Tree) PlanCreate(l LUN) (Change, error) {
	if _, ok := t.names[l.Name]; ok {
		return Change{}, fmt.Errorf("LUN %q %w", l.Name, ErrExists)
	}
	p := t.planner()
	l.ID = LUNID(p.id())
	b := p.fork(0)
	l.Head = VersionID(p.id())
	p.put(Version{ID: l.Head, LUN: l.ID, Branch: b, Size: l.Size, State: Head})
	p.putLUN(l)
	return p.c, nil
}

// Freeze names one snapshot to take.
type Freeze struct {
	LUN  LUNID
	Name string
	Meta Version // Description, Labels, Created, Protected, ProtectedUntil, Expires are used
}

// PlanSnapshot plans the freezing of the heads of several LUNs at one instant.
func (t *Tree) PlanSnapshot(fs []Freeze) (Change, error) {
	p := t.planner()
	seen := map[LUNID]bool{}
	for _, f := range fs {
		l := t.luns[f.LUN]
		if l == nil {
			return Change{}, fmt.Errorf("LUN %d %w", f.LUN, ErrNotFound)
		}
		if seen[l.ID] {
			return Change{}, fmt.Errorf("%w: LUN %q is named twice; one snapshot of a LUN per instant", ErrRefused, l.Name)
		}
		seen[l.ID] = true
		if _, ok := t.snaps[l.ID][f.Name]; ok {
			return Change{}, fmt.Errorf("snapshot %s@%s %w", l.Name, f.Name, ErrExists)
		}
		if l.MaxSnapshots > 0 && len(t.snaps[l.ID]) >= l.MaxSnapshots {
			return Change{}, fmt.Errorf("%w: LUN %q has its %d snapshots; delete some, or raise the number with `lunar lun set %s --max-snapshots`",
				ErrRefused, l.Name, l.MaxSnapshots, l.Name)
		}
		p.freeze(*l, f)
	}
	return p.c, nil
}

// freeze turns the head of l into a named snapshot with a new head on top.
func (p *planner) freeze(l LUN, f Freeze) VersionID {
	old := *p.t.versions[l.Head]
	p.named(old, f)
	l.Head = VersionID(p.id())
	p.put(Version{ID: l.Head, LUN: l.ID, Branch: old.Branch, Parent: old.ID, Size: l.Size, State: Head})
	p.putLUN(l)
	return old.ID
}

func (p *planner) named(v Version, f Freeze) {
	v.State, v.Name = Snapshot, f.Name
	v.Description, v.Labels, v.Created = f.Meta.Description, f.Meta.Labels, f.Meta.Created
	v.Protected, v.ProtectedUntil, v.Expires = f.Meta.Protected, f.Meta.ProtectedUntil, f.Meta.Expires
	p.put(v)
}

// PlanRollback plans that the LUN's head becomes a new branch from snapshot to.
// keep, unless nil, names the snapshot that holds the state before.
func (t *Tree) PlanRollback(lun LUNID, to VersionID, keep *Freeze, offline bool) (Change, error) {
	l, s := t.luns[lun], t.versions[to]
	if l == nil || s == nil || s.State != Snapshot || s.LUN != lun {
		return Change{}, fmt.Errorf("rollback of LUN %d to version %d: %w", lun, to, ErrNotFound)
	}
	if keep != nil {
		if _, ok := t.snaps[lun][keep.Name]; ok {
			return Change{}, fmt.Errorf("snapshot %s@%s %w", l.Name, keep.Name, ErrExists)
		}
	}
	p := t.planner()
	n, old := *l, *t.versions[l.Head]
	if keep != nil {
		p.named(old, *keep)
	} else {
		old.State = Deleted
		p.put(old)
	}
	b := p.fork(to)
	n.Head, n.Size = VersionID(p.id()), s.Size
	if offline {
		n.Offline = true
	}
	p.put(Version{ID: n.Head, LUN: lun, Branch: b, Parent: to, Size: s.Size, State: Head})
	p.putLUN(n)
	return p.c, nil
}

// PlanClone plans a new LUN l (ID and Head are assigned) that begins as the
// content of snapshot from.
func (t *Tree) PlanClone(from VersionID, l LUN) (Change, error) {
	s := t.versions[from]
	if s == nil || s.State != Snapshot {
		return Change{}, fmt.Errorf("version %d %w", from, ErrNotFound)
	}
	if _, ok := t.names[l.Name]; ok {
		return Change{}, fmt.Errorf("LUN %q %w", l.Name, ErrExists)
	}
	p := t.planner()
	p.clone(*s, l)
	return p.c, nil
}

func (p *planner) clone(s Version, l LUN) {
	l.ID = LUNID(p.id())
	b := p.fork(s.ID)
	l.Head, l.Size = VersionID(p.id()), s.Size
	p.put(Version{ID: l.Head, LUN: l.ID, Branch: b, Parent: s.ID, Size: s.Size, State: Head})
	p.putLUN(l)
}

// PlanCloneHead plans a clone of a LUN as it is now: its head is frozen as a
// version without a name, which lives as long as both sides need it.
func (t *Tree) PlanCloneHead(src LUNID, l LUN) (Change, error) {
	o := t.luns[src]
	if o == nil {
		return Change{}, fmt.Errorf("LUN %d %w", src, ErrNotFound)
	}
	if _, ok := t.names[l.Name]; ok {
		return Change{}, fmt.Errorf("LUN %q %w", l.Name, ErrExists)
	}
	p := t.planner()
	old := *t.versions[o.Head]
	old.State = Deleted
	p.put(old)
	n := *o
	n.Head = VersionID(p.id())
	p.put(Version{ID: n.Head, LUN: o.ID, Branch: old.Branch, Parent: old.ID, Size: o.Size, State: Head})
	p.putLUN(n)
	p.clone(old, l)
	return p.c, nil
}

// PlanDelete plans that snapshots are gone for the user.
func (t *Tree) PlanDelete(ids []VersionID) (Change, error) {
	p := t.planner()
	for _, id := range ids {
		if v := t.versions[id]; v == nil || v.State != Snapshot {
			return Change{}, fmt.Errorf("version %d %w", id, ErrNotFound)
		}
	}
	p.mark(ids, Mark{State: Deleted})
	return p.c, nil
}

// PlanDeleteLUN plans that a LUN with all its versions is gone for the user.
// Blocks that clones need move to the shared account with their versions.
func (t *Tree) PlanDeleteLUN(id LUNID) (Change, error) {
	if t.luns[id] == nil {
		return Change{}, fmt.Errorf("LUN %d %w", id, ErrNotFound)
	}
	p := t.planner()
	var seen, hidden []VersionID
	for _, v := range t.versions {
		switch {
		case v.LUN != id:
		case v.State == Head || v.State == Snapshot:
			seen = append(seen, v.ID)
		default:
			hidden = append(hidden, v.ID)
		}
	}
	p.mark(seen, Mark{State: Deleted, Orphan: true})
	p.mark(hidden, Mark{Orphan: true})
	p.c.DropLUNs = append(p.c.DropLUNs, id)
	return p.c, nil
}

// PlanUpdate plans the replacement of a LUN's catalogue entry; its identity and
// head stay. A new name must be free; a new size is the head's too.
func (t *Tree) PlanUpdate(l LUN) (Change, error) {
	old := t.luns[l.ID]
	if old == nil {
		return Change{}, fmt.Errorf("LUN %d %w", l.ID, ErrNotFound)
	}
	if id, ok := t.names[l.Name]; ok && id != l.ID {
		return Change{}, fmt.Errorf("LUN %q %w", l.Name, ErrExists)
	}
	l.Head, l.UUID = old.Head, old.UUID
	p := t.planner()
	if l.Size != old.Size {
		h := *t.versions[l.Head]
		h.Size = l.Size
		p.put(h)
	}
	p.putLUN(l)
	return p.c, nil
}

// PlanUpdateSnapshot plans the replacement of what the user may change of a
// snapshot: name, description, labels, protection, expiry.
func (t *Tree) PlanUpdateSnapshot(v Version) (Change, error) {
	old := t.versions[v.ID]
	if old == nil || old.State != Snapshot {
		return Change{}, fmt.Errorf("version %d %w", v.ID, ErrNotFound)
	}
	if id, ok := t.snaps[old.LUN][v.Name]; ok && id != v.ID {
		return Change{}, fmt.Errorf("snapshot %s@%s %w", t.luns[old.LUN].Name, v.Name, ErrExists)
	}
	n := *old
	n.Name, n.Description, n.Labels = v.Name, v.Description, v.Labels
	n.Protected, n.ProtectedUntil, n.Expires = v.Protected, v.ProtectedUntil, v.Expires
	p := t.planner()
	p.put(n)
	return p.c, nil
}

// Expired returns the snapshots whose time to live has ended at now, oldest
// first. Protected ones stay.
func (t *Tree) Expired(now time.Time) []VersionID {
	var out []VersionID
	for _, v := range t.versions {
		if v.State == Snapshot && !v.Expires.IsZero() && !v.Expires.After(now) && !v.IsProtected(now) {
			out = append(out, v.ID)
		}
	}
	slices.Sort(out)
	return out
}

// NextExpiry is when the next time to live of a snapshot ends, or has ended; the
// end of a protection that lasts longer. Zero: none does.
func (t *Tree) NextExpiry() (at time.Time) {
	for _, v := range t.versions {
		if v.State != Snapshot || v.Expires.IsZero() || v.Protected && v.ProtectedUntil.IsZero() {
			continue
		}
		end := v.Expires
		if v.Protected && v.ProtectedUntil.After(end) {
			end = v.ProtectedUntil
		}
		if at.IsZero() || end.Before(at) {
			at = end
		}
	}
	return at
}

// IsProtected says whether the snapshot may be neither deleted nor recycled at
// now. Protection with an end lasts until then.
func (v *Version) IsProtected(now time.Time) bool {
	return v.Protected && (v.ProtectedUntil.IsZero() || v.ProtectedUntil.After(now))
}
