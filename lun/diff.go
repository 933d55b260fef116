package lun

import (
	"context"
	"math"
	"slices"

	"lunar/cow"
)

// allPages is the range of every page.
var allPages = pageRange{0, math.MaxUint64}

// pageRange are the pages from one to before another.
type pageRange struct{ from, to uint64 }

func (r pageRange) has(num uint64) bool { return num >= r.from && num < r.to }

// changes lists, ascending, the pages of which something is stored under an id.
// What the head view of the branch holds unsaved must have been taken.
func (p *Pool) changes(id cow.VersionID) ([]uint64, error) { return p.changesIn(id, allPages) }

func (p *Pool) changesIn(id cow.VersionID, r pageRange) ([]uint64, error) {
	p.treeMu.RLock()
	v := p.tree.Version(id)
	p.treeMu.RUnlock()
	if v == nil {
		return nil, nil
	}
	nums := slices.DeleteFunc(p.overlay.touchedBy(v.Branch, id), func(num uint64) bool { return !r.has(num) })
	err := p.index.Changes(uint64(v.Branch), uint64(id), r.from, func(num uint64) bool {
		if r.has(num) {
			nums = append(nums, num)
		}
		return num < r.to
	})
	if err != nil {
		return nil, Errorf(ErrCorrupt, "reading the change list of version %d: %w", id, err)
	}
	slices.Sort(nums)
	return slices.Compact(nums), nil
}

// groupChanges is changes for everything merged into a version.
func (p *Pool) groupChanges(id cow.VersionID) ([]uint64, error) {
	return p.groupChangesIn(id, allPages)
}

