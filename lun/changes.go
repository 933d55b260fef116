package lun

import (
	"math"
	"slices"

	"lunar/cow"
)

// allPages is the range of every page.
var allPages = pageRange{0, math.MaxUint64}

// pageRange are the pages from one to before another.
type pageRange struct{ from, to uint64 }

func (r pageRange) has(num uint64) bool { return num >= r.from && num < r.to }

// changes lists, ascending, the pages of which something is stored under an id,
// and some of which nothing is stored any more. What the head view of the branch
// holds unsaved must have been taken.
func (p *Pool) changes(id cow.VersionID) ([]uint64, error) {
	nums, _, err := p.pagesOf([]cow.VersionID{id}, allPages, math.MaxInt)
	return nums, err
}

// pagesOf is changes for several ids and a range of pages that reads little more
// than most pages of each; whole says that it has them all.
func (p *Pool) pagesOf(ids []cow.VersionID, r pageRange, most int) (nums []uint64, whole bool, err error) {
	whole = true
	for _, id := range ids {
		b, ok := p.branchOf(id)
		if !ok {
			continue
		}
		for _, num := range p.overlay.touchedBy(id) {
			if r.has(num) {
				nums = append(nums, num)
			}
		}
		n := 0
		err := p.index.Changes(uint64(b), uint64(id), r.from, func(num uint64) bool {
			if num >= r.to {
				return false
			}
			if n++; n > most {
				whole = false
				return false
			}
			nums = append(nums, num)
			return true
		})
		if err != nil {
			return nil, false, Errorf(ErrCorrupt, "reading the change list of version %d: %w", id, err)
		}
	}
	slices.Sort(nums)
	nums = slices.Compact(nums)
	return nums, whole && len(nums) <= most, nil
}

// stores says whether anything is stored under an id.
func (p *Pool) stores(id cow.VersionID) (some bool, err error) {
	b, ok := p.branchOf(id)
	if !ok {
		return false, nil
	}
	look := func(num uint64) bool {
		some, err = p.hasRecord(b, num, id)
		return !some && err == nil
	}
	for _, num := range p.overlay.touchedBy(id) {
		if !look(num) {
			return some, err
		}
	}
	if e := p.index.Changes(uint64(b), uint64(id), 0, look); e != nil {
		return false, Errorf(ErrCorrupt, "reading the change list of version %d: %w", id, e)
	}
	return some, err
}

// hasRecord says whether something is stored under an id of one page. What was
// joined away a moment ago, which is most of what is asked for, is known without
// the index.
func (p *Pool) hasRecord(b cow.BranchID, num uint64, id cow.VersionID) (bool, error) {
	for _, o := range slices.Backward(p.overlay.get(pageKey{b, num})) {
		if o.version == id {
			return o.kind != opDelete, nil
		}
	}
	var r cow.Record
	return p.ownRecord(b, num, id, &r)
}

func (p *Pool) branchOf(id cow.VersionID) (cow.BranchID, bool) {
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	if v := p.tree.Version(id); v != nil {
		return v.Branch, true
	}
	return 0, false
}

// groupChanges is changes for everything merged into a version.
func (p *Pool) groupChanges(id cow.VersionID) ([]uint64, error) {
	return p.groupChangesIn(id, allPages)
}

func (p *Pool) groupChangesIn(id cow.VersionID, r pageRange) ([]uint64, error) {
	p.treeMu.RLock()
	group := p.tree.Group(id, nil)
	p.treeMu.RUnlock()
	nums, _, err := p.pagesOf(group, r, math.MaxInt)
	return nums, err
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
