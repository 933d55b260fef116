package lun

import (
	"slices"

	"lunar/cow"
)

// unique returns how many blocks deleting one snapshot would free now: none while
// two or more versions were made from it. On a chain that is arithmetic; no
// page is looked at. Called with adminMu, with what the heads hold unsaved taken.
func (p *Pool) unique(s *cow.Version) (int64, error) {
	if len(p.tree.Children(s.ID)) > 1 {
		return 0, nil
	}
	return p.wouldFree([]cow.VersionID{s.ID})
}

// wouldFree returns how many blocks deleting these versions would free, beyond
// what is already on its way. Called with adminMu, with what the heads hold
// unsaved taken.
func (p *Pool) wouldFree(ids []cow.VersionID) (int64, error) {
	gone := make(map[cow.VersionID]bool, len(ids))
	for _, id := range ids {
		gone[id] = true
	}
	before := release{p: p, gone: func(id cow.VersionID) bool { return p.tree.Version(id).State == cow.Deleted }}
	after := release{p: p, gone: func(id cow.VersionID) bool { return gone[id] || before.gone(id) }}
	concerned := p.concerned(ids, after.gone)
	total, err := after.freedAll(concerned)
	if err != nil {
		return 0, err
	}
	coming, err := before.freedAll(slices.DeleteFunc(concerned, func(id cow.VersionID) bool { return !before.gone(id) }))
	return total - coming, err
}

