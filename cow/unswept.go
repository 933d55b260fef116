package cow

import (
	"slices"
)

// Unswept returns what a change means for pages that are as they were before the
// merges and frees of which it is the end: a copy of the index that is older than
// those. What was merged goes on being merged, what was freed or forgotten stays,
// and branches fork from where they did. Reads are right in that state, and the
// merger does its work again.
func (t *Tree) Unswept(c Change) Change {
	c.Marks = slices.Clone(c.Marks)
	for i := range c.Marks {
		if c.Marks[i].State == Alias {
			c.Marks[i].State = "" // it is merging, or was merged in the copy already
		}
	}
	c.Branches = slices.DeleteFunc(slices.Clone(c.Branches), func(b Branch) bool { return t.branches[b.ID] != nil })
	c.DropVersions, c.DropBranches = nil, nil
	return c
}

// PlanFlatten plans that everything that is being merged goes straight into the
// version that has it in the end, as if the merges between had not been begun.
func (t *Tree) PlanFlatten() Change {
	p := t.planner()
	to := map[VersionID][]VersionID{}
	for id := range t.merging {
		if into := t.Canonical(id); into != t.versions[id].Into {
			to[into] = append(to[into], id)
		}
	}
	for into, ids := range to {
		slices.Sort(ids)
		p.mark(ids, Mark{Into: into})
	}
	return p.c
}
