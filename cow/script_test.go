package cow

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestTree runs the scripts of testdata/tree. A script is a list of `do` blocks,
// one verb a line; the output is what the lines said and then the tree.
func TestTree(t *testing.T) {
	datadriven.Walk(t, "testdata/tree", func(t *testing.T, path string) {
		s := newScript(t)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.t = t
			if d.Cmd == "skip" {
				return s.setSkip(d)
			}
			var out strings.Builder
			for line := range strings.Lines(d.Input) {
				if said := s.line(strings.Fields(line)); said != "" {
					fmt.Fprintln(&out, said)
				}
			}
			if d.Cmd == "do" {
				out.WriteString(draw(s.tree))
			}
			return out.String()
		})
	})
}

// script holds a tree and a shadow that sees the same changes only as JSON, each
// twice, as a replay after a crash does.
type script struct {
	t            testing.TB
	tree, shadow *Tree
	skipped      map[VersionID]bool
}

func newScript(t testing.TB) *script {
	return &script{t: t, tree: NewTree(1), shadow: NewTree(1), skipped: map[VersionID]bool{}}
}

func (s *script) setSkip(d *datadriven.TestData) string {
	s.skipped = map[VersionID]bool{}
	for _, a := range d.CmdArgs {
		n, err := strconv.Atoi(a.Key)
		if err != nil {
			s.t.Fatal(err)
		}
		s.skipped[VersionID(n)] = true
	}
	return ""
}

// apply installs a change, with the checks that every change must pass.
func (s *script) apply(c Change, err error) string {
	s.t.Helper()
	if err != nil {
		kind := "no sentinel"
		for _, e := range []error{ErrNotFound, ErrExists, ErrRefused} {
			if errors.Is(err, e) {
				kind = e.Error()
			}
		}
		return fmt.Sprintf("error (%s): %v", kind, err)
	}
	before := draw(s.tree)
	body, err := json.Marshal(c)
	if err != nil {
		s.t.Fatal(err)
	}
	var again Change
	if err := json.Unmarshal(body, &again); err != nil {
		s.t.Fatal(err)
	}
	if got := draw(s.tree); got != before {
		s.t.Fatalf("planning changed the tree:\n%s\nwas\n%s", got, before)
	}
	s.tree.Apply(c)
	s.shadow.Apply(again)
	s.shadow.Apply(again)
	if a, b := draw(s.tree), draw(s.shadow); a != b {
		s.t.Fatalf("replayed twice from JSON:\n%s\nlive:\n%s", b, a)
	}
	checkTree(s.t, s.tree)
	checkTree(s.t, s.shadow)
	return ""
}

func (s *script) skip(id VersionID) bool { return s.skipped[id] }

func (s *script) line(f []string) string {
	if len(f) == 0 {
		return ""
	}
	name, args := f[0], f[1:]
	switch name {
	case "create":
		l := LUN{Name: args[0], Size: 1 << 30, Thick: slices.Contains(args, "thick")}
		l.MaxSnapshots, _ = strconv.Atoi(option(args, "max"))
		return s.apply(s.tree.PlanCreate(l))
	case "snapshot":
		return s.snapshot(args)
	case "rollback":
		return s.rollback(args)
	case "clone":
		return s.clone(args[0], args[1])
	case "delete":
		var ids []VersionID
		for _, a := range args {
			ids = append(ids, s.version(a))
		}
		return s.apply(s.tree.PlanDelete(ids))
	case "delete-lun":
		return s.apply(s.tree.PlanDeleteLUN(s.lun(args[0]).ID))
	case "rename":
		return s.rename(args[0], args[1])
	case "resize":
		l := *s.lun(args[0])
		l.Size, _ = strconv.ParseInt(args[1], 10, 64)
		return s.apply(s.tree.PlanUpdate(l))
	}
	return s.reclaim(name, args)
}

// reclaim runs one step of giving space back, or all of them.
func (s *script) reclaim(name string, args []string) string {
	switch name {
	case "plan":
		r := s.tree.PlanReclaim(s.skip)
		if r.Empty() {
			return "nothing to reclaim"
		}
		return fmt.Sprintf("free %v merges %+v", r.Free, r.Merges)
	case "merge":
		s.apply(s.tree.PlanMerge(s.tree.PlanReclaim(s.skip).Merges...), nil)
	case "merged":
		for _, src := range sorted(s.tree.Merging()) {
			s.apply(s.tree.PlanMerged(src, nil), nil)
		}
	case "empty": // ids under which nothing is stored any more
		var ids []VersionID
		for _, a := range args {
			ids = append(ids, s.version(a))
		}
		c := s.tree.PlanMerged(nil, ids)
		s.apply(c, nil)
		return fmt.Sprintf("forgot versions %v branches %v, forks %v", c.DropVersions, c.DropBranches, c.Branches)
	case "freed":
		free := s.tree.PlanReclaim(s.skip).Free
		c := s.tree.PlanFreed(free)
		s.apply(c, nil)
		return fmt.Sprintf("forgot versions %v branches %v", c.DropVersions, c.DropBranches)
	case "reclaim":
		for n := 0; ; n++ {
			r := s.tree.PlanReclaim(s.skip)
			if r.Empty() {
				return fmt.Sprintf("%d rounds", n)
			}
			s.apply(s.tree.PlanMerge(r.Merges...), nil)
			for _, m := range r.Merges {
				s.apply(s.tree.PlanMerged(m.Sources, nil), nil)
			}
			s.apply(s.tree.PlanFreed(r.Free), nil)
		}
	case "path":
		return fmt.Sprintf("path of %s: %v", args[0], s.tree.Path(s.version(args[0]), nil))
	default:
		s.t.Fatalf("unknown verb %q", name)
	}
	return ""
}

