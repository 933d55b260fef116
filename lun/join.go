package lun

import (
	"cmp"
	"math"
	"slices"

	"lunar/cow"
)

// join is a merge on its way: the pages of the sources become pages of the
// version that they go into.
type join struct {
	p       *Pool
	into    cow.VersionID
	rewrite bool            // into is paid by another LUN: every page moves to its id
	ids     []cow.VersionID // that records may be stored under, newest first: the order of the path
	lines   []line          // the same by branch
	in      map[cow.VersionID]bool
	heads   []*view // that read through into, in the order in which their pages are locked
}

// line is the ids of a join that lie on one branch.
type line struct {
	branch   cow.BranchID
	from, to cow.VersionID // newest and oldest
}

// unit is one of the versions that a merge joins: the ids its records may be
// stored under. No two of these have a record of the same page.
type unit struct{ ids []cow.VersionID }

// sweepMerge joins the pages of the sources with those of the version that they
// go into. The unit with the longest change list is not walked: a page that only
// it has stays where it is, so that the work follows the shorter lists. All
// others end up under the id of into. It returns the merged ids under which
// nothing is stored any more.
func (p *Pool) sweepMerge(into cow.VersionID, sources []cow.VersionID) (empty []cow.VersionID, err error) {
	j, units := p.join(into, sources)
	nums, err := p.walk(units, j.rewrite)
	if err != nil {
		return nil, err
	}
	err = p.sweepPages(nums, j.begin, func(num uint64) (int64, error) { return j.page(num, into) })
	if err != nil {
		return nil, err
	}
	return j.consolidate()
}

func (p *Pool) join(into cow.VersionID, sources []cow.VersionID) (*join, []unit) {
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	j := &join{p: p, into: into, ids: p.tree.Group(into, nil), in: map[cow.VersionID]bool{}}
	units := []unit{{}}
	ofSource := map[cow.VersionID]bool{}
	for _, s := range sources {
		u := unit{p.tree.Group(s, nil)}
		for _, id := range u.ids {
			ofSource[id] = true
		}
		units = append(units, u)
		j.rewrite = j.rewrite || p.tree.Version(s).LUN != p.tree.Version(into).LUN
	}
	for _, id := range j.ids {
		j.in[id] = true
		if !ofSource[id] {
			units[0].ids = append(units[0].ids, id)
		}
		b := p.tree.Version(id).Branch
		if i := slices.IndexFunc(j.lines, func(l line) bool { return l.branch == b }); i >= 0 {
			j.lines[i].to = id
		} else {
			j.lines = append(j.lines, line{b, id, id})
		}
	}
	return j, units
}

// walk lists, ascending, the pages that the merge must look at: those of all
// units but the longest. Where every page must move, those of all sources.
func (p *Pool) walk(units []unit, rewrite bool) ([]uint64, error) {
	lists := make([][]uint64, len(units))
	if rewrite {
		for i, u := range units[1:] {
			var err error
			if lists[i], _, err = p.pagesOf(u.ids, allPages, math.MaxInt); err != nil {
				return nil, err
			}
		}
		return mergeSorted(lists), nil
	}
	// All are read up to the same length, which grows until only one is longer.
	open := make([]int, len(units))
	for i := range open {
		open[i] = i
	}
	for n := 1024; len(open) > 1; n *= 4 {
		var longer []int
		for _, i := range open {
			nums, whole, err := p.pagesOf(units[i].ids, allPages, n)
			if err != nil {
				return nil, err
			}
			lists[i] = nums
			if !whole {
				longer = append(longer, i)
			}
		}
		open = longer
	}
	longest := 0
	for i := range lists {
		if len(lists[i]) > len(lists[longest]) {
			longest = i
		}
	}
	if len(open) == 1 {
		longest = open[0]
	}
	lists[longest] = nil
	return mergeSorted(lists), nil
}

func mergeSorted(lists [][]uint64) []uint64 {
	out := slices.Concat(lists...)
	slices.Sort(out)
	return slices.Compact(out)
}

