package cow

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Identifiers are handed out from one counter and never reused, also not after
// a crash that lost the record that introduced them (Tree.Next is durable with
// a margin).
type (
	LUNID     uint64
	VersionID uint64
	BranchID  uint64
)

// State says what a version is to the user and to the merger.
type State string

// States of a version. Head → Snapshot (freeze) → Deleted (gone for the user) →
// Merging (its records are being joined with those of Into) → Alias (joined:
// what is still stored under its id belongs to Into). A version without
// children goes from Deleted to nothing when its blocks have been freed.
const (
	Head     State = "head"
	Snapshot State = "snapshot"
	Deleted  State = "deleted"
	Merging  State = "merging"
	Alias    State = "alias"
)

// Version is a node of the tree. A parent's id is always smaller than those of
// its children. Values are immutable once in a Tree; a Change replaces them.
type Version struct {
	ID     VersionID `json:"id"`
	LUN    LUNID     `json:"lun"` // who pays for its blocks; 0: the pool's shared account
	Branch BranchID  `json:"branch"`
	Parent VersionID `json:"parent,omitempty"`
	Size   int64     `json:"size"` // bytes
	State  State     `json:"state"`
	Into   VersionID `json:"into,omitempty"` // Merging, Alias

	Name           string            `json:"name,omitempty"`
	Description    string            `json:"description,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	Created        time.Time         `json:"created,omitzero"`
	Protected      bool              `json:"protected,omitempty"`
	ProtectedUntil time.Time         `json:"protected_until,omitzero"`
	Expires        time.Time         `json:"expires,omitzero"`
}

// Branch is a line of versions from a fork to its tip. Fork is the version that
// the first one of the line was made from, 0 for the first branch of a family.
type Branch struct {
	ID   BranchID  `json:"id"`
	Fork VersionID `json:"fork,omitempty"`
}

// LUN is the catalogue entry of a block device. Reserve and Limit are kept as
// the user gave them ("20%", "none", bytes), so that they follow a resize.
type LUN struct {
	ID           LUNID     `json:"id"`
	UUID         string    `json:"uuid"`
	Name         string    `json:"name"`
	Thick        bool      `json:"thick,omitempty"`
	Size         int64     `json:"size"`
	Cut          int64     `json:"cut,omitempty"` // bytes up to here, behind Size, are still to be freed after a shrink
	Head         VersionID `json:"head"`
	ReadOnly     bool      `json:"read_only,omitempty"`
	Offline      bool      `json:"offline,omitempty"`
	Description  string    `json:"description,omitempty"`
	Created      time.Time `json:"created"`
	Parent       string    `json:"parent,omitempty"` // LUN@SNAP that it was cloned from
	MaxSnapshots int       `json:"max_snapshots"`
	Reserve      string    `json:"reserve"`
	Limit        string    `json:"limit"`
	OnFull       string    `json:"on_full"`
	Allow        []string  `json:"allow,omitempty"` // who may attach; empty: anyone
	QoS          QoS       `json:"qos,omitzero"`
}

// QoS limits what clients of a LUN get done. A zero limit is none; the burst is
// how long an idle LUN saves up what it does not use, a second if 0.
type QoS struct {
	IOPS           int64 `json:"iops,omitempty"`             // requests a second
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"` // of READ and WRITE
	BurstMS        int64 `json:"burst_ms,omitempty"`
}

// Change is one structural operation as its results: the redo record in the
// log and what the next checkpoint writes to the index. Applying a Change twice
// gives the same Tree.
type Change struct {
	LUNs         []LUN      `json:"luns,omitempty"`
	Versions     []Version  `json:"versions,omitempty"`
	Marks        []Mark     `json:"marks,omitempty"` // applied after Versions
	Branches     []Branch   `json:"branches,omitempty"`
	DropLUNs     []LUNID    `json:"drop_luns,omitempty"`
	DropVersions IDs        `json:"drop_versions,omitempty"`
	DropBranches []BranchID `json:"drop_branches,omitempty"`
	Next         uint64     `json:"next,omitempty"`
}

