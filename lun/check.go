package lun

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"lunar/cow"
	"lunar/store/index"
	"lunar/store/segment"
)

// checker collects what does not agree.
type checker struct {
	p        *Pool
	ctx      context.Context
	shadow   *Pool // sees the index alone, as the last checkpoint left it
	problems []Problem
	owned    map[cow.VersionID]int64
	segs     map[uint64]int64
	seen     map[uint64][]uint64 // by segment: its blocks that somebody names, a bit each
	replaced map[hides]int64
}

func newChecker(p *Pool) *checker {
	c := &checker{p: p, ctx: background(), owned: map[cow.VersionID]int64{}, segs: map[uint64]int64{}, seen: map[uint64][]uint64{}, replaced: map[hides]int64{}}
	c.shadow = &Pool{index: p.index, tree: p.tree, overlay: newOverlay(), opts: p.opts, now: p.now, space: p.space}
	return c
}

// names notes that a location is named, and says whether it was before.
func (c *checker) names(loc uint64) (twice bool) {
	seg := c.p.space.segment(loc)
	bits := c.seen[seg]
	if bits == nil {
		bits = make([]uint64, (c.p.space.blocks+63)/64)
		c.seen[seg] = bits
	}
	i := loc % c.p.space.blocks
	twice = bits[i/64]&(1<<(i%64)) != 0
	bits[i/64] |= 1 << (i % 64)
	return twice
}

func (c *checker) add(where, format string, args ...any) {
	if len(c.problems) < 1000 {
		c.problems = append(c.problems, Problem{What: fmt.Sprintf(format, args...), Where: where})
	}
}

// Check proves that tree, pages, counters, use of segments and ledger agree. The
// ledger is compared at one instant; all else as the checkpoint of that instant
// left it, in hard links to the index, while everything goes on. Memory: a bit
// for each block of a segment in use.
func (p *Pool) Check(ctx context.Context, progress func(done, total int64)) (CheckReport, error) {
	if p.opts.Manual || p.writable() != nil {
		return p.checkHeld(progress)
	}
	p.checks.Lock()
	defer p.checks.Unlock()
	dir := p.path(indexDir + ".check")
	if err := p.removeAll(dir); err != nil {
		return CheckReport{}, err
	}
	c, err := p.freezeForCheck(dir)
	if err != nil {
		return CheckReport{}, err
	}
	rep, err := p.checkFrozen(ctx, c, dir, progress)
	return rep, errors.Join(err, p.removeAll(dir))
}

// freezeForCheck compares the ledger and links the index, at one instant.
func (p *Pool) freezeForCheck(dir string) (*checker, error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	p.ckptMu.Lock()
	defer p.ckptMu.Unlock()
	if err := p.checkpointHeld(); err != nil {
		return nil, err
	}
	c := newChecker(p)
	c.ledger()
	return c, p.index.Backup(dir)
}

// checkFrozen checks an index that nobody writes to, with a pool of its own.
func (p *Pool) checkFrozen(ctx context.Context, live *checker, dir string, progress func(done, total int64)) (rep CheckReport, err error) {
	o := p.opts
	o.ReadOnly, o.Manual, o.Events, o.Logger = true, true, nil, slog.New(slog.DiscardHandler)
	f := newPool(o)
	f.id, f.rebuilding, f.space = p.id, true, newSpace(p.id.SegmentBytes)
	if f.index, err = f.openIndexAt(dir, true); err != nil {
		return rep, indexError(p.opts.Dir, err)
	}
	defer func() { err = errors.Join(err, f.index.Close()) }()
	if err := f.loadCatalogue(); err != nil {
		return rep, err
	}
	c := newChecker(f)
	c.problems, c.ctx = live.problems, ctx
	if err := c.stored(progress); err != nil {
		return rep, err
	}
	return c.report(), nil
}