// begin finds the heads that read through the version; it is called with adminMu
// held before each batch, since heads come and go between them.
func (j *join) begin() error {
	j.heads = j.p.headsThrough(j.into)
	return nil
}

// lineage says which heads read through the versions that something is merged
// into, or that are hidden. It holds for one state of the tree.
type lineage struct {
	of    uint64 // Pool.treeState
	heads map[cow.VersionID][]*view
}

// headsThrough returns the heads that read through a version with work on it, in
// the order in which their pages are locked. Called with adminMu. A round has
// thousands of merges and few states of the tree, so that all are found at once.
func (p *Pool) headsThrough(id cow.VersionID) []*view {
	if p.lineage.heads == nil || p.lineage.of != p.treeState {
		wanted := map[cow.VersionID]bool{}
		for into := range p.tree.Merging() {
			wanted[into] = true
		}
		for _, d := range p.tree.Deleted() {
			wanted[d] = true
		}
		p.lineage = lineage{p.treeState, map[cow.VersionID][]*view{}}
		for _, v := range p.headViews() {
			for x := p.tree.Version(v.version); x != nil; x = p.tree.Version(x.Parent) {
				if wanted[x.ID] {
					p.lineage.heads[x.ID] = append(p.lineage.heads[x.ID], v)
				}
			}
		}
	}
	return p.lineage.heads[id]
}

// held is one record of a page.
type held struct {
	holder
	rec cow.Record
}

// page brings what the ids have of one page together under dest, or under a
// newer id that has a record of it, and frees what is replaced. It runs with
// adminMu, and with the pages of the heads that read through locked.
func (j *join) page(num uint64, dest cow.VersionID) (freed int64, err error) {
	p := j.p
	pages := p.lockHeads(j.heads, num)
	have, err := j.records(num)
	if err == nil && len(have) > 0 && (len(have) > 1 || have[0].raw < dest) {
		if have[0].raw < dest {
			top := held{holder: holder{dest, p.tree.Version(dest).Branch}}
			have = append([]held{top}, have...)
		}
		freed, err = j.join(have, num)
		renameOwners(pages, have[0].raw, have[1:])
	} else {
		have = nil
	}
	p.unlockHeads(pages)
	if len(have) > 0 {
		p.renameFrozen(num, have[0].raw, have[1:])
	}
	return freed, err
}

