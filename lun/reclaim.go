package lun

import (
	"context"
	"fmt"
	"slices"
	"time"

	"lunar/cow"
)

// sweepBatch is how many pages are merged or freed between two looks at whether
// somebody waits for a structural operation.
const sweepBatch = 64

// Reclaim gives back what deleted versions own: those without children are
// freed, those with one are merged with it. It returns when nothing is left
// that can be given back now.
//
// A round is: publish the merges in the log; checkpoint, so that replay never
// meets a version whose pages have been joined; sweep the pages; checkpoint, so
// that the result is durable; publish the end. A crash anywhere leaves a state
// from which the next round goes on.
func (p *Pool) Reclaim() error {
	p.reclaimMu.Lock()
	defer p.reclaimMu.Unlock()
	for {
		did, err := p.reclaimRound()
		if err != nil || !did {
			return err
		}
	}
}

// WaitReclaim is Reclaim for somebody who waits for the space.
func (p *Pool) WaitReclaim(context.Context) error { return p.Reclaim() }

// reclaimPending says whether Reclaim would find something to do.
func (p *Pool) reclaimPending() bool {
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	return len(p.tree.Merging()) > 0 || !p.tree.PlanReclaim(func(cow.VersionID) bool { return false }).Empty()
}

func (p *Pool) reclaimRound() (did bool, err error) {
	if err := p.writable(); err != nil {
		return false, err
	}
	free, err := p.publishReclaim()
	if err != nil {
		return false, err
	}
	p.treeMu.RLock()
	merging := p.tree.Merging()
	p.treeMu.RUnlock()
	if len(free) == 0 && len(merging) == 0 {
		return false, nil
	}
	if err := p.Checkpoint(); err != nil {
		return false, err
	}
	p.mergeNew.Store(false)
	began, freed := time.Now(), int64(0)
	for into, sources := range merging {
		n, err := p.sweepMerge(into, sources)
		if err != nil {
			return false, err
		}
		freed += n
	}
	for _, id := range free {
		n, err := p.sweepFree(id)
		if err != nil {
			return false, err
		}
		freed += n
	}
	if err := p.Checkpoint(); err != nil {
		return false, err
	}
	if err := p.finishReclaim(merging, free); err != nil {
		return false, err
	}
	p.event("reclaim", "", fmt.Sprintf("%s given back by %d merged and %d freed versions in %s",
		human(freed*blockSize), len(merging), len(free), time.Since(began).Round(time.Millisecond)))
	p.spaceBack.wake()
	return true, nil
}

// publishReclaim plans a round and commits the merges; it returns what to free.
func (p *Pool) publishReclaim() ([]cow.VersionID, error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	targets := p.tree.Merging()
	plan := p.tree.PlanReclaim(func(id cow.VersionID) bool {
		_, target := targets[id]
		return target || p.opened(id)
	})
	clear(p.uniques)
	for _, m := range plan.Merges {
		if _, busy := targets[m.Into]; busy {
			continue
		}
		if err := p.commit(p.tree.PlanMerge(m), func() { p.mergeNew.Store(true) }); err != nil {
			return nil, err
		}
	}
	return plan.Free, nil
}

// finishReclaim commits the end of the merges and forgets what was freed.
func (p *Pool) finishReclaim(merging map[cow.VersionID][]cow.VersionID, free []cow.VersionID) error {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	clear(p.uniques)
	for _, sources := range merging {
		if err := p.commit(p.tree.PlanMerged(sources), nil); err != nil {
			return err
		}
	}
	if len(free) == 0 {
		return nil
	}
	c := p.tree.PlanFreed(free)
	if err := p.commit(c, nil); err != nil {
		return err
	}
	for _, id := range c.DropVersions {
		p.counter.drop(id)
	}
	return nil
}

// charge gives n blocks back to whoever pays for a version; its LUN's area, or
// the shared account.
func (p *Pool) uncharge(payer cow.LUNID, n int64) {
	if n == 0 {
		return
	}
	if payer == 0 {
		p.ledger.AddShared(-n)
	} else {
		p.ledger.Release(uint64(payer), 0, n)
	}
}