// checkHeld checks with checkpoints and structural changes held back: a pool that
// takes no writes has none.
func (p *Pool) checkHeld(progress func(done, total int64)) (CheckReport, error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	p.ckptMu.Lock()
	defer p.ckptMu.Unlock()
	p.checking.Store(true)
	defer p.checking.Store(false)
	if p.writable() == nil {
		if err := p.checkpointHeld(); err != nil {
			return CheckReport{}, err
		}
	}
	c := newChecker(p)
	if err := c.stored(progress); err != nil {
		return CheckReport{}, err
	}
	c.ledger()
	return c.report(), nil
}

func (c *checker) report() CheckReport {
	if c.problems == nil {
		c.problems = []Problem{}
	}
	return CheckReport{OK: len(c.problems) == 0, Problems: c.problems}
}

// stored checks everything that the index says, and, where nobody writes to it,
// the index itself: the order and checksums of its tables, pages against lists of changes.
func (c *checker) stored(progress func(done, total int64)) error {
	if c.p.opts.ReadOnly {
		if err := c.p.index.Check(); errors.Is(err, index.ErrCorrupt) {
			c.add("index", "%v", err)
		} else if err != nil {
			return err
		}
	}
	c.tree()
	if err := c.pages(progress); err != nil {
		return err
	}
	c.counters()
	if err := c.visible(); err != nil {
		return err
	}
	return c.pairs()
}

// tree checks that heads, parents and branches fit together.
func (c *checker) tree() {
	t := c.p.tree
	heads := map[cow.VersionID]bool{}
	for _, l := range t.LUNs() {
		h := t.Version(l.Head)
		switch {
		case h == nil:
			c.add("LUN "+l.Name, "its head, version %d, is missing", l.Head)
		case h.State != cow.Head || h.LUN != l.ID || h.Size != l.Size:
			c.add("LUN "+l.Name, "its head, version %d, is %s of LUN %d with %d bytes", h.ID, h.State, h.LUN, h.Size)
		default:
			heads[h.ID] = true
		}
	}
	for _, v := range t.Versions() {
		where := fmt.Sprintf("version %d", v.ID)
		if v.State == cow.Head && !heads[v.ID] {
			c.add(where, "is a head of no LUN")
		}
		if t.Branch(v.Branch) == nil {
			c.add(where, "its branch %d is missing", v.Branch)
		}
		if (v.State == cow.Alias || v.State == cow.Merging) && t.Version(v.Into) == nil {
			c.add(where, "what it was merged into, version %d, is missing", v.Into)
		}
		if v.State != cow.Alias && v.State != cow.Merging && v.Parent != 0 {
			if up := t.Version(v.Parent); up == nil || up.State == cow.Alias || up.State == cow.Merging || up.ID >= v.ID {
				c.add(where, "its parent %d is no version to build on", v.Parent)
			}
		}
		if uint64(v.ID) >= t.Next() {
			c.add(where, "is beyond the mark of identifiers %d", t.Next())
		}
	}
}

// pages reads every record: each location is named once, lies in a known
// segment, and belongs to a known version.
func (c *checker) pages(progress func(done, total int64)) error {
	n := int64(0)
	err := c.p.index.AllPages(func(branch, num, version uint64, raw []byte) error {
		n++
		if progress != nil && n%1024 == 0 {
			progress(n, 0)
		}
		if err := c.ctx.Err(); err != nil {
			return err
		}
		where := fmt.Sprintf("page %d of version %d", num, version)
		v := c.p.tree.Version(cow.VersionID(version))
		if v == nil || uint64(v.Branch) != branch {
			c.add(where, "its version is unknown on branch %d", branch)
			return nil
		}
		var r cow.Record
		if err := r.Decode(raw); err != nil {
			c.add(where, "%v", err)
			return nil
		}
		for i := range cow.PageBlocks {
			if !r.Set.Has(i) {
				continue
			}
			if cow.Charged(r.Loc[i]) {
				c.owned[v.ID]++
			}
			if cow.Stored(r.Loc[i]) {
				c.segs[c.p.space.segment(r.Loc[i])]++
				if c.names(r.Loc[i]) {
					c.add(where, "block %d is at location %d, which something else names too", num*cow.PageBlocks+uint64(i), r.Loc[i])
				}
			}
		}
		return nil
	})
	if err != nil {
		return Errorf(ErrCorrupt, "reading the index: %w", err)
	}
	return nil
}