// Mark changes many versions in the same way: a LUN with 65,536 snapshots is
// deleted by one record of the log. Fields that are not set leave what is there.
// A version that stops being the user's loses its name and all that goes with it.
type Mark struct {
	IDs    IDs       `json:"ids"`
	State  State     `json:"state,omitempty"`
	Into   VersionID `json:"into,omitempty"`
	Orphan bool      `json:"orphan,omitempty"` // no LUN pays any more
}

func (m *Mark) of(v *Version) *Version {
	n := *v
	if m.State != "" {
		n.State = m.State
	}
	if m.Into != 0 {
		n.Into = m.Into
	}
	if m.Orphan {
		n.LUN = 0
	}
	if n.State != Head && n.State != Snapshot {
		n = Version{ID: n.ID, LUN: n.LUN, Branch: n.Branch, Parent: n.Parent, Size: n.Size, State: n.State, Into: n.Into}
	}
	return &n
}

// Errors of planning. They are wrapped with the names concerned.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("exists already")
	ErrRefused  = errors.New("refused")
)

// Tree is the catalogue and version tree of a pool.
type Tree struct {
	luns     map[LUNID]*LUN
	names    map[string]LUNID
	versions map[VersionID]*Version
	branches map[BranchID]*Branch
	children map[VersionID][]VersionID            // by effective parent; aliases have no place in it
	aliases  map[VersionID]map[VersionID]struct{} // version → ids merged directly into it
	snaps    map[LUNID]map[string]VersionID
	deleted  map[VersionID]struct{}
	merging  map[VersionID]struct{}
	onBranch map[BranchID]int          // versions, aliases among them
	gone     map[VersionID]VersionID   // forgotten ids → the version that has their blocks
	was      map[VersionID][]VersionID // the other way round, in no order
	next     uint64
}

// NewTree returns an empty tree whose next identifier is next (at least 1).
func NewTree(next uint64) *Tree {
	return &Tree{
		luns: map[LUNID]*LUN{}, names: map[string]LUNID{}, versions: map[VersionID]*Version{},
		branches: map[BranchID]*Branch{}, children: map[VersionID][]VersionID{},
		aliases: map[VersionID]map[VersionID]struct{}{}, snaps: map[LUNID]map[string]VersionID{},
		deleted: map[VersionID]struct{}{}, merging: map[VersionID]struct{}{}, onBranch: map[BranchID]int{},
		gone: map[VersionID]VersionID{}, was: map[VersionID][]VersionID{}, next: max(next, 1),
	}
}

// Next is the smallest identifier that was never handed out.
func (t *Tree) Next() uint64 { return t.next }

// Apply installs a change.
func (t *Tree) Apply(c Change) {
	for i := range c.LUNs {
		l := c.LUNs[i]
		if old := t.luns[l.ID]; old != nil {
			delete(t.names, old.Name)
		}
		t.luns[l.ID] = &l
		t.names[l.Name] = l.ID
	}
	for i := range c.Branches {
		b := c.Branches[i]
		t.branches[b.ID] = &b
	}
	for i := range c.Versions {
		v := c.Versions[i]
		t.unlink(v.ID)
		t.link(&v)
	}
	for i := range c.Marks {
		for _, id := range c.Marks[i].IDs {
			if v := t.versions[id]; v != nil {
				t.unlink(id)
				t.link(c.Marks[i].of(v))
			}
		}
	}
	for _, id := range slices.Sorted(slices.Values(c.DropVersions)) { // before what they went into
		t.forward(id)
		t.unlink(id)
	}
	for _, id := range c.DropBranches {
		delete(t.branches, id)
	}
	for _, id := range c.DropLUNs {
		if l := t.luns[id]; l != nil {
			if t.names[l.Name] == id {
				delete(t.names, l.Name)
			}
			delete(t.luns, id)
		}
	}
	t.next = max(t.next, c.Next)
}

// forward keeps the way from an id that is dropped to the version that has what
// was stored under it, since records of the log go on naming it. It ends with
// that version.
func (t *Tree) forward(id VersionID) {
	v := t.versions[id]
	if v == nil {
		return
	}
	ids := t.was[id]
	delete(t.was, id)
	if v.State != Alias && v.State != Merging {
		for _, x := range ids {
			delete(t.gone, x)
		}
		return
	}
	ids = append(ids, id)
	for _, x := range ids {
		t.gone[x] = v.Into
	}
	t.was[v.Into] = append(t.was[v.Into], ids...)
}