// sweepFree gives back everything that a version without children owns.
func (p *Pool) sweepFree(id cow.VersionID) (freed int64, err error) {
	p.treeMu.RLock()
	group := p.tree.Group(id, nil)
	p.treeMu.RUnlock()
	for _, raw := range group {
		nums, err := p.changes(raw)
		if err != nil {
			return freed, err
		}
		for batch := range slices.Chunk(nums, sweepBatch) {
			p.adminMu.Lock()
			for _, num := range batch {
				n, err := p.freeRecord(raw, num)
				if err != nil {
					p.adminMu.Unlock()
					return freed, err
				}
				freed += n
			}
			p.adminMu.Unlock()
			if err := p.sweepPause(); err != nil {
				return freed, err
			}
		}
	}
	return freed, nil
}

// sweepPause lets a checkpoint take what the sweep left in memory.
func (p *Pool) sweepPause() error {
	if err := p.writable(); err != nil {
		return err
	}
	if p.overlay.bytes.Load() > 64<<20 {
		return p.Checkpoint()
	}
	return nil
}

func (p *Pool) freeRecord(raw cow.VersionID, num uint64) (int64, error) {
	branch := p.tree.Version(raw).Branch
	var r cow.Record
	ok, err := p.ownRecord(branch, num, raw, &r)
	if err != nil || !ok {
		return 0, err
	}
	segs := map[uint64]int64{}
	p.countSegments(&r, segs, -1)
	n := chargedBlocks(&r)
	p.overlay.mu.Lock()
	p.overlay.putLocked(pageKey{branch, num}, op{raw, opDelete, nil})
	p.overlay.countLocked(raw, counts{owned: -n})
	p.giveBackLocked(segs)
	p.overlay.mu.Unlock()
	p.counter.of(raw).add(counts{owned: -n})
	p.uncharge(p.tree.Payer(raw), n)
	return n, nil
}

// giveBackLocked books changes of the use of segments. Called with overlay.mu.
func (p *Pool) giveBackLocked(segs map[uint64]int64) {
	for s, d := range segs {
		p.overlay.segLocked(s, d)
		p.space.of(s).live.Add(d)
	}
}

func chargedBlocks(r *cow.Record) (n int64) {
	for i := range cow.PageBlocks {
		if r.Set.Has(i) && cow.Charged(r.Loc[i]) {
			n++
		}
	}
	return n
}

// unit is one of the versions that a merge joins: the ids its records may be
// stored under, newest first.
type unit struct {
	ids   []cow.VersionID
	pages []uint64
}

// sweepMerge joins the pages of the sources with those of the version that they
// go into. Only pages that two of them have need work, and those are found from
// the shorter lists; a page that only one has stays where it is.
func (p *Pool) sweepMerge(into cow.VersionID, sources []cow.VersionID) (freed int64, err error) {
	units, rewrite, err := p.mergeUnits(into, sources)
	if err != nil {
		return 0, err
	}
	var nums []uint64
	if rewrite {
		for _, u := range units[1:] {
			nums = append(nums, u.pages...)
		}
	} else {
		longest := 0
		for i, u := range units {
			if len(u.pages) > len(units[longest].pages) {
				longest = i
			}
		}
		for i, u := range units {
			if i != longest {
				nums = append(nums, u.pages...)
			}
		}
	}
	slices.Sort(nums)
	nums = slices.Compact(nums)
	for batch := range slices.Chunk(nums, sweepBatch) {
		p.adminMu.Lock()
		for _, num := range batch {
			n, err := p.joinPage(into, units, num, rewrite)
			if err != nil {
				p.adminMu.Unlock()
				return freed, err
			}
			freed += n
		}
		p.adminMu.Unlock()
		if err := p.sweepPause(); err != nil {
			return freed, err
		}
	}
	return freed, nil
}

