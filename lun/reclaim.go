package lun

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"lunar/cow"
)

const (
	// sweepBatch is how many pages are merged or freed between two looks at
	// whether somebody waits for a structural operation.
	sweepBatch = 64
	// freeTogether is how many versions are freed in one walk over the pages: each
	// may have a record of a page, and structural operations wait for one page.
	freeTogether = 1024
	// mergesPerChange bounds a change to what fits one record of the log.
	mergesPerChange = 200
)

// Reclaim gives back what deleted versions own: those without children are
// freed, those with one are merged with it, of those with more goes what all
// children replaced. It returns when nothing is left that can be given back now.
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
		if err == nil && !did {
			p.nothingComes()
		}
		if err != nil || !did {
			return err
		}
	}
}

// WaitReclaim is Reclaim for somebody who waits for the space: it is not
// throttled.
func (p *Pool) WaitReclaim(context.Context) error {
	p.reclaiming.urgent.Add(1)
	defer p.reclaiming.urgent.Add(-1)
	return p.Reclaim()
}

// reclaimPending says whether Reclaim would find something to do.
func (p *Pool) reclaimPending() bool {
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	if p.tree.MergingCount() > 0 {
		return true
	}
	if p.tree.DeletedCount() == 0 {
		return false
	}
	return !p.tree.PlanReclaim(p.opened).Empty() || len(p.hiddenDue()) > 0
}

// round is what one round of giving space back works on.
type round struct {
	merging map[cow.VersionID][]cow.VersionID // sources, newest first, by what they go into
	free    []cow.VersionID
	hidden  []cow.VersionID
	empty   []cow.VersionID // merged ids under which nothing is stored any more
}

func (p *Pool) reclaimRound() (did bool, err error) {
	if err := p.writable(); err != nil {
		return false, err
	}
	var r round
	if r.free, r.hidden, err = p.publishReclaim(); err != nil {
		return false, err
	}
	p.treeMu.RLock()
	r.merging = p.tree.Merging()
	p.treeMu.RUnlock()
	if len(r.free) == 0 && len(r.merging) == 0 && len(r.hidden) == 0 {
		return false, nil
	}
	if err := p.Checkpoint(); err != nil {
		return false, err
	}
	p.mergeNew.Store(false)
	// Pages that a head touches from here on take what they find under a merged
	// id over (Absorb); the others are in the change lists.
	p.takeAll()
	began := time.Now()
	p.reclaiming.begin(r.sources()+len(r.free)+len(r.hidden), began)
	defer p.reclaiming.end()
	if err := p.sweep(&r); err != nil {
		return false, err
	}
	if err := p.Checkpoint(); err != nil {
		return false, err
	}
	if err := p.finishReclaim(&r); err != nil {
		return false, err
	}
	freed := p.reclaiming.freed.Load()
	p.event("reclaim", "", fmt.Sprintf("%s given back by %d merged, %d freed and %d hidden versions in %s",
		human(freed*blockSize), r.sources(), len(r.free), len(r.hidden), time.Since(began).Round(time.Millisecond)))
	p.spaceBack.wake()
	return len(r.free) > 0 || len(r.merging) > 0, nil
}

func (r *round) sources() (n int) {
	for _, s := range r.merging {
		n += len(s)
	}
	return n
}

// sweep does the work of a round on the pages.
func (p *Pool) sweep(r *round) error {
	for into, sources := range r.merging {
		p.reclaiming.versions.Add(int64(len(sources)))
		empty, err := p.sweepMerge(into, sources)
		if err != nil {
			return err
		}
		r.empty = append(r.empty, empty...)
	}
	if err := p.sweepFree(r.free); err != nil {
		return err
	}
	for _, id := range r.hidden {
		p.reclaiming.versions.Add(1)
		if err := p.sweepHidden(id); err != nil {
			return err
		}
	}
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	p.retire(r.empty)
	return nil
}