func sorted(m map[VersionID][]VersionID) (out [][]VersionID) {
	for _, v := range m {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b []VersionID) int { return int(int64(a[0]) - int64(b[0])) })
	return out
}

func option(args []string, key string) string {
	for _, a := range args {
		if v, ok := strings.CutPrefix(a, key+"="); ok {
			return v
		}
	}
	return ""
}

func (s *script) lun(name string) *LUN {
	l, err := s.tree.LUNByName(name)
	if err != nil {
		return &LUN{ID: 999}
	}
	return l
}

// version resolves LUN@SNAP, LUN (its head) or a number.
func (s *script) version(ref string) VersionID {
	if n, err := strconv.Atoi(ref); err == nil {
		return VersionID(n)
	}
	name, snap, ok := strings.Cut(ref, "@")
	l := s.lun(name)
	if !ok {
		return l.Head
	}
	v, err := s.tree.SnapshotByName(l, snap)
	if err != nil {
		return 999
	}
	return v.ID
}

func (s *script) snapshot(args []string) string {
	var fs []Freeze
	for _, a := range args {
		name, snap, _ := strings.Cut(a, "@")
		fs = append(fs, Freeze{LUN: s.lun(name).ID, Name: snap})
	}
	return s.apply(s.tree.PlanSnapshot(fs))
}

func (s *script) rollback(args []string) string {
	name, _, _ := strings.Cut(args[0], "@")
	var keep *Freeze
	if k := option(args, "keep"); k != "" {
		keep = &Freeze{LUN: s.lun(name).ID, Name: k}
	}
	return s.apply(s.tree.PlanRollback(s.lun(name).ID, s.version(args[0]), keep, slices.Contains(args, "offline")))
}

func (s *script) clone(from, to string) string {
	l := LUN{Name: to, Parent: from, Size: 1}
	if strings.Contains(from, "@") {
		return s.apply(s.tree.PlanClone(s.version(from), l))
	}
	return s.apply(s.tree.PlanCloneHead(s.lun(from).ID, l))
}

func (s *script) rename(from, to string) string {
	if name, snap, ok := strings.Cut(from, "@"); ok {
		v, err := s.tree.SnapshotByName(s.lun(name), snap)
		if err != nil {
			return s.apply(Change{}, err)
		}
		n := *v
		n.Name = to
		return s.apply(s.tree.PlanUpdateSnapshot(n))
	}
	l := *s.lun(from)
	l.Name = to
	return s.apply(s.tree.PlanUpdate(l))
}

// draw shows a tree: a line for each LUN, then the versions, children below
// their parents; "=" lists the ids that were merged into one.
func draw(t *Tree) string {
	var b strings.Builder
	for _, l := range t.LUNs() {
		var snaps []string
		for _, v := range t.Snapshots(l.ID) {
			snaps = append(snaps, v.Name)
		}
		fmt.Fprintf(&b, "%s: lun %d head %d size %d", l.Name, l.ID, l.Head, l.Size)
		if l.Offline {
			b.WriteString(" offline")
		}
		if len(snaps) > 0 {
			fmt.Fprintf(&b, " snapshots %s", strings.Join(snaps, " "))
		}
		b.WriteByte('\n')
	}
	for _, v := range t.Versions() {
		if v.Parent == 0 && v.State != Alias && v.State != Merging {
			drawVersion(&b, t, v, "  ")
		}
	}
	if b.Len() == 0 {
		return "empty\n"
	}
	return b.String()
}

func drawVersion(b *strings.Builder, t *Tree, v *Version, indent string) {
	name := v.Name
	if name != "" {
		name = " " + name
	}
	fmt.Fprintf(b, "%s%d %s%s lun %d branch %d", indent, v.ID, v.State, name, v.LUN, v.Branch)
	if was := slices.Sorted(slices.Values(t.Forwarded(v.ID))); len(was) > 0 {
		fmt.Fprintf(b, " was %v", was)
	}
	for _, id := range t.Group(v.ID, nil)[1:] {
		sign := "="
		if t.Version(id).State == Merging {
			sign = "<" // still being joined
		}
		fmt.Fprintf(b, " %s%d", sign, id)
	}
	b.WriteByte('\n')
	for _, c := range t.Children(v.ID) {
		drawVersion(b, t, t.Version(c), indent+"  ")
	}
}