func (p *Pool) mergeUnits(into cow.VersionID, sources []cow.VersionID) (units []unit, rewrite bool, err error) {
	p.takeAll()
	p.treeMu.RLock()
	first := unit{}
	for _, id := range p.tree.Group(into, nil) {
		if !p.belongs(id, sources) {
			first.ids = append(first.ids, id)
		}
	}
	units = append(units, first)
	for _, s := range sources {
		units = append(units, unit{ids: p.tree.Group(s, nil)})
		rewrite = p.tree.Version(s).LUN != p.tree.Version(into).LUN
	}
	p.treeMu.RUnlock()
	for i := range units {
		for _, id := range units[i].ids {
			nums, err := p.changes(id)
			if err != nil {
				return nil, false, err
			}
			units[i].pages = append(units[i].pages, nums...)
		}
	}
	return units, rewrite, nil
}

// belongs says whether id is one of the sources or merged into one.
func (p *Pool) belongs(id cow.VersionID, sources []cow.VersionID) bool {
	for v := p.tree.Version(id); v != nil; v = p.tree.Version(v.Into) {
		if slices.Contains(sources, v.ID) {
			return true
		}
		if v.Into == 0 {
			return false
		}
	}
	return false
}

// held is one unit's record of a page.
type held struct {
	raw    cow.VersionID
	branch cow.BranchID
	rec    cow.Record
}

// joinPage joins what the units have of one page under the newest one's id (or
// under into where every page must move), and frees what is replaced. It runs
// with adminMu, and with the head's page locked if the head reads through.
func (p *Pool) joinPage(into cow.VersionID, units []unit, num uint64, rewrite bool) (freed int64, err error) {
	pages, err := p.lockHeads(into, num)
	if err != nil {
		return 0, err
	}
	defer unlockPages(pages)
	var have []held
	for _, u := range units {
		for _, id := range u.ids {
			h := held{raw: id, branch: p.tree.Version(id).Branch}
			ok, err := p.ownRecord(h.branch, num, id, &h.rec)
			if err != nil {
				return 0, err
			}
			if ok {
				have = append(have, h)
			}
		}
	}
	if len(have) == 0 || len(have) == 1 && (!rewrite || have[0].raw == into) {
		return 0, nil
	}
	top := have[0]
	if rewrite && top.raw != into {
		top = held{raw: into, branch: p.tree.Version(into).Branch}
		have = append([]held{top}, have...)
	}
	p.merges.Add(1)
	defer p.merges.Add(1)
	freed, err = p.joinRecords(into, top, have[1:], num, rewrite)
	renameOwners(pages, top.raw, have[1:])
	return freed, err
}