// counters compares the stored counters and rows with what the pages say.
func (c *checker) counters() {
	p := c.p
	p.counter.mu.RLock()
	// Writers and merges move blocks between ids of one group: the sum counts.
	want, got := map[cow.VersionID]int64{}, map[cow.VersionID]int64{}
	for v, n := range c.owned {
		want[p.tree.Canonical(v)] += n
	}
	for v, s := range p.counter.stored {
		got[p.tree.Canonical(v)] += s.owned
	}
	for _, v := range p.tree.Versions() {
		if want[v.ID] != got[v.ID] {
			c.add(fmt.Sprintf("version %d", v.ID), "owns %d blocks, its counters say %d", want[v.ID], got[v.ID])
		}
	}
	p.counter.mu.RUnlock()
	p.space.mu.Lock()
	defer p.space.mu.Unlock()
	for n, want := range c.segs {
		if u := p.space.segs[n]; u == nil || u.stored != want {
			got := int64(0)
			if u != nil {
				got = u.stored
			}
			c.add("segment "+segment.Name(n), "%d blocks of it are mapped, its row says %d", want, got)
		}
	}
	for n, u := range p.space.segs {
		if u.holes.stored+u.stored > int64(p.space.blocks) {
			c.add("segment "+segment.Name(n), "%d blocks of it are mapped, and %d are holes, of %d", u.stored, u.holes.stored, p.space.blocks)
		}
		if u.stored != 0 && c.segs[n] == 0 {
			c.add("segment "+segment.Name(n), "no block of it is mapped, its row says %d", u.stored)
		}
	}
}

// visible recomputes, for every version, what its records change of the visible
// and of the locally paid blocks.
func (c *checker) visible() error {
	t := c.p.tree
	for _, v := range t.Versions() {
		if v.State == cow.Alias || v.State == cow.Merging {
			continue
		}
		nums, err := c.shadow.groupChanges(v.ID)
		if err = errors.Join(err, c.ctx.Err()); err != nil {
			return err
		}
		var ref, local int64
		for _, num := range nums {
			r, l, err := c.pageDelta(v, num)
			if err != nil {
				c.add(fmt.Sprintf("page %d of version %d", num, v.ID), "%v", err)
				continue
			}
			ref, local = ref+r, local+l
		}
		var s counts
		c.p.counter.mu.RLock()
		for _, id := range t.Group(v.ID, nil) {
			n := c.p.counter.stored[id]
			if t.Version(id).LUN != v.LUN {
				n.local = 0
			}
			s.plus(n)
		}
		c.p.counter.mu.RUnlock()
		// Nobody sees through a version that is being freed: its records go one by
		// one, its counts with it. What is being taken over from another LUN is
		// paid by that one until its page is joined.
		paid := v.LUN != 0 && !slices.ContainsFunc(t.Group(v.ID, nil), func(id cow.VersionID) bool {
			return t.Version(id).State == cow.Merging && t.Version(id).LUN != v.LUN
		})
		if !beingFreed(t, v.ID) && (s.ref != ref || paid && s.local != local) {
			c.add(fmt.Sprintf("version %d", v.ID), "changes visible blocks by %d and its LUN's by %d, its counters say %d and %d", ref, local, s.ref, s.local)
		}
	}
	return nil
}

