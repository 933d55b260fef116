package cow

import (
	"fmt"
	"testing"
)

// A LUN that was rolled back thousands of times, each time to a snapshot of the
// branch before: when all of them are deleted and merged away its head stands alone.
// Looked up one by one, what their branches fork from would take minutes.
func TestForgetNestedRollbacks(t *testing.T) {
	tree := NewTree(1)
	do := func(c Change, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		tree.Apply(c)
	}
	do(tree.PlanCreate(LUN{Name: "a", Size: 1 << 30}))
	l, err := tree.LUNByName("a")
	if err != nil {
		t.Fatal(err)
	}
	id := l.ID
	var ids []VersionID
	for range 3000 {
		was := tree.LUN(id).Head
		do(tree.PlanSnapshot([]Freeze{{LUN: id, Name: fmt.Sprint(len(ids))}}))
		ids = append(ids, was)
		do(tree.PlanRollback(id, was, nil, false))
	}
	if n := len(tree.Path(tree.LUN(id).Head, nil)); n != 3001 {
		t.Fatalf("the path has %d branches", n)
	}
	do(tree.PlanDelete(ids))
	for range 10 {
		r := tree.PlanReclaim(func(VersionID) bool { return false })
		if r.Empty() {
			break
		}
		if len(r.Free) > 0 {
			tree.Apply(tree.PlanFreed(r.Free))
		}
		for _, m := range r.Merges {
			tree.Apply(tree.PlanMerge(m))
			tree.Apply(tree.PlanMerged(m.Sources, m.Sources))
		}
	}
	head := tree.LUN(id).Head
	if n := len(tree.Versions()); n != 1 || len(tree.Path(head, nil)) != 1 || tree.Version(head).Parent != 0 {
		t.Errorf("%d versions are left, the head's path has %d branches", n, len(tree.Path(head, nil)))
	}
}