// Forwarded lists the forgotten ids whose blocks are a version's own: its and
// those of what was merged into it.
func (t *Tree) Forwarded(id VersionID) []VersionID { return t.was[id] }

// Forward returns where the blocks of a forgotten id are, 0 if nobody has any.
func (t *Tree) Forward(id VersionID) VersionID { return t.gone[id] }

// SetForward tells a tree that is loaded of a forgotten id.
func (t *Tree) SetForward(id, into VersionID) {
	t.gone[id] = into
	t.was[into] = append(t.was[into], id)
}

func (t *Tree) link(v *Version) {
	t.versions[v.ID] = v
	t.onBranch[v.Branch]++
	switch v.State {
	case Alias, Merging:
		m := t.aliases[v.Into]
		if m == nil {
			m = map[VersionID]struct{}{}
			t.aliases[v.Into] = m
		}
		m[v.ID] = struct{}{}
	default:
		if v.Parent != 0 {
			t.children[v.Parent] = insert(t.children[v.Parent], v.ID)
		}
	}
	switch v.State {
	case Deleted:
		t.deleted[v.ID] = struct{}{}
	case Merging:
		t.merging[v.ID] = struct{}{}
	case Snapshot:
		m := t.snaps[v.LUN]
		if m == nil {
			m = map[string]VersionID{}
			t.snaps[v.LUN] = m
		}
		m[v.Name] = v.ID
	}
}

func (t *Tree) unlink(id VersionID) {
	v := t.versions[id]
	if v == nil {
		return
	}
	delete(t.versions, id)
	if t.onBranch[v.Branch]--; t.onBranch[v.Branch] == 0 {
		delete(t.onBranch, v.Branch)
	}
	switch v.State {
	case Alias, Merging:
		delete(t.aliases[v.Into], id)
		if len(t.aliases[v.Into]) == 0 {
			delete(t.aliases, v.Into)
		}
	default:
		if v.Parent != 0 {
			t.children[v.Parent] = remove(t.children[v.Parent], id)
			if len(t.children[v.Parent]) == 0 {
				delete(t.children, v.Parent)
			}
		}
	}
	delete(t.deleted, id)
	delete(t.merging, id)
	if v.State == Snapshot && t.snaps[v.LUN][v.Name] == id {
		delete(t.snaps[v.LUN], v.Name)
		if len(t.snaps[v.LUN]) == 0 {
			delete(t.snaps, v.LUN)
		}
	}
}

func insert(s []VersionID, id VersionID) []VersionID {
	i, found := slices.BinarySearch(s, id)
	if found {
		return s
	}
	return slices.Insert(slices.Clone(s), i, id)
}

func remove(s []VersionID, id VersionID) []VersionID {
	if i, found := slices.BinarySearch(s, id); found {
		return slices.Delete(slices.Clone(s), i, i+1)
	}
	return s
}

// Version returns the version with this id, or nil.
func (t *Tree) Version(id VersionID) *Version { return t.versions[id] }

// LUN returns the LUN with this id, or nil.
func (t *Tree) LUN(id LUNID) *LUN { return t.luns[id] }

// Branch returns the branch with this id, or nil.
func (t *Tree) Branch(id BranchID) *Branch { return t.branches[id] }

// LUNByName returns the LUN of this name; ErrNotFound if there is none.
func (t *Tree) LUNByName(name string) (*LUN, error) {
	if id, ok := t.names[name]; ok {
		return t.luns[id], nil
	}
	return nil, fmt.Errorf("LUN %q %w; see `lunar lun list`", name, ErrNotFound)
}

// SnapshotByName returns LUN@name; ErrNotFound if there is none.
func (t *Tree) SnapshotByName(l *LUN, name string) (*Version, error) {
	if id, ok := t.snaps[l.ID][name]; ok {
		return t.versions[id], nil
	}
	return nil, fmt.Errorf("snapshot %s@%s %w; see `lunar snapshot list %s`", l.Name, name, ErrNotFound, l.Name)
}