func (p *Pool) joinRecords(into cow.VersionID, top held, rest []held, num uint64, rewrite bool) (freed int64, err error) {
	rec, moved := top.rec, cow.Bits{}
	rec.Full = true
	segs := map[uint64]int64{}
	payer := p.tree.Version(into).LUN
	gained, adopted := int64(0), int64(0)
	for _, h := range rest {
		n, kept := int64(0), int64(0)
		foreign := rewrite && p.tree.Version(h.raw).LUN != payer
		for i := range cow.PageBlocks {
			if !h.rec.Set.Has(i) {
				continue
			}
			if rec.Set.Has(i) {
				if cow.Charged(h.rec.Loc[i]) {
					n++
				}
				if cow.Stored(h.rec.Loc[i]) {
					segs[p.space.segment(h.rec.Loc[i])]--
				}
				continue
			}
			rec.Set.Add(i)
			rec.Loc[i], rec.CRC[i] = h.rec.Loc[i], h.rec.CRC[i]
			if cow.Charged(rec.Loc[i]) {
				kept++
				if foreign {
					moved.Add(i)
				}
			}
		}
		rec.Hints = append(rec.Hints, h.rec.Hints...)
		freed, gained = freed+n, gained+kept
		p.counter.of(h.raw).add(counts{owned: -n - kept})
		p.overlay.mu.Lock()
		p.overlay.putLocked(pageKey{h.branch, num}, op{h.raw, opDelete, nil})
		p.overlay.countLocked(h.raw, counts{owned: -n - kept})
		p.overlay.mu.Unlock()
		if foreign {
			p.uncharge(p.tree.Payer(h.raw), n+kept)
			adopted += kept
		} else {
			p.uncharge(payer, n)
		}
	}
	rec.Hints = cow.SortHints(rec.Hints)
	p.counter.of(top.raw).add(counts{owned: gained})
	p.overlay.mu.Lock()
	p.overlay.putLocked(pageKey{top.branch, num}, op{top.raw, opSet, rec.Append(nil)})
	p.overlay.countLocked(top.raw, counts{owned: gained})
	p.giveBackLocked(segs)
	p.overlay.mu.Unlock()
	if rewrite && payer != 0 {
		if err := p.adopt(into, num, moved, adopted); err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// lockHeads locks the page of every head view that reads through a version, and
// takes what these pages hold unsaved. They are loaded for that, so that nobody
// can load and change one in between; all are loaded before one is locked, since
// loading a page locks those of the heads that it reads through.
func (p *Pool) lockHeads(through cow.VersionID, num uint64) (pages []*page, err error) {
	for _, v := range p.headViews() {
		if !p.tree.Descends(v.version, through) {
			continue
		}
		pg, err := v.get(num)
		if err != nil {
			for _, pg := range pages {
				pg.unpin()
			}
			return nil, err
		}
		pages = append(pages, pg)
	}
	for _, pg := range pages { // somebody else may still be loading it
		pg.mu.Lock()
		pg.mu.Unlock() //nolint:staticcheck // waits for the load
	}
	for i, pg := range pages {
		if err := pg.lock(); err != nil {
			unlockPages(pages[:i])
			for _, pg := range pages[i:] {
				pg.unpin()
			}
			return nil, err
		}
		p.encode(pg)
	}
	return pages, nil
}

func unlockPages(pages []*page) {
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
	slices.SortFunc(out, func(a, b *view) int { return int(int64(a.lun) - int64(b.lun)) })
	return out
}

// renameOwners tells the heads' pages, which the caller has locked, that records
// were joined under one id. Frozen views need not know: they never compare.
func renameOwners(pages []*page, to cow.VersionID, from []held) {
	for _, pg := range pages {
		for _, h := range from {
			pg.Rename(h.raw, to)
		}
		if pg.Head == to {
			pg.Loaded(true, pg.Applied)
		}
	}
}

// adopt books the blocks of a page that moved to a version of another LUN,
// which pays from now on: to its live data where its head sees them, else to
// its area; and in the counters of what its versions see of their own LUN's.
func (p *Pool) adopt(into cow.VersionID, num uint64, moved cow.Bits, n int64) error {
	lun := p.tree.Version(into).LUN
	head := p.tree.LUN(lun).Head
	seen := map[cow.VersionID]cow.Bits{into: moved}
	p.addLocal(into, popCount(moved))
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
		if ok {
			lost := int64(0)
			for i := range cow.PageBlocks {
				if bits.Has(i) && rec.Set.Has(i) {
					bits.Remove(i)
					lost++
				}
			}
			p.addLocal(id, -lost)
		}
		seen[id] = bits
		if id == head {
			live = popCount(bits)
		}
		todo = append(todo, p.tree.Children(id)...)
	}
	p.ledger.Charge(uint64(lun), live, n-live)
	return nil
}

func (p *Pool) addLocal(id cow.VersionID, n int64) {
	c := counts{local: n}
	p.counter.of(id).add(c)
	p.overlay.mu.Lock()
	p.overlay.countLocked(id, c)
	p.overlay.mu.Unlock()
}

func popCount(b cow.Bits) (n int64) {
	for i := range cow.PageBlocks {
		if b.Has(i) {
			n++
		}
	}
	return n
}