func (p *Pool) groupChangesIn(id cow.VersionID, r pageRange) ([]uint64, error) {
	p.treeMu.RLock()
	group := p.tree.Group(id, nil)
	p.treeMu.RUnlock()
	var out []uint64
	for _, g := range group {
		nums, err := p.changesIn(g, r)
		if err != nil {
			return nil, err
		}
		out = append(out, nums...)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// groupRecord reads what a canonical version has of one page under all its ids,
// newest over oldest.
func (p *Pool) groupRecord(id cow.VersionID, num uint64, r *cow.Record) (ok bool, err error) {
	p.treeMu.RLock()
	group := p.tree.Group(id, nil)
	branches := make([]cow.BranchID, len(group))
	for i, g := range group {
		branches[i] = p.tree.Version(g).Branch
	}
	p.treeMu.RUnlock()
	*r = cow.Record{}
	var one cow.Record
	for i := len(group) - 1; i >= 0; i-- { // oldest first, so that newer ones are laid over
		has, err := p.ownRecord(branches[i], num, group[i], &one)
		if err != nil {
			return false, err
		}
		if has {
			one.Full = false
			one.Over(r)
			ok = true
		}
	}
	return ok, nil
}

// takeAll encodes what all head views hold unsaved, so that records say it all.
func (p *Pool) takeAll() {
	p.ckptMu.Lock()
	defer p.ckptMu.Unlock()
	for _, v := range p.allViews() {
		p.takeDirty(v)
	}
}

// Diff reports the ranges in which snapshot b, or the head for "", differs from
// snapshot a, in order. Its cost follows what changed between the two.
func (p *Pool) Diff(_ context.Context, lun, a, b string, fn func(DiffRange) error) error {
	va, err := p.OpenVolume(lun, a)
	if err != nil {
		return err
	}
	defer va.Close()
	vb, err := p.OpenVolume(lun, b)
	if err != nil {
		return err
	}
	defer vb.Close()
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

// between lists the pages that the versions between two of one family changed:
// those on both paths up to the newest version that both read through.
func (p *Pool) between(a, b *view, r pageRange) ([]uint64, error) {
	p.takeAll()
	p.treeMu.RLock()
	up := func(id cow.VersionID) (out []cow.VersionID) {
		for v := p.tree.Version(id); v != nil; v = p.tree.Version(v.Parent) {
			out = append(out, v.ID)
		}
		return out
	}
	pa, pb := up(a.version), up(b.version)
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

// unique returns how many blocks deleting one snapshot would free. Called with
// adminMu. The result for a version between frozen ones is remembered until the
// next merge.
func (p *Pool) unique(s *cow.Version) (int64, error) {
	kids := p.tree.Children(s.ID)
	stable := len(kids) == 1 && p.tree.Version(kids[0]).State == cow.Snapshot
	if u, ok := p.uniques[s.ID]; ok && stable && u.child == kids[0] {
		return u.n, nil
	}
	n, err := p.wouldFree([]cow.VersionID{s.ID})
	if err == nil && stable {
		p.uniques[s.ID] = uniqueOf{kids[0], n}
	}
	return n, err
}

type uniqueOf struct {
	child cow.VersionID
	n     int64
}

// wouldFree returns how many blocks deleting these versions would free, beyond
// what is already on its way. Called with adminMu.
func (p *Pool) wouldFree(ids []cow.VersionID) (int64, error) {
	p.takeAll()
	gone := map[cow.VersionID]bool{}
	for _, v := range p.tree.Versions() {
		if v.State == cow.Deleted {
			gone[v.ID] = true
		}
	}
	before, err := p.freed(gone)
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		gone[id] = true
	}
	after, err := p.freed(gone)
	return after - before, err
}

// freed counts the blocks that nobody needs when the versions of gone are freed
// and merged as far as the tree allows: one without a live child gives back all
// it has, one with a single child what that child replaced, one with more stays.
func (p *Pool) freed(gone map[cow.VersionID]bool) (int64, error) {
	kids := map[cow.VersionID][]cow.VersionID{} // what is left of the children, through gone ones
	var order []cow.VersionID
	for id := range gone {
		order = append(order, id)
	}
	slices.SortFunc(order, func(a, b cow.VersionID) int { return int(int64(b) - int64(a)) })
	var total int64
	chain := map[cow.VersionID][]cow.VersionID{} // gone versions between one and its only child, nearest the child first
	for _, id := range order {
		for _, c := range p.tree.Children(id) {
			switch {
			case !gone[c]:
				kids[id] = append(kids[id], c)
			case len(kids[c]) > 1:
				kids[id] = append(kids[id], c)
			case len(kids[c]) == 1:
				kids[id] = append(kids[id], kids[c]...)
				chain[id] = append([]cow.VersionID{c}, chain[c]...)
			}
		}
		switch len(kids[id]) {
		case 0:
			for _, g := range p.tree.Group(id, nil) {
				total += p.counter.of(g).owned.Load()
			}
		case 1:
			n, err := p.replaced(id, append(slices.Clone(chain[id]), kids[id][0]))
			if err != nil {
				return 0, err
			}
			total += n
		}
	}
	return total, nil
}

// replaced counts the blocks of a version that a chain of versions below it
// replaced. It walks the shorter of the change lists.
func (p *Pool) replaced(id cow.VersionID, below []cow.VersionID) (int64, error) {
	nums, err := p.groupChanges(id)
	if len(below) == 1 && p.sumOf(below[0]).owned < p.sumOf(id).owned {
		nums, err = p.groupChanges(below[0])
	}
	if err != nil {
		return 0, err
	}
	var n int64
	var own, over cow.Record
	for _, num := range nums {
		ok, err := p.groupRecord(id, num, &own)
		if err != nil {
			return 0, err
		}
		if !ok {
			continue
		}
		for i := range cow.PageBlocks {
			if own.Set.Has(i) && own.Loc[i] == 0 {
				own.Set.Remove(i)
			}
		}
		for _, b := range below {
			if ok, err := p.groupRecord(b, num, &over); err != nil {
				return 0, err
			} else if !ok {
				continue
			}
			for i := range cow.PageBlocks {
				if own.Set.Has(i) && over.Set.Has(i) {
					own.Set.Remove(i)
					n++
				}
			}
		}
	}
	return n, nil
}
