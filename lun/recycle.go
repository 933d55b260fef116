package lun

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"lunar/cow"
	"lunar/reservation"
)

// A write that the ledger did not admit waits for space here: for what is on its
// way, and for the snapshots that its LUN's policy lets go.

// spaceWait is one request's waiting for space.
type spaceWait struct {
	until time.Time
	tries int
}

// waitForSpace is called outside the gate when the ledger did not admit a
// request. It makes room as the LUN's policy says and waits for it, no longer
// than space-wait in all; or it says why there is nothing to wait for.
func (p *Pool) waitForSpace(lun cow.LUNID, d reservation.Decision, w *spaceWait) error {
	if w.until.IsZero() {
		w.until = time.Now().Add(p.spaceWait())
	}
	w.tries++
	p.reclaiming.urgent.Add(1)
	defer p.reclaiming.urgent.Add(-1)
	wait := p.spaceBack.wait() // before looking, so that nothing is missed
	coming := p.recycle(lun, d) || d.Foreign
	if !coming || p.opts.Manual && w.tries > 8 || time.Now().After(w.until) {
		return p.noSpace(lun, d, coming)
	}
	if p.opts.Manual {
		return p.Reclaim()
	}
	p.janitor.kick(jobReclaim)
	select {
	case <-wait:
	case <-time.After(250 * time.Millisecond):
	}
	return p.writable()
}

// fitsInParts says whether a request that was refused for want of area may fit if it comes in parts: a part of it in the area
// gives the oldest snapshot something to free, and without that snapshot the rest needs no area.
func (p *Pool) fitsInParts(lun cow.LUNID, d reservation.Decision, refused error) bool {
	if d.Reason != reservation.AreaFull || !errors.Is(refused, ErrNoSpace) {
		return false
	}
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	l := p.tree.LUN(lun)
	return l != nil && l.OnFull == OnFullRecycle
}

func (p *Pool) spaceWait() time.Duration {
	if p.opts.SpaceWait > 0 {
		return p.opts.SpaceWait
	}
	return 30 * time.Second
}

func (p *Pool) noSpace(lun cow.LUNID, d reservation.Decision, waited bool) error {
	p.treeMu.RLock()
	name := fmt.Sprint(lun)
	if l := p.tree.LUN(lun); l != nil {
		name = l.Name
	}
	p.treeMu.RUnlock()
	after := ""
	if waited {
		after = fmt.Sprintf(", still so after %s of waiting for space to come back", p.spaceWait())
	}
	if d.Reason == reservation.AreaFull {
		return Errorf(ErrNoSpace, "LUN %s: its snapshot area is full%s; delete snapshots, or raise the limit with `lunar reservation set %s --limit`", name, after, name)
	}
	return Errorf(ErrNoSpace, "LUN %s: the pool is full%s; delete snapshots or LUNs, or raise --capacity", name, after)
}

// comingBack counts the blocks of dropped snapshots that are not merged away yet,
// by who pays for them, and keeps the ledger told. 0 is the shared account.
type comingBack struct {
	mu sync.Mutex
	by map[cow.LUNID]int64
}

// expect notes n more blocks on their way.
func (p *Pool) expect(lun cow.LUNID, n int64) {
	c := &p.coming
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = map[cow.LUNID]int64{}
	}
	c.by[lun] = max(c.by[lun]+n, 0)
	p.ledger.SetComing(uint64(lun), c.by[lun])
	total := int64(0)
	for _, n := range c.by {
		total += n
	}
	p.ledger.SetPending(total)
}

// expectFrom is expect for snapshots that were deleted; of several LUNs only the
// pool as a whole is told. Called with adminMu.
func (p *Pool) expectFrom(ids []cow.VersionID, n int64) {
	payer := cow.LUNID(0)
	for i, id := range ids {
		if is := p.tree.Payer(id); i == 0 {
			payer = is
		} else if is != payer {
			payer = 0
		}
	}
	p.expect(payer, n)
}

// arrived notes that n blocks of a payer came back.
func (p *Pool) arrived(lun cow.LUNID, n int64) {
	p.coming.mu.Lock()
	some := p.coming.by[lun] > 0
	p.coming.mu.Unlock()
	if some {
		p.expect(lun, -n)
	}
}

// nothingComes forgets what was expected, if nothing is left that could be merged
// or freed now.
func (p *Pool) nothingComes() {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	if p.reclaimPending() {
		return
	}
	p.coming.mu.Lock()
	defer p.coming.mu.Unlock()
	for lun := range p.coming.by {
		p.ledger.SetComing(uint64(lun), 0)
	}
	clear(p.coming.by)
	p.ledger.SetPending(0)
}

func (p *Pool) comingOf(lun cow.LUNID) int64 {
	p.coming.mu.Lock()
	defer p.coming.mu.Unlock()
	return p.coming.by[lun]
}