// records reads what the ids have of a page, newest first, in one pass over each
// branch.
func (j *join) records(num uint64) (have []held, err error) {
	for _, l := range j.lines {
		it := j.p.records(l.branch, num, l.from)
		for it.next() && it.version >= l.to {
			if !j.in[it.version] {
				continue
			}
			if err := it.record(); err != nil {
				it.close()
				return nil, err
			}
			h := held{holder: holder{it.version, l.branch}, rec: it.rec}
			h.rec.Hints = slices.Clone(it.rec.Hints)
			have = append(have, h)
		}
		if err := it.close(); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(have, func(a, b held) int { return cmp.Compare(b.raw, a.raw) })
	return have, nil
}

// join lays the records over each other, stores the result under the id of the
// first, and books what that frees and moves.
func (j *join) join(have []held, num uint64) (freed int64, err error) {
	p, top := j.p, have[0]
	rec, moved := top.rec, cow.Bits{}
	rec.Full = true
	segs := map[uint64]int64{}
	payer := p.tree.Version(j.into).LUN
	gained, adopted := int64(0), int64(0)
	p.overlay.mu.Lock()
	for i := range have[1:] {
		h := &have[i+1]
		stays := rec.Join(&h.rec)
		n, kept := int64(0), int64(0)
		foreign := j.rewrite && p.tree.Version(h.raw).LUN != payer
		for i := range cow.PageBlocks {
			switch loc := h.rec.Loc[i]; {
			case !h.rec.Set.Has(i) || !cow.Charged(loc):
			case stays.Has(i):
				kept++
				if foreign {
					moved.Add(i)
				}
			default:
				n++
				if cow.Stored(loc) {
					segs[p.space.segment(loc)]--
				}
			}
		}
		freed, gained = freed+n, gained+kept
		p.counter.of(h.raw).add(counts{owned: -n - kept})
		p.overlay.putLocked(pageKey{h.branch, num}, op{h.raw, opDelete, nil})
		p.overlay.countLocked(h.raw, counts{owned: -n - kept})
		if foreign {
			p.uncharge(p.tree.Payer(h.raw), n+kept)
			adopted += kept
		} else {
			p.uncharge(payer, n)
		}
	}
	p.counter.of(top.raw).add(counts{owned: gained})
	p.overlay.putLocked(pageKey{top.branch, num}, op{top.raw, opSet, rec.Append(nil)})
	p.overlay.countLocked(top.raw, counts{owned: gained})
	p.giveBackLocked(segs)
	p.overlay.mu.Unlock()
	if j.rewrite && payer != 0 {
		return freed, p.adopt(j.into, num, moved, adopted)
	}
	return freed, nil
}

// consolidate keeps few ids beside a version: a merged id whose change list is
// not more than twice as long as that of the next newer one goes into that one.
// So the lists at least double from one to the next older one, and each page
// moves a few times in its life. It returns the ids without records.
func (j *join) consolidate() (empty []cow.VersionID, err error) {
	p := j.p
	left := []cow.VersionID{j.into}
	for _, id := range j.ids[1:] {
		some, err := p.stores(id)
		if err != nil {
			return nil, err
		}
		if some {
			left = append(left, id)
		} else {
			empty = append(empty, id)
		}
	}
	// Only the first two can have grown since they were last compared.
	for i := 0; i+1 < len(left) && i < 2; {
		nums, err := p.atMostTwice(left[i+1], left[i])
		if err != nil {
			return nil, err
		}
		if nums == nil {
			i++
			continue
		}
		err = p.sweepPages(nums, j.begin, func(num uint64) (int64, error) { return j.page(num, left[i]) })
		if err != nil {
			return nil, err
		}
		empty = append(empty, left[i+1])
		left = slices.Delete(left, i+1, i+2)
	}
	return empty, nil
}

// atMostTwice returns the change list of a if it is not more than twice as long
// as that of b, else nil. It reads no more of either than that takes.
func (p *Pool) atMostTwice(a, b cow.VersionID) ([]uint64, error) {
	for n := 1024; ; n *= 4 {
		as, whole, err := p.pagesOf([]cow.VersionID{a}, allPages, 2*n)
		if err != nil {
			return nil, err
		}
		bs, wholeB, err := p.pagesOf([]cow.VersionID{b}, allPages, n)
		if err != nil {
			return nil, err
		}
		switch {
		case whole && len(as) <= 2*len(bs):
			return as, nil
		case whole && wholeB, wholeB && len(as) > 2*len(bs):
			return nil, nil
		}
	}
}

// lockHeads locks the page of every head view in which it is resident, and takes
// what it holds unsaved. Loads that begin afterwards wait until unlockHeads: they
// find the merge count odd. Pages that came up in between are locked as well.
func (p *Pool) lockHeads(heads []*view, num uint64) (pages []*page) {
	for {
		for _, v := range heads {
			if pg := v.resident(num); pg != nil {
				pages = append(pages, pg)
			}
		}
		// A page that is being loaded is locked by who loads it, which may want
		// those of other heads: it is waited for with nothing held.
		for _, pg := range pages {
			pg.mu.Lock()
			pg.mu.Unlock() //nolint:staticcheck // waits for the load
		}
		for _, pg := range pages {
			pg.mu.Lock()
			if pg.err == nil {
				p.encode(pg)
			}
		}
		p.merges.Add(1)
		if !cameUp(heads, num, pages) {
			return pages
		}
		p.unlockHeads(pages)
		pages = pages[:0]
	}
}

// cameUp says whether a head has the page in memory without it being locked.
func cameUp(heads []*view, num uint64, locked []*page) bool {
	i := 0
	for _, v := range heads {
		has := i < len(locked) && locked[i].view == v
		if has {
			i++
			continue
		}
		if s := v.slot(num, false); s != nil {
			if pg := s.Load(); pg != nil && pg.pins.Load() >= 0 {
				return true
			}
		}
	}
	return false
}

// unlockHeads lets loads and writers of the page go on.
func (p *Pool) unlockHeads(pages []*page) {
	p.merges.Add(1)
	for _, pg := range pages {
		pg.mu.Unlock()
		pg.unpin()
	}
}

// headViews returns the views of all LUNs' heads in order of LUN, which is the
// order in which pages of several views are locked.
func (p *Pool) headViews() []*view {
	p.viewMu.Lock()
	defer p.viewMu.Unlock()
	out := make([]*view, 0, len(p.heads))
	for _, v := range p.heads {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b *view) int { return cmp.Compare(a.lun, b.lun) })
	return out
}