// checkTree holds what is true of every tree.
func checkTree(t testing.TB, x *Tree) {
	t.Helper()
	fail := func(format string, args ...any) { t.Helper(); t.Fatalf(format+"\n"+draw(x), args...) }
	children := map[VersionID][]VersionID{}
	onBranch, deleted, merging := map[BranchID]int{}, 0, 0
	for _, v := range x.Versions() {
		onBranch[v.Branch]++
		if v.State == Deleted {
			deleted++
		}
		if v.State == Merging {
			merging++
		}
	}
	if !maps.Equal(onBranch, x.onBranch) || deleted != x.DeletedCount() || merging != x.MergingCount() {
		fail("the sets of branches %v, deleted %v or merging %v do not agree with the versions", x.onBranch, x.deleted, x.merging)
	}
	forwarded := 0
	for into, ids := range x.was {
		for _, id := range ids {
			if forwarded++; x.Version(into) == nil || x.Version(id) != nil || x.Forward(id) != into {
				fail("forgotten id %d goes to %d, which is no version, or is kept twice", id, into)
			}
		}
	}
	if forwarded != len(x.gone) {
		fail("%d forgotten ids, %d of them known by where they went", len(x.gone), forwarded)
	}
	for _, v := range x.Versions() {
		if uint64(v.ID) >= x.Next() {
			fail("version %d is not below next %d", v.ID, x.Next())
		}
		if v.LUN != 0 && x.LUN(v.LUN) == nil {
			fail("version %d is paid by LUN %d, which is gone", v.ID, v.LUN)
		}
		if x.Branch(v.Branch) == nil {
			fail("version %d is on branch %d, which is gone", v.ID, v.Branch)
		}
		if v.State == Alias || v.State == Merging {
			c := x.Version(x.Canonical(v.ID))
			if c == nil || c.ID <= v.ID || c.State == Alias || c.State == Merging {
				fail("version %d went into %d, which is no version", v.ID, v.Into)
			}
			if !slices.Contains(x.Group(c.ID, nil), v.ID) {
				fail("version %d is not in the group of %d", v.ID, c.ID)
			}
			continue
		}
		if v.Parent != 0 {
			up := x.Version(v.Parent)
			if up == nil || up.ID >= v.ID || up.State == Alias || up.State == Merging {
				fail("version %d has parent %d, which is no older version", v.ID, v.Parent)
			}
			children[v.Parent] = append(children[v.Parent], v.ID)
		}
		checkPath(t, x, v)
	}
	for _, v := range x.Versions() {
		if !slices.Equal(children[v.ID], x.Children(v.ID)) {
			fail("children of %d are %v, want %v", v.ID, x.Children(v.ID), children[v.ID])
		}
	}
	for _, l := range x.LUNs() {
		h := x.Version(l.Head)
		if h == nil || h.State != Head || h.LUN != l.ID || h.Size != l.Size || len(x.Children(h.ID)) > 0 {
			fail("head %d of LUN %s is wrong", l.Head, l.Name)
		}
		if got, err := x.LUNByName(l.Name); err != nil || got.ID != l.ID {
			fail("LUN %q is not found by its name", l.Name)
		}
		for _, v := range x.Snapshots(l.ID) {
			if got, err := x.SnapshotByName(l, v.Name); err != nil || got.ID != v.ID || got.State != Snapshot || got.LUN != l.ID {
				fail("snapshot %s@%s is not found by its name", l.Name, v.Name)
			}
		}
	}
}

// descends says whether version id reads through version anc, or is it.
func descends(t *Tree, id, anc VersionID) bool {
	for v := t.Version(id); v != nil; v = t.Version(v.Parent) {
		if v.ID == anc {
			return true
		}
	}
	return false
}

// checkPath holds that the path of a version passes through the groups of its
// ancestors, and through nothing else that any version's blocks are stored under.
func checkPath(t testing.TB, x *Tree, v *Version) {
	t.Helper()
	want := map[VersionID]bool{}
	for a := v; a != nil; a = x.Version(a.Parent) {
		for _, id := range x.Group(a.ID, nil) {
			want[id] = true
		}
		if !descends(x, v.ID, a.ID) {
			t.Fatalf("%d does not descend from its ancestor %d\n%s", v.ID, a.ID, draw(x))
		}
	}
	got := map[VersionID]bool{}
	for _, step := range x.Path(v.ID, nil) {
		for _, o := range x.Versions() {
			if o.Branch == step.Branch && o.ID <= step.Limit {
				got[o.ID] = true
			}
		}
	}
	for id := range want {
		if !got[id] {
			t.Fatalf("path of %d misses %d\n%s", v.ID, id, draw(x))
		}
	}
	for id := range got {
		if !want[id] {
			t.Fatalf("path of %d passes through %d, which is no ancestor\n%s", v.ID, id, draw(x))
		}
	}
}