// concerned lists the versions whose blocks may be freed with ids: these, and
// the gone ones above them that something else is needed for no more.
func (p *Pool) concerned(ids []cow.VersionID, gone func(cow.VersionID) bool) []cow.VersionID {
	seen := map[cow.VersionID]bool{}
	for _, id := range ids {
		for v := p.tree.Version(id); v != nil && !seen[v.ID] && gone(v.ID); v = p.tree.Version(v.Parent) {
			seen[v.ID] = true
		}
	}
	out := make([]cow.VersionID, 0, len(seen))
	for id := range seen {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// release foresees what comes back when versions are gone.
type release struct {
	p    *Pool
	gone func(cow.VersionID) bool
	kids map[cow.VersionID]kin
}

// kin is what is below a version that is gone: the versions that are left, up to
// two of them, and the only line of gone ones between it and the single one left.
type kin struct {
	left int // 0, 1, 2 for more
	next cow.VersionID
}

// below says what is left under a version. Lines of thousands are walked without
// recursion: from the newest up.
func (r *release) below(id cow.VersionID) kin {
	if r.kids == nil {
		r.kids = map[cow.VersionID]kin{}
	}
	var line []cow.VersionID
	for v := id; ; {
		if _, known := r.kids[v]; known {
			break
		}
		line = append(line, v)
		c := r.p.tree.Children(v)
		if len(c) != 1 || !r.gone(c[0]) {
			break
		}
		v = c[0]
	}
	for _, v := range slices.Backward(line) {
		k := kin{}
		for _, c := range r.p.tree.Children(v) {
			n := 1
			if r.gone(c) {
				n = r.below(c).left
			}
			if n > 0 {
				k.next = c
			}
			k.left = min(k.left+n, 2)
		}
		r.kids[v] = k
	}
	return r.kids[id]
}

// freedAll is freed for many versions, ascending. What lies on one line is summed
// up in one walk: each of the line looks at what it replaced itself.
func (r *release) freedAll(ids []cow.VersionID) (total int64, err error) {
	on := map[cow.VersionID]bool{}
	end := map[cow.VersionID]cow.VersionID{} // of a version on a line → the one left below it
	for _, id := range slices.Backward(ids) {
		if r.below(id).left == 1 {
			on[id] = true
			r.followLine(id, end)
			continue
		}
		n, err := r.freed(id)
		if err != nil {
			return 0, err
		}
		total += n
	}
	t := r.p.tree
	var group []cow.VersionID
	r.p.overlay.mu.RLock()
	defer r.p.overlay.mu.RUnlock()
	for above, left := range end {
		next := r.below(above).next
		group = t.Group(next, group[:0])
		for _, x := range group {
			for _, pair := range r.p.overlay.replaced[x] {
				if o := t.Canonical(pair.owner); o != next && on[o] && end[o] == left {
					total += pair.n
				}
			}
		}
	}
	return total, nil
}

// followLine notes for a version and all gone ones below it which one is left.
func (r *release) followLine(id cow.VersionID, end map[cow.VersionID]cow.VersionID) {
	var line []cow.VersionID
	for r.gone(id) {
		if left, known := end[id]; known {
			id = left
			break
		}
		line = append(line, id)
		id = r.below(id).next
	}
	for _, v := range line {
		end[v] = id
	}
}

// freed counts the blocks of a gone version that is on no line (freedAll) and that
// nobody needs any more: all, if nothing is left below; else what was replaced on
// the way to each of several.
func (r *release) freed(id cow.VersionID) (n int64, err error) {
	if r.below(id).left == 0 {
		for _, g := range r.p.tree.Group(id, nil) {
			n += r.p.counter.of(g).owned.Load()
		}
		return n, nil
	}
	if r.bound(id) == 0 {
		return 0, nil
	}
	nums, err := r.suspects(id)
	for _, num := range nums {
		bits, err := r.dead(id, num)
		if err != nil {
			return 0, err
		}
		n += popCount(bits)
	}
	return n, err
}

// bound is an upper bound of the blocks of a version that are replaced on every
// line below: the least that one of its children can have replaced.
func (r *release) bound(id cow.VersionID) int64 {
	r.p.overlay.mu.RLock()
	defer r.p.overlay.mu.RUnlock()
	return r.boundLocked(id, r.p.tree.Group(id, nil))
}

func (r *release) boundLocked(id cow.VersionID, owners []cow.VersionID) int64 {
	least := int64(-1)
	for _, c := range r.p.tree.Children(id) {
		n := r.p.overlay.replaced.between(r.p.tree.Group(c, nil), owners)
		if r.gone(c) {
			if r.below(c).left == 0 {
				continue
			}
			n += r.boundLocked(c, owners)
		}
		if least < 0 || n < least {
			least = n
		}
		if least == 0 {
			break
		}
	}
	return max(least, 0)
}

// suspects lists the pages in which blocks of a version may be replaced on every
// line: those that its child with the least has records of.
func (r *release) suspects(id cow.VersionID) ([]uint64, error) {
	var best []uint64
	found := false
	for _, c := range r.p.tree.Children(id) {
		if r.gone(c) && r.below(c).left == 0 {
			continue
		}
		nums, err := r.p.groupChanges(c)
		if err == nil && r.gone(c) {
			var more []uint64
			more, err = r.suspects(c)
			nums = mergeSorted([][]uint64{nums, more})
		}
		if err != nil {
			return nil, err
		}
		if !found || len(nums) < len(best) {
			best, found = nums, true
		}
	}
	return best, nil
}

// dead returns the charged blocks of one page of a version that are replaced on
// every line below it.
func (r *release) dead(id cow.VersionID, num uint64) (cow.Bits, error) {
	var own cow.Record
	ok, err := r.p.groupRecord(id, num, &own)
	if err != nil || !ok {
		return cow.Bits{}, err
	}
	var bits cow.Bits
	for i := range cow.PageBlocks {
		if own.Set.Has(i) && cow.Charged(own.Loc[i]) {
			bits.Add(i)
		}
	}
	cover, err := r.cover(id, num)
	for w := range bits {
		bits[w] &= cover[w]
	}
	return bits, err
}

// cover returns the blocks of a page that every line below a version replaced.
func (r *release) cover(id cow.VersionID, num uint64) (all cow.Bits, err error) {
	for w := range all {
		all[w] = ^uint64(0)
	}
	var rec cow.Record
	for _, c := range r.p.tree.Children(id) {
		if r.gone(c) && r.below(c).left == 0 {
			continue
		}
		if _, err := r.p.groupRecord(c, num, &rec); err != nil {
			return all, err
		}
		bits := rec.Set
		if r.gone(c) {
			more, err := r.cover(c, num)
			if err != nil {
				return all, err
			}
			for w := range bits {
				bits[w] |= more[w]
			}
		}
		for w := range all {
			all[w] &= bits[w]
		}
		if all.Empty() {
			return all, nil
		}
	}
	return all, nil
}
