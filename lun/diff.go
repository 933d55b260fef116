package lun

import (
	"context"
	"slices"

	"lunar/cow"
)

// Diff reports the ranges in which b differs from a, in order; a name "" is the head. Both are of one family: of one LUN, or
// of LUNs that were cloned from each other. Its cost follows what changed between the two.
func (p *Pool) Diff(_ context.Context, a, b SnapshotRef, fn func(DiffRange) error) error {
	va, err := p.OpenVolume(a.LUN, a.Name)
	if err != nil {
		return err
	}
	defer va.Close()
	vb, err := p.OpenVolume(b.LUN, b.Name)
	if err != nil {
		return err
	}
	defer vb.Close()
	if a.LUN != b.LUN && !p.related(va.view, vb.view) {
		return Errorf(ErrRefused, "%s and %s have no version in common: neither was cloned from the other, or what they shared is gone; compare their content instead", a, b)
	}
	var out error
	m := merger{to: max(va.Size(), vb.Size()), fn: func(off, n int64, hole, _ bool) bool {
		kind := "data"
		if hole {
			kind = "hole"
		}
		out = fn(DiffRange{Offset: off, Length: n, Kind: kind})
		return out == nil
	}}
	if err := vb.eachChange(va, 0, m.to, func(off, n int64, hole bool) bool {
		return m.add(off, off+n, hole, hole)
	}); err != nil {
		return err
	}
	m.flush()
	return out
}

// eachChange walks the blocks of [from, to) in which v differs from old.
func (v *Volume) eachChange(old *Volume, from, to int64, fn func(off, n int64, hole bool) bool) error {
	const pageBytes = cow.PageBlocks * blockSize
	nums, err := v.pool.between(v.view, old.view, pageRange{uint64(from / pageBytes), uint64((to-1)/pageBytes) + 1})
	if err != nil {
		return err
	}
	// What one of them has beyond the end of the other has no change list.
	lo, hi := max(min(v.Size(), old.Size()), from), min(max(v.Size(), old.Size()), to)
	if lo < hi {
		for num := uint64(lo / pageBytes); num <= uint64((hi-1)/pageBytes); num++ {
			nums = append(nums, num)
		}
		slices.Sort(nums)
		nums = slices.Compact(nums)
	}
	for _, num := range nums {
		more, err := v.pageChanges(old, num, fn)
		if err != nil || !more {
			return err
		}
	}
	return nil
}

func (v *Volume) pageChanges(old *Volume, num uint64, fn func(off, n int64, hole bool) bool) (more bool, err error) {
	a, err := old.owners(num)
	if err != nil {
		return false, err
	}
	b, err := v.owners(num)
	if err != nil {
		return false, err
	}
	oldEnd, newEnd := (old.Size()+blockSize-1)/blockSize, (v.Size()+blockSize-1)/blockSize
	for i := range cow.PageBlocks {
		block := int64(num*cow.PageBlocks + uint64(i))
		same := a[i] == b[i] || a[i].Loc == b[i].Loc && !cow.Stored(a[i].Loc)
		if block >= min(oldEnd, newEnd) {
			same = block >= max(oldEnd, newEnd)
		}
		if !same && !fn(block*blockSize, blockSize, !cow.Stored(b[i].Loc)) {
			return false, nil
		}
	}
	return true, nil
}

// owners copies the entries of a page with the owners resolved through merges,
// and without the location of stored blocks, which the cleaner may change: the
// owner says which block it is.
func (v *Volume) owners(num uint64) (out [cow.PageBlocks]cow.Entry, err error) {
	pg, err := v.view.get(num)
	if err != nil {
		return out, err
	}
	defer pg.unpin()
	if err := pg.lock(); err != nil {
		return out, err
	}
	defer pg.mu.Unlock()
	if v.view.dead.Load() {
		return out, errGone
	}
	v.pool.treeMu.RLock()
	defer v.pool.treeMu.RUnlock()
	for i := range out {
		e := pg.At(i)
		e.Owner = v.pool.tree.Canonical(e.Owner)
		if cow.Stored(e.Loc) {
			e.Loc = 1
		}
		out[i] = e
	}
	return out, nil
}

// takePaths encodes what the views on the paths of some versions hold unsaved. A
// client may ask for differences all the time: other families, whose pages would
// be encoded over and over, are left alone, and so is the checkpoint where there
// is nothing to encode.
func (p *Pool) takePaths(views ...*view) {
	branches := map[cow.BranchID]bool{}
	p.treeMu.RLock()
	for _, w := range views {
		for v := p.tree.Version(w.version); v != nil; v = p.tree.Version(v.Parent) {
			branches[v.Branch] = true
			for _, id := range p.tree.Group(v.ID, nil) { // merged ones may be of other branches
				branches[p.tree.Version(id).Branch] = true
			}
		}
	}
	p.treeMu.RUnlock()
	list := slices.DeleteFunc(p.allViews(), func(v *view) bool {
		v.dirtyMu.Lock()
		defer v.dirtyMu.Unlock()
		return !branches[v.branch] || len(v.dirty) == 0
	})
	if len(list) == 0 {
		return
	}
	p.ckptMu.Lock()
	defer p.ckptMu.Unlock()
	for _, v := range list {
		p.takeDirty(v)
	}
}

// related says whether two versions go back to the same one.
func (p *Pool) related(a, b *view) bool {
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	la, lb := p.lineOf(a.version), p.lineOf(b.version)
	return la[len(la)-1] == lb[len(lb)-1]
}

// lineOf lists a version and all that it goes back to, the first one last. Called with treeMu.
func (p *Pool) lineOf(id cow.VersionID) (out []cow.VersionID) {
	for v := p.tree.Version(id); v != nil; v = p.tree.Version(v.Parent) {
		out = append(out, v.ID)
	}
	return out
}

// between lists the pages that the versions between two of one family changed:
// those on both paths up to the newest version that both read through.
func (p *Pool) between(a, b *view, r pageRange) ([]uint64, error) {
	p.takePaths(a, b)
	p.treeMu.RLock()
	pa, pb := p.lineOf(a.version), p.lineOf(b.version)
	p.treeMu.RUnlock()
	for len(pa) > 0 && len(pb) > 0 && pa[len(pa)-1] == pb[len(pb)-1] {
		pa, pb = pa[:len(pa)-1], pb[:len(pb)-1]
	}
	var nums []uint64
	for _, id := range append(pa, pb...) {
		n, err := p.groupChangesIn(id, r)
		if err != nil {
			return nil, err
		}
		nums = append(nums, n...)
	}
	slices.Sort(nums)
	return slices.Compact(nums), nil
}