// recycle drops the oldest snapshots of a LUN that lacks space, as its policy
// says, unless enough is on its way. It says whether anything is on its way.
func (p *Pool) recycle(lun cow.LUNID, d reservation.Decision) (coming bool) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	pending := p.isComing(lun, d.Own)
	l := p.tree.LUN(lun)
	if l == nil || l.OnFull != OnFullRecycle {
		return pending
	}
	// Others may have dropped something since this was decided.
	need := d.Need - max(p.comingOf(lun)-d.Coming, 0)
	why := fmt.Sprintf("recycled: %s in the snapshot area of %s, which is full", human(need*blockSize), l.Name)
	if d.Reason == reservation.PoolFull {
		// Live data comes before snapshots that were not promised their place.
		need = min(need, p.borrowed(lun))
		why = fmt.Sprintf("recycled: the pool is full, and %s needs %s for its live data", l.Name, human(need*blockSize))
	}
	if need <= 0 {
		return pending
	}
	frees, err := p.dropOldest(l, need, need, reservation.NoLimit, why)
	if err != nil {
		p.event("recycle", l.Name, "recycling failed: "+err.Error())
	}
	return pending || frees > 0
}

// isComing says whether space is on its way: out of the LUN's own area, or back
// to the pool from anywhere. Called with adminMu.
func (p *Pool) isComing(lun cow.LUNID, own bool) bool {
	if !own {
		return p.reclaimPending()
	}
	for into := range p.tree.Merging() {
		if p.tree.Version(into).LUN == lun {
			return true
		}
	}
	return slices.ContainsFunc(p.tree.Deleted(), func(id cow.VersionID) bool {
		return p.tree.Version(id).LUN == lun && len(p.tree.Children(id)) < 2 && !p.opened(id)
	})
}

// borrowed is what a LUN's area holds beyond its reserve and what is on its way.
func (p *Pool) borrowed(lun cow.LUNID) int64 {
	a := p.reserved(lun)
	return max(a.Area-a.Reserve-p.comingOf(lun), 0)
}

// dropOldest drops a LUN's oldest snapshots for need blocks, but none if all that
// can go give less than least, and gives no more than most (NoLimit: any). Called
// with adminMu.
func (p *Pool) dropOldest(l *cow.LUN, need, least, most int64, why string) (frees int64, err error) {
	ids, frees, err := p.oldestFreeing(l, need, most)
	if err != nil || len(ids) == 0 || frees < least {
		return 0, err
	}
	if err := p.deleteVersions(ids, why); err != nil {
		return 0, err
	}
	p.expect(l.ID, frees)
	return frees, nil
}

// oldestFreeing plans which snapshots of a LUN to drop for need blocks: the
// oldest first, none that frees nothing, none that is protected, attached or
// cloned from. Called with adminMu.
func (p *Pool) oldestFreeing(l *cow.LUN, need, most int64) (ids []cow.VersionID, frees int64, err error) {
	cand, err := p.candidates(l, need)
	if err != nil {
		return nil, 0, err
	}
	drop, frees := reservation.PlanRecycle(cand, need, most)
	for _, id := range drop {
		ids = append(ids, cow.VersionID(id))
	}
	return ids, frees, nil
}

// slowDown holds a writer back while the area of its LUN nears its limit, in
// proportion, and has the oldest snapshots recycled ahead of it.
func (p *Pool) slowDown(lun cow.LUNID, throttle float64) {
	p.pressed.Store(lun, true)
	p.janitor.kick(jobRecycle)
	if !p.opts.Manual {
		time.Sleep(time.Duration(throttle * float64(10*time.Millisecond)))
	}
}

// relieve recycles ahead of the writers of LUNs whose areas are nearly full.
func (p *Pool) relieve() {
	p.pressed.Range(func(k, _ any) bool {
		p.pressed.Delete(k)
		p.relieveLUN(k.(cow.LUNID))
		return true
	})
}

// relieveLUN makes room in an area down to 7/8 of its limit, and in the pool until
// nothing has to be lent slowly. What finds nothing rests for a second.
func (p *Pool) relieveLUN(lun cow.LUNID) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	l := p.tree.LUN(lun)
	if l == nil || l.OnFull != OnFullRecycle || time.Since(p.inVain[lun]) < time.Second && !p.opts.Manual {
		return
	}
	a, coming := p.reserved(lun), p.comingOf(lun)
	need := int64(0)
	if a.Limit > 0 {
		need = a.Area - coming - a.Limit/8*7
	}
	t := p.ledger.Totals()
	need = max(need, min(p.ledger.LendSlowly()-t.Free-t.Pending, p.borrowed(lun)))
	if need <= 0 {
		return
	}
	frees, err := p.dropOldest(l, need, 1, reservation.NoLimit, fmt.Sprintf("recycled: the snapshot area of %s is nearly full", l.Name))
	if err != nil {
		p.event("recycle", l.Name, "recycling failed: "+err.Error())
	}
	if frees == 0 {
		p.inVain[lun] = time.Now()
	}
}
