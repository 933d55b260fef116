package cow

import (
	"maps"
	"slices"
)

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
// children, or with none that stay, newest first; their blocks are given back. Merges lists joins.
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
	for id := range t.deleted {
		if !skip(id) {
			gone = append(gone, id)
		}
	}
	slices.SortFunc(gone, func(a, b VersionID) int { return int(int64(b) - int64(a)) })
	taken := map[VersionID]bool{}
	for _, id := range gone { // children before their parents
		if !slices.ContainsFunc(t.children[id], func(c VersionID) bool { return !taken[c] }) {
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

// PlanMerge plans the begin of merges: the sources stop being versions of
// their own, and the child takes the place of the oldest one.
func (t *Tree) PlanMerge(ms ...Merge) Change {
	p := t.planner()
	for _, m := range ms {
		into := *t.versions[m.Into]
		into.Parent = t.versions[m.Sources[len(m.Sources)-1]].Parent
		p.put(into)
		p.mark(m.Sources, Mark{State: Merging, Into: m.Into})
	}
	return p.c
}

// Merging returns the versions that are being merged, by the version they go
// into, newest first.
func (t *Tree) Merging() map[VersionID][]VersionID {
	out := map[VersionID][]VersionID{}
	for id := range t.merging {
		into := t.versions[id].Into
		out[into] = append(out[into], id)
	}
	for _, s := range out {
		slices.SortFunc(s, func(a, b VersionID) int { return int(int64(b) - int64(a)) })
	}
	return out
}

// PlanMerged plans the end of merges: what is still stored under the sources'
// ids belongs to the version they went into. Empty ones, under whose ids nothing
// is stored any more, are forgotten, whether they were sources or merged long
// ago: what they stood between in the tree is joined.
func (t *Tree) PlanMerged(sources, empty []VersionID) Change {
	p := t.planner()
	drop := map[VersionID]bool{}
	for _, id := range empty {
		drop[id] = true
	}
	var aliases []VersionID
	for _, id := range sources {
		if !drop[id] {
			aliases = append(aliases, id)
		}
	}
	p.mark(aliases, Mark{State: Alias})
	p.forget(drop)
	return p.c
}

// forget drops versions that were merged and under whose ids nothing is stored.
// Ids merged into them go into what they went into; branches that fork from
// them fork from what is left below.
func (p *planner) forget(drop map[VersionID]bool) {
	if len(drop) == 0 {
		return
	}
	t := p.t
	moved := map[VersionID][]VersionID{} // by what they go into now
	for id := range drop {
		into := id
		for drop[into] {
			into = t.versions[into].Into
		}
		for a := range t.aliases[id] {
			if !drop[a] {
				moved[into] = append(moved[into], a)
			}
		}
		p.c.DropVersions = append(p.c.DropVersions, id)
	}
	p.c.DropVersions = sortedIDs(p.c.DropVersions)
	for _, into := range slices.Sorted(maps.Keys(moved)) {
		p.mark(moved[into], Mark{Into: into})
	}
	var forks []Branch
	for _, b := range t.branches {
		if drop[b.Fork] {
			forks = append(forks, *b)
		}
	}
	slices.SortFunc(forks, func(a, b Branch) int { return int(int64(a.ID) - int64(b.ID)) })
	if len(forks) > 0 {
		left := t.leave(drop)
		for _, b := range forks {
			p.c.Branches = append(p.c.Branches, Branch{ID: b.ID, Fork: left.below(b.Fork)})
		}
	}
	p.dropBranches(drop)
}

// leftover is what is left of the branches that versions are dropped from.
type leftover struct {
	t    *Tree
	drop map[VersionID]bool
	ids  map[BranchID][]VersionID // not dropped, ascending
	fork map[BranchID]VersionID   // what is left below the branch, once it was asked for
}

func (t *Tree) leave(drop map[VersionID]bool) *leftover {
	l := &leftover{t, drop, map[BranchID][]VersionID{}, map[BranchID]VersionID{}}
	for id := range drop {
		l.ids[t.versions[id].Branch] = nil
	}
	for id, v := range t.versions {
		if ids, ok := l.ids[v.Branch]; ok && !drop[id] {
			l.ids[v.Branch] = append(ids, id)
		}
	}
	for _, ids := range l.ids {
		slices.Sort(ids)
	}
	return l
}

// below returns the newest id older than id on its branch, or on the path below
// that branch, that is not dropped; 0 if there is none. Each branch of a chain of
// thousands is passed once, however many fork from it.
func (l *leftover) below(id VersionID) VersionID {
	var passed []BranchID
	for id != 0 && l.drop[id] {
		branch := l.t.versions[id].Branch
		if i, _ := slices.BinarySearch(l.ids[branch], id); i > 0 {
			id = l.ids[branch][i-1]
			break
		}
		if fork, known := l.fork[branch]; known {
			id = fork
			break
		}
		passed = append(passed, branch)
		id = l.t.branches[branch].Fork
	}
	for _, b := range passed {
		l.fork[b] = id
	}
	return id
}

// dropBranches forgets the branches that nothing is on without the dropped.
func (p *planner) dropBranches(drop map[VersionID]bool) {
	gone := map[BranchID]int{}
	for id := range drop {
		gone[p.t.versions[id].Branch]++
	}
	for b, n := range gone {
		if p.t.onBranch[b] == n {
			p.c.DropBranches = append(p.c.DropBranches, b)
		}
	}
	slices.Sort(p.c.DropBranches)
	p.c.Branches = slices.DeleteFunc(p.c.Branches, func(b Branch) bool { return slices.Contains(p.c.DropBranches, b.ID) })
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
	p.c.DropVersions = sortedIDs(p.c.DropVersions)
	p.dropBranches(drop)
	return p.c
}
