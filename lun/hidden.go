package lun

import (
	"lunar/cow"
)

// hiddenDue lists the deleted versions that two or more need and that may have
// blocks that all of these have replaced, unless a look at the same numbers found
// none. Called with treeMu or adminMu.
func (p *Pool) hiddenDue() (out []cow.VersionID) {
	r := p.released()
	for _, id := range p.tree.Deleted() {
		if r.below(id).left < 2 || p.opened(id) {
			continue
		}
		if n := r.bound(id); n > 0 && n != p.reclaiming.seen(id) {
			out = append(out, id)
		}
	}
	return out
}

// released foresees nothing but what is deleted already.
func (p *Pool) released() *release {
	return &release{p: p, gone: func(id cow.VersionID) bool { return p.tree.Version(id).State == cow.Deleted }}
}

// sweepHidden gives back the blocks of a hidden version that every version which
// was made from it has replaced. Where they were it keeps holes, so that what
// lies below does not come to light in what it hides.
func (p *Pool) sweepHidden(id cow.VersionID) error {
	p.takeAll()
	p.adminMu.Lock()
	nums, err := p.released().suspects(id)
	p.adminMu.Unlock()
	if err != nil {
		return err
	}
	j := &join{p: p, into: id}
	err = p.sweepPages(nums, j.begin, func(num uint64) (int64, error) {
		v := p.tree.Version(id)
		if v == nil || v.State != cow.Deleted || len(p.tree.Children(id)) < 2 || p.opened(id) {
			return 0, nil
		}
		pages := p.lockHeads(j.heads, num)
		defer p.unlockHeads(pages)
		return p.freeHidden(id, num)
	})
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	if p.tree.Version(id) != nil {
		p.reclaiming.note(id, p.released().bound(id))
	}
	return err
}

// freeHidden does it for one page. Called with adminMu, with the heads' pages
// locked and taken.
func (p *Pool) freeHidden(id cow.VersionID, num uint64) (freed int64, err error) {
	r := p.released()
	dead, err := r.dead(id, num)
	if err != nil || dead.Empty() {
		return 0, err
	}
	lines, err := r.hiders(id, num, dead)
	if err != nil {
		return 0, err
	}
	group := p.tree.Group(id, nil)
	for _, raw := range group {
		n, err := p.freeBlocks(raw, num, dead)
		if err != nil {
			return freed, err
		}
		freed += n
	}
	payer := p.tree.Version(id).LUN
	p.seesLess(id, freed, payer)
	p.overlay.mu.Lock()
	defer p.overlay.mu.Unlock()
	for _, l := range lines {
		if l.sees > 0 {
			p.seesLess(l.version, l.sees, payer)
		}
		if l.hides == 0 {
			continue
		}
		// Relative to its parent it hides less now.
		c := counts{ref: l.hides}
		if p.tree.Version(l.version).LUN == payer {
			c.local = l.hides
		}
		p.counter.of(l.version).add(c)
		p.overlay.countLocked(l.version, c)
		p.overlay.subtractLocked(p.tree.Group(l.version, nil), group, l.hides)
	}
	return freed, nil
}

// seesLess corrects what a frozen version sees in all.
func (p *Pool) seesLess(id cow.VersionID, n int64, payer cow.LUNID) {
	sum, ok := p.cum[id]
	if !ok {
		return
	}
	sum.ref -= n
	if p.tree.Version(id).LUN == payer {
		sum.local -= n
	}
	p.cum[id] = sum
}

// hider is a version on a line below another: it is the first to hide some of
// the blocks in question, and sees others of them.
type hider struct {
	version     cow.VersionID
	hides, sees int64
}

// hiders lists who is the first to hide the given blocks of a page, line by
// line, with those that are passed on the way.
func (r *release) hiders(id cow.VersionID, num uint64, bits cow.Bits) (out []hider, err error) {
	var rec cow.Record
	for _, c := range r.p.tree.Children(id) {
		if _, err := r.p.groupRecord(c, num, &rec); err != nil {
			return nil, err
		}
		rest := bits
		for w := range rest {
			rest[w] &^= rec.Set[w]
		}
		sees := popCount(rest)
		out = append(out, hider{c, popCount(bits) - sees, sees})
		if sees > 0 {
			more, err := r.hiders(c, num, rest)
			if err != nil {
				return nil, err
			}
			out = append(out, more...)
		}
	}
	return out, nil
}

// freeBlocks turns blocks of one stored record into holes.
func (p *Pool) freeBlocks(raw cow.VersionID, num uint64, dead cow.Bits) (n int64, err error) {
	branch := p.tree.Version(raw).Branch
	var r cow.Record
	ok, err := p.ownRecord(branch, num, raw, &r)
	if err != nil || !ok {
		return 0, err
	}
	segs := map[uint64]int64{}
	for i := range cow.PageBlocks {
		if !dead.Has(i) || !r.Set.Has(i) || !cow.Charged(r.Loc[i]) {
			continue
		}
		if cow.Stored(r.Loc[i]) {
			segs[p.space.segment(r.Loc[i])]--
		}
		r.Loc[i], r.CRC[i] = 0, 0
		n++
	}
	if n == 0 {
		return 0, nil
	}
	r.Full = true
	p.overlay.mu.Lock()
	p.overlay.putLocked(pageKey{branch, num}, op{raw, opSet, r.Append(nil)})
	p.overlay.countLocked(raw, counts{owned: -n, ref: -n, local: -n})
	p.giveBackLocked(segs)
	p.overlay.mu.Unlock()
	p.counter.of(raw).add(counts{owned: -n, ref: -n, local: -n})
	p.uncharge(p.tree.Payer(raw), n)
	return n, nil
}

// subtractLocked takes n off what the ids of one version replaced of another's.
func (o *overlay) subtractLocked(xs, owners []cow.VersionID, n int64) {
	for _, x := range xs {
		for _, owner := range owners {
			if k := min(o.replaced.of(x, owner), n); k > 0 {
				o.replaceLocked(x, owner, -k)
				n -= k
			}
		}
	}
}