// LUNs returns all LUNs in order of name.
func (t *Tree) LUNs() []*LUN {
	out := slices.Collect(maps.Values(t.luns))
	slices.SortFunc(out, func(a, b *LUN) int { return compareStrings(a.Name, b.Name) })
	return out
}

// Snapshots returns the snapshots of a LUN, oldest first.
func (t *Tree) Snapshots(l LUNID) []*Version {
	out := make([]*Version, 0, len(t.snaps[l]))
	for _, id := range t.snaps[l] {
		out = append(out, t.versions[id])
	}
	slices.SortFunc(out, func(a, b *Version) int { return int(int64(a.ID) - int64(b.ID)) })
	return out
}

// SnapshotCount returns how many snapshots a LUN has.
func (t *Tree) SnapshotCount(l LUNID) int { return len(t.snaps[l]) }

// Versions returns all versions in ascending order of id: parents come before
// their children.
func (t *Tree) Versions() []*Version {
	out := slices.Collect(maps.Values(t.versions))
	slices.SortFunc(out, func(a, b *Version) int { return int(int64(a.ID) - int64(b.ID)) })
	return out
}

// Branches returns all branches in no order.
func (t *Tree) Branches() []*Branch { return slices.Collect(maps.Values(t.branches)) }

// Children returns the versions made directly from id. The caller must not
// change the slice.
func (t *Tree) Children(id VersionID) []VersionID { return t.children[id] }

// Canonical resolves an id through merges to the version that owns its blocks
// now, also a forgotten one. An unknown id is returned as it is.
func (t *Tree) Canonical(id VersionID) VersionID {
	for {
		v := t.versions[id]
		switch {
		case v != nil && v.State != Alias && v.State != Merging:
			return id
		case v != nil:
			id = v.Into
		default:
			into, ok := t.gone[id]
			if !ok {
				return id
			}
			id = into
		}
	}
}

// Group appends to out the ids under which blocks of a canonical version may be
// stored: itself and everything merged into it, newest first.
func (t *Tree) Group(id VersionID, out []VersionID) []VersionID {
	start := len(out)
	out = append(out, id)
	for i := start; i < len(out); i++ {
		for a := range t.aliases[out[i]] {
			out = append(out, a)
		}
	}
	slices.SortFunc(out[start:], func(a, b VersionID) int { return int(int64(b) - int64(a)) })
	return out
}

// Joining says whether records of other ids are still being joined with those
// of a version.
func (t *Tree) Joining(id VersionID) bool {
	for a := range t.aliases[id] {
		if t.versions[a].State == Merging {
			return true
		}
	}
	return false
}

// Deleted returns the versions that are gone for the user and not merged or
// freed yet, in no order.
func (t *Tree) Deleted() []VersionID { return slices.Collect(maps.Keys(t.deleted)) }

// DeletedCount says how many versions are deleted and not merged or freed yet.
func (t *Tree) DeletedCount() int { return len(t.deleted) }

// MergingCount says how many versions are being merged.
func (t *Tree) MergingCount() int { return len(t.merging) }

// Payer returns the LUN that pays for blocks stored under id, 0 for none. While
// a merge into a version of another LUN runs, each page is paid as before until
// it has been moved to the other id.
func (t *Tree) Payer(id VersionID) LUNID {
	for {
		v := t.versions[id]
		switch {
		case v != nil && v.State != Alias:
			return v.LUN
		case v != nil:
			id = v.Into
		default:
			into, ok := t.gone[id]
			if !ok {
				return 0
			}
			id = into
		}
	}
}

// Step is one part of the path from a version to the root of its family: the
// versions of Branch whose id is at most Limit.
type Step struct {
	Branch BranchID
	Limit  VersionID
}

// Path appends the path of a version to out, nearest first.
func (t *Tree) Path(id VersionID, out []Step) []Step {
	for v := t.versions[id]; v != nil; {
		out = append(out, Step{v.Branch, v.ID})
		b := t.branches[v.Branch]
		if b == nil || b.Fork == 0 {
			break
		}
		v = t.versions[b.Fork]
	}
	return out
}

func compareStrings(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