// publishReclaim plans a round and commits the merges; it returns what to free,
// and which hidden versions have something to give back.
func (p *Pool) publishReclaim() (free, hidden []cow.VersionID, err error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	if p.tree.DeletedCount() == 0 {
		return nil, nil, nil
	}
	p.takeAll() // what heads replaced of hidden versions
	targets := p.tree.Merging()
	plan := p.tree.PlanReclaim(func(id cow.VersionID) bool {
		_, target := targets[id]
		return target || p.opened(id)
	})
	merges := slices.DeleteFunc(plan.Merges, func(m cow.Merge) bool { _, busy := targets[m.Into]; return busy })
	for ms := range slices.Chunk(merges, mergesPerChange) {
		if err := p.commit(p.tree.PlanMerge(ms...), func() { p.mergeNew.Store(true) }); err != nil {
			return nil, nil, err
		}
	}
	return plan.Free, p.hiddenDue(), nil
}

// finishReclaim commits the end of the merges and forgets what was freed.
func (p *Pool) finishReclaim(r *round) error {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	var sources []cow.VersionID
	for _, s := range r.merging {
		sources = append(sources, s...)
	}
	if len(sources) > 0 {
		if err := p.forget(p.tree.PlanMerged(sources, r.empty)); err != nil {
			return err
		}
	}
	if len(r.free) > 0 {
		return p.forget(p.tree.PlanFreed(r.free))
	}
	return nil
}

// forget commits a change and drops what memory has of versions that go.
func (p *Pool) forget(c cow.Change) error {
	if err := p.commit(c, nil); err != nil {
		return err
	}
	p.forgotten(c.DropVersions)
	return nil
}

func (p *Pool) forgotten(ids []cow.VersionID) {
	p.overlay.mu.Lock()
	for _, id := range ids {
		delete(p.overlay.replaced, id)
	}
	p.overlay.mu.Unlock()
	for _, id := range ids {
		p.counter.drop(id)
		delete(p.cum, id)
	}
}

// retire moves what is counted under merged ids without records to the versions
// that they went into. It is committed before the ids are forgotten; until then
// the sums over groups are the same either way. Called with adminMu.
func (p *Pool) retire(empty []cow.VersionID) {
	if len(empty) == 0 {
		return
	}
	to := make(map[cow.VersionID]cow.VersionID, len(empty))
	targets := map[cow.VersionID]bool{}
	for _, id := range empty {
		to[id] = p.tree.Canonical(id)
		targets[to[id]] = true
	}
	hiders := p.below(slices.Sorted(maps.Keys(targets)))
	p.overlay.mu.Lock()
	for id, t := range to {
		c := p.counter.of(id).load()
		out := counts{-c.owned, -c.ref, -c.local}
		p.counter.of(id).add(out)
		p.overlay.countLocked(id, out)
		if p.tree.Version(id).LUN != p.tree.Version(t).LUN {
			c.local = 0 // it says nothing about the blocks of the other LUN
		}
		p.counter.of(t).add(c)
		p.overlay.countLocked(t, c)
	}
	p.overlay.mu.Unlock()
	for some := range slices.Chunk(hiders, 256) { // writers encode pages in between
		p.overlay.mu.Lock()
		p.overlay.renameLocked(to, some)
		p.overlay.mu.Unlock()
	}
}

// below lists the ids of versions and of all that descend from them, merged ones
// included, each once. Called with the tree at rest.
func (p *Pool) below(ids []cow.VersionID) (out []cow.VersionID) {
	seen := map[cow.VersionID]bool{}
	for todo := slices.Clone(ids); len(todo) > 0; {
		v := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !seen[v] {
			seen[v] = true
			todo = append(todo, p.tree.Children(v)...)
			out = p.tree.Group(v, out)
		}
	}
	return out
}

// uncharge gives n blocks back to whoever pays for a version; its LUN's area, or
// the shared account.
func (p *Pool) uncharge(payer cow.LUNID, n int64) {
	if n == 0 {
		return
	}
	p.arrived(payer, n)
	if payer == 0 {
		p.ledger.AddShared(-n)
	} else {
		p.ledger.Release(uint64(payer), 0, n)
	}
}