// pairs compares what versions replaced of each other, as stored, with the pages.
func (c *checker) pairs() error {
	t := c.p.tree
	stored := map[hides]int64{}
	err := c.p.index.Counters(func(id uint64, b []byte) error {
		x := cow.VersionID(id)
		_, raw, err := unmarshalCounts(b)
		if err != nil || t.Version(x) == nil {
			return err
		}
		one := replaced{}
		if err := one.decode(x, raw); err != nil {
			return err
		}
		for _, p := range one[x] {
			if k := (hides{t.Canonical(x), t.Canonical(p.owner)}); k.x != k.owner {
				stored[k] += p.n
			}
		}
		return nil
	})
	if err != nil {
		return Errorf(ErrCorrupt, "index: %w", err)
	}
	for k, n := range c.replaced {
		if stored[k] != n && !beingFreed(t, k.x) {
			c.add(fmt.Sprintf("version %d", k.x), "replaced %d blocks of version %d, its counters say %d", n, k.owner, stored[k])
		}
	}
	for k, n := range stored {
		if n != 0 && c.replaced[k] == 0 && !beingFreed(t, k.x) {
			c.add(fmt.Sprintf("version %d", k.x), "replaced nothing of version %d, its counters say %d blocks", k.owner, n)
		}
	}
	return nil
}

// beingFreed says that nobody reads through a deleted version any more.
func beingFreed(t *cow.Tree, id cow.VersionID) bool {
	v := t.Version(id)
	return v != nil && v.State == cow.Deleted && !slices.ContainsFunc(t.Children(id), func(c cow.VersionID) bool { return !beingFreed(t, c) })
}

func (c *checker) pageDelta(v *cow.Version, num uint64) (ref, local int64, err error) {
	var own cow.Record
	if _, err := c.shadow.groupRecord(v.ID, num, &own); err != nil {
		return 0, 0, err
	}
	pg := &page{num: num, view: &view{pool: c.shadow, version: v.Parent}}
	if v.Parent != 0 {
		if err := c.shadow.load(pg); err != nil {
			return 0, 0, err
		}
	} else {
		pg.Reset(0)
	}
	for i := range cow.PageBlocks {
		if !own.Set.Has(i) {
			continue
		}
		if cow.Charged(own.Loc[i]) {
			ref++
			local++
		}
		if old := pg.At(i); cow.Charged(old.Loc) {
			ref--
			c.replaced[hides{v.ID, c.p.tree.Canonical(old.Owner)}]++
			if c.p.tree.Payer(old.Owner) == v.LUN {
				local--
			}
		}
	}
	return ref, local, nil
}

// ledger compares, at one instant, the ledger with the counters.
func (c *checker) ledger() {
	p := c.p
	p.gate.lock()
	totals, s := p.payerTotals(), p.sums()
	for id, sum := range s {
		if got := p.sumOf(id); got.ref != sum.ref || p.tree.Version(id).LUN != 0 && got.local != sum.local {
			c.add(fmt.Sprintf("version %d", id), "sees %d blocks, %d of its LUN's; remembered are %d and %d", sum.ref, sum.local, got.ref, got.local)
		}
	}
	type account struct{ live, area int64 }
	got := map[cow.LUNID]account{}
	for _, l := range p.tree.LUNs() {
		a := p.reserved(l.ID)
		got[l.ID] = account{a.Live, a.Area}
	}
	shared := p.ledger.Totals().Shared
	err := p.ledger.Check()
	p.gate.unlock()
	for _, l := range p.tree.LUNs() {
		want := account{s[l.Head].local, totals[l.ID] - s[l.Head].local}
		if got[l.ID] != want {
			c.add("LUN "+l.Name, "live data %d and area %d blocks, the ledger says %d and %d", want.live, want.area, got[l.ID].live, got[l.ID].area)
		}
	}
	if shared != totals[0] {
		c.add("pool", "%d blocks belong to no LUN, the ledger says %d", totals[0], shared)
	}
	if err != nil {
		c.add("ledger", "%v", err)
	}
}