// renameOwners tells the heads' pages, which the caller has locked, that records
// were joined under one id.
func renameOwners(pages []*page, to cow.VersionID, from []held) {
	for _, pg := range pages {
		if pg.err != nil {
			continue
		}
		for i := range from {
			pg.Rename(from[i].raw, to)
		}
		if pg.Head == to {
			pg.Loaded(true, pg.Applied)
		}
	}
}

// renameFrozen tells the same to the pages of versions that somebody reads. They
// compare owners for a diff only, and an old name is good until it is forgotten
// at the end of the round.
func (p *Pool) renameFrozen(num uint64, to cow.VersionID, from []held) {
	p.viewMu.Lock()
	views := make([]*view, 0, len(p.frozen))
	for _, v := range p.frozen {
		views = append(views, v)
	}
	p.viewMu.Unlock()
	for _, v := range views {
		pg := v.resident(num)
		if pg == nil {
			continue
		}
		pg.mu.Lock()
		if pg.err == nil {
			for i := range from {
				pg.Rename(from[i].raw, to)
			}
		}
		pg.mu.Unlock()
		pg.unpin()
	}
}

// adopt books the blocks of a page that moved to a version of another LUN,
// which pays from now on: to its live data where its head sees them, else to
// its area; and in the counters of what its versions see of their own LUN's.
func (p *Pool) adopt(into cow.VersionID, num uint64, moved cow.Bits, n int64) error {
	lun := p.tree.Version(into).LUN
	head := p.tree.LUN(lun).Head
	seen := map[cow.VersionID]cow.Bits{into: moved}
	p.addLocal(into, popCount(moved), popCount(moved))
	live := int64(0)
	if head == into {
		live = popCount(moved)
	}
	var rec cow.Record
	todo := slices.Clone(p.tree.Children(into))
	for len(todo) > 0 {
		id := todo[0]
		todo = todo[1:]
		v := p.tree.Version(id)
		if v.LUN != lun {
			continue
		}
		bits := seen[v.Parent]
		ok, err := p.groupRecord(id, num, &rec)
		if err != nil {
			return err
		}
		lost := int64(0)
		if ok {
			for w := range bits {
				bits[w] &^= rec.Set[w]
			}
			before := seen[v.Parent]
			lost = popCount(before) - popCount(bits)
		}
		p.addLocal(id, -lost, popCount(bits))
		seen[id] = bits
		if id == head {
			live = popCount(bits)
		}
		todo = append(todo, p.tree.Children(id)...)
	}
	p.ledger.Charge(uint64(lun), live, n-live)
	return nil
}

// addLocal changes a version's counter of blocks of its own LUN, which is
// relative to its parent, and what it sees of them in all.
func (p *Pool) addLocal(id cow.VersionID, n, all int64) {
	c := counts{local: n}
	p.counter.of(id).add(c)
	p.overlay.mu.Lock()
	p.overlay.countLocked(id, c)
	p.overlay.mu.Unlock()
	if sum, ok := p.cum[id]; ok {
		sum.local += all
		p.cum[id] = sum
	}
}
