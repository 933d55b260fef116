package cow

import "slices"

// Merge is one job of the merger: the deleted versions Sources (newest first, a
// chain of only children) are joined with their only live child Into. Rewrite
// says that Into is paid by another LUN: then every page is moved to Into,
// since a page tells by the id it is stored under who pays for its blocks.
type Merge struct {
	Into    VersionID
	Sources []VersionID
	Rewrite bool
}

// Reclaim is what the merger can do now. Free lists deleted versions without
// children, newest first; their blocks are given back. Merges lists joins.
type Reclaim struct {
	Free   []VersionID
	Merges []Merge
}

// Empty says that nothing is to be done.
func (r Reclaim) Empty() bool { return len(r.Free) == 0 && len(r.Merges) == 0 }

// PlanReclaim looks at every deleted version: without a child it can be freed;
// with one it joins that child; with more it stays hidden until one is left.
// Versions for which skip is true (they are in use, or not yet covered by a
// checkpoint) are passed over.
func (t *Tree) PlanReclaim(skip func(VersionID) bool) Reclaim {
	var r Reclaim
	var gone []VersionID
	for id, v := range t.versions {
		if v.State == Deleted && !skip(id) {
			gone = append(gone, id)
		}
	}
	slices.SortFunc(gone, func(a, b VersionID) int { return int(int64(b) - int64(a)) })
	taken := map[VersionID]bool{}
	for _, id := range gone {
		if len(t.children[id]) == 0 {
			r.Free = append(r.Free, id)
			taken[id] = true
		}
	}
	// Newest first: a chain is found from its lower end, and longer ones are
	// taken whole.
	for _, id := range gone {
		if taken[id] || len(t.children[id]) != 1 {
			continue
		}
		into := t.versions[t.children[id][0]]
		if into.State == Deleted && len(t.children[into.ID]) < 2 {
			continue // it goes itself: freed first, or taken with the chain that ends below it
		}
		m := Merge{Into: into.ID, Rewrite: t.versions[id].LUN != into.LUN}
		for v := t.versions[id]; v != nil && v.State == Deleted && !skip(v.ID) && len(t.children[v.ID]) == 1; v = t.versions[v.Parent] {
			if (v.LUN != into.LUN) != m.Rewrite {
				break // the next round takes the rest
			}
			m.Sources = append(m.Sources, v.ID)
			taken[v.ID] = true
		}
		r.Merges = append(r.Merges, m)
	}
	return r
}

// PlanMerge plans the begin of a merge: the sources stop being versions of
// their own, and the child takes the place of the oldest one.
func (t *Tree) PlanMerge(m Merge) Change {
	p := t.planner()
	into := *t.versions[m.Into]
	for _, id := range m.Sources {
		v := *t.versions[id]
		into.Parent = v.Parent
		v.State, v.Into = Merging, m.Into
		p.put(v)
	}
	p.put(into)
	return p.c
}

// Merging returns the versions that are being merged, by the version they go
// into, newest first.
func (t *Tree) Merging() map[VersionID][]VersionID {
	out := map[VersionID][]VersionID{}
	for id, v := range t.versions {
		if v.State == Merging {
			out[v.Into] = append(out[v.Into], id)
		}
	}
	for _, s := range out {
		slices.SortFunc(s, func(a, b VersionID) int { return int(int64(b) - int64(a)) })
	}
	return out
}

// PlanMerged plans the end of a merge: what is still stored under the sources'
// ids belongs to the version they went into.
func (t *Tree) PlanMerged(sources []VersionID) Change {
	p := t.planner()
	for _, id := range sources {
		v := *t.versions[id]
		v.State = Alias
		p.put(v)
	}
	return p.c
}

// PlanFreed plans that versions without children, whose blocks were given back,
// are forgotten with everything merged into them, and their branches with them
// if nothing else is on these.
func (t *Tree) PlanFreed(ids []VersionID) Change {
	p := t.planner()
	drop := map[VersionID]bool{}
	for _, id := range ids {
		for _, g := range t.Group(id, nil) {
			drop[g] = true
			p.c.DropVersions = append(p.c.DropVersions, g)
		}
	}
	used := map[BranchID]bool{}
	for id, v := range t.versions {
		if !drop[id] {
			used[v.Branch] = true
		}
	}
	for id := range t.branches {
		if !used[id] {
			p.c.DropBranches = append(p.c.DropBranches, id)
		}
	}
	slices.Sort(p.c.DropBranches)
	return p.c
}