// sweepPages calls fn for each page with adminMu held, a batch at a time. It
// keeps to its share of the time, and lets a checkpoint take what is in memory.
func (p *Pool) sweepPages(nums []uint64, begin func() error, fn func(num uint64) (freed int64, err error)) error {
	return p.sweepBatches(sweepBatch, nums, begin, fn)
}

func (p *Pool) sweepBatches(size int, nums []uint64, begin func() error, fn func(num uint64) (freed int64, err error)) error {
	p.reclaiming.total.Add(int64(len(nums)))
	for batch := range slices.Chunk(nums, size) {
		began := time.Now()
		err := p.sweepOne(batch, begin, fn)
		if err == nil {
			err = p.writable()
		}
		if err != nil {
			return err
		}
		p.reclaiming.done.Add(int64(len(batch)))
		if p.overlay.bytes.Load() > 64<<20 {
			if err := p.Checkpoint(); err != nil {
				return err
			}
		}
		p.reclaiming.pace(time.Since(began), p.janitor.quit)
	}
	return nil
}

func (p *Pool) sweepOne(batch []uint64, begin func() error, fn func(num uint64) (int64, error)) error {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	if begin != nil {
		if err := begin(); err != nil {
			return err
		}
	}
	for _, num := range batch {
		n, err := fn(num)
		p.reclaiming.freed.Add(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// sweepFree gives back everything that versions without children own: branch by
// branch, and page by page of all of a branch, so that a LUN with thousands of
// snapshots goes in one walk over its records.
func (p *Pool) sweepFree(ids []cow.VersionID) error {
	branches := map[cow.BranchID][]cow.VersionID{}
	p.treeMu.RLock()
	for _, id := range ids {
		for _, raw := range p.tree.Group(id, nil) {
			b := p.tree.Version(raw).Branch
			branches[b] = append(branches[b], raw)
		}
	}
	p.treeMu.RUnlock()
	p.reclaiming.versions.Add(int64(len(ids)))
	for b, raws := range branches {
		slices.Sort(raws)
		for some := range slices.Chunk(raws, freeTogether) {
			if err := p.sweepFreeOn(b, some); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepFreeOn does it for versions of one branch, oldest first.
func (p *Pool) sweepFreeOn(b cow.BranchID, raws []cow.VersionID) error {
	nums, _, err := p.pagesOf(raws, allPages, math.MaxInt)
	if err != nil {
		return err
	}
	in := map[cow.VersionID]bool{}
	for _, raw := range raws {
		in[raw] = true
	}
	size := max(1, min(sweepBatch, 4*sweepBatch/len(raws)))
	return p.sweepBatches(size, nums, nil, func(num uint64) (int64, error) {
		return p.freeRecords(b, num, raws[len(raws)-1], raws[0], in)
	})
}

// freeRecords frees what some versions of a branch, newest to oldest, have of a page.
func (p *Pool) freeRecords(b cow.BranchID, num uint64, newest, oldest cow.VersionID, in map[cow.VersionID]bool) (freed int64, err error) {
	it := p.records(b, num, newest)
	for it.next() && it.version >= oldest {
		if !in[it.version] {
			continue
		}
		if err := it.record(); err != nil {
			return freed, errors.Join(err, it.close())
		}
		freed += p.freeRecord(holder{it.version, b}, num, &it.rec)
	}
	return freed, it.close()
}

func (p *Pool) freeRecord(h holder, num uint64, r *cow.Record) int64 {
	segs := map[uint64]int64{}
	p.countSegments(r, segs, -1)
	n := chargedBlocks(r)
	p.overlay.mu.Lock()
	p.overlay.putLocked(pageKey{h.branch, num}, op{h.raw, opDelete, nil})
	p.overlay.countLocked(h.raw, counts{owned: -n})
	p.giveBackLocked(segs)
	p.overlay.mu.Unlock()
	p.counter.of(h.raw).add(counts{owned: -n})
	p.uncharge(p.tree.Payer(h.raw), n)
	return n
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

func popCount(b cow.Bits) int64 { return int64(b.Count()) }
