package lun

import (
	mathbits "math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"lunar/cow"
)

// overlay holds the page records that the next checkpoint commits, and those
// that the running one is committing: what the index will say, ahead of it.
// Every change of a stored page goes through here, together with what it
// changes in the counters and in the use of segments, so that a commit holds
// both or neither.
type overlay struct {
	mu       sync.RWMutex
	cur      *generation
	flushing *generation
	replaced replaced     // as cur and flushing leave it
	ops      atomic.Int64 // in both generations: 0 spares readers the lock
	bytes    atomic.Int64
}

type pageKey struct {
	branch cow.BranchID
	page   uint64
}

type opKind uint8

const (
	opSet opKind = iota
	opMerge
	opMove // a merge over a record that there is
	opDelete
)

type op struct {
	version cow.VersionID
	kind    opKind
	rec     []byte
}

type generation struct {
	ops      map[pageKey][]op
	present  map[pageKey]uint64         // by branch and page/64: which of the 64 pages have operations
	touched  map[cow.VersionID][]uint64 // pages of which a version's record has an operation; some twice
	segments map[uint64]int64
	counters map[cow.VersionID]counts
	replaced map[cow.VersionID]bool   // whose pairs changed
	pairs    map[cow.VersionID][]byte // when it is committed: theirs, and of counters, encoded
	n        int64
}

// counts are the changes of a version's counters, in blocks.
type counts struct{ owned, ref, local int64 }

func newGeneration() *generation {
	return &generation{ops: map[pageKey][]op{}, present: map[pageKey]uint64{}, touched: map[cow.VersionID][]uint64{}, segments: map[uint64]int64{},
		counters: map[cow.VersionID]counts{}, replaced: map[cow.VersionID]bool{}}
}

func newOverlay() *overlay { return &overlay{cur: newGeneration(), replaced: replaced{}} }

// putLocked adds one operation.
func (o *overlay) putLocked(k pageKey, p op) {
	have := o.cur.ops[k]
	if !slices.ContainsFunc(have, func(x op) bool { return x.version == p.version }) {
		o.cur.touched[p.version] = append(o.cur.touched[p.version], k.page)
	}
	if len(have) == 0 {
		o.cur.present[pageKey{k.branch, k.page / 64}] |= 1 << (k.page % 64)
	}
	o.cur.ops[k] = append(have, p)
	o.cur.n++
	o.ops.Add(1)
	o.bytes.Add(int64(len(p.rec)))
}

func (o *overlay) countLocked(v cow.VersionID, c counts) {
	if c == (counts{}) {
		return
	}
	s := o.cur.counters[v]
	s.owned, s.ref, s.local = s.owned+c.owned, s.ref+c.ref, s.local+c.local
	o.cur.counters[v] = s
}

// replaceLocked notes that version x replaced n more blocks of version owner.
func (o *overlay) replaceLocked(x, owner cow.VersionID, n int64) {
	o.replaced.add(x, owner, n)
	o.cur.replaced[x] = true
}

func (o *overlay) segLocked(seg uint64, delta int64) {
	if delta != 0 {
		o.cur.segments[seg] += delta
	}
}

// get returns the operations on a page, oldest first.
func (o *overlay) get(k pageKey) []op {
	if o.ops.Load() == 0 {
		return nil
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	var out []op
	if o.flushing != nil {
		out = o.flushing.ops[k]
	}
	cur := o.cur.ops[k]
	if len(out) == 0 {
		return slices.Clip(cur)
	}
	return append(slices.Clone(out), cur...)
}

// swap hands the collected generation to the caller for committing; it stays
// visible until done is called.
func (o *overlay) swap() *generation {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.flushing, o.cur = o.cur, newGeneration()
	// At this instant the pairs in memory are those that are stored, and the
	// changes that this generation commits.
	g := o.flushing
	g.pairs = make(map[cow.VersionID][]byte, len(g.counters))
	for v := range g.counters {
		g.pairs[v] = o.replaced.encode(v)
	}
	for v := range g.replaced {
		g.pairs[v] = o.replaced.encode(v)
	}
	return g
}

// undo puts a generation whose commit did not happen back in front of what was
// collected since.
func (o *overlay) undo() {
	o.mu.Lock()
	defer o.mu.Unlock()
	g := o.flushing
	o.flushing = nil
	for k, ops := range o.cur.ops {
		g.ops[k] = append(g.ops[k], ops...)
	}
	for k, bits := range o.cur.present {
		g.present[k] |= bits
	}
	for v, nums := range o.cur.touched {
		g.touched[v] = append(g.touched[v], nums...)
	}
	for v := range o.cur.replaced {
		g.replaced[v] = true
	}
	for s, d := range o.cur.segments {
		g.segments[s] += d
	}
	for v, c := range o.cur.counters {
		x := g.counters[v]
		x.plus(c)
		g.counters[v] = x
	}
	g.n += o.cur.n
	o.cur = g
}

func (o *overlay) done() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ops.Add(-o.flushing.n)
	o.flushing = nil
	var n int64
	for _, ops := range o.cur.ops {
		for _, p := range ops {
			n += int64(len(p.rec))
		}
	}
	o.bytes.Store(n)
}

// pagesFrom returns, ascending, the pages of [from, to) of a branch that have
// operations.
func (o *overlay) pagesFrom(b cow.BranchID, from, to uint64) []uint64 {
	if o.ops.Load() == 0 {
		return nil
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	var out []uint64
	some := func(word, bits uint64) {
		for ; bits != 0; bits &= bits - 1 {
			if num := word*64 + uint64(mathbits.TrailingZeros64(bits)); num >= from && num < to {
				out = append(out, num)
			}
		}
	}
	first, last := from/64, (to+63)/64
	for _, g := range []*generation{o.flushing, o.cur} {
		switch {
		case g == nil:
		case last-first < uint64(len(g.present)):
			for word := first; word < last; word++ {
				some(word, g.present[pageKey{b, word}])
			}
		default:
			for k, bits := range g.present {
				if k.branch == b && k.page >= first && k.page < last {
					some(k.page, bits)
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// touchedBy returns, ascending, the pages for which there is an operation on a
// record of this version.
func (o *overlay) touchedBy(v cow.VersionID) []uint64 {
	o.mu.RLock()
	defer o.mu.RUnlock()
	out := slices.Clone(o.cur.touched[v])
	if o.flushing != nil {
		out = append(out, o.flushing.touched[v]...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// encode takes a dirty page's changes into the overlay. Called with pg.mu held.
func (p *Pool) encode(pg *page) {
	if !pg.Dirty && len(pg.segs) == 0 {
		return
	}
	var r cow.Record
	pg.Encode(&r)
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	if v := p.tree.Version(pg.Head); r.Full && v != nil && v.Parent == 0 && !p.tree.Joining(pg.Head) {
		r.DropHoles() // there is nothing below to hide
	}
	k := pageKey{pg.view.branch, pg.num}
	o := p.overlay
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case r.Full && r.Set.Empty():
		o.putLocked(k, op{pg.Head, opDelete, nil})
		pg.Loaded(false, pg.Applied)
	case r.Full:
		o.putLocked(k, op{pg.Head, opSet, r.Append(nil)})
	default:
		o.putLocked(k, op{pg.Head, opMerge, r.Append(nil)})
	}
	for _, id := range pg.Absorbed {
		o.putLocked(pageKey{p.tree.Version(id).Branch, pg.num}, op{id, opDelete, nil})
	}
	pg.Absorbed = pg.Absorbed[:0]
	for _, s := range pg.segs {
		o.segLocked(s.seg, s.delta)
	}
	pg.segs = pg.segs[:0]
	for _, r := range pg.replaced {
		o.replaceLocked(pg.Head, r.owner, r.n)
	}
	pg.replaced = pg.replaced[:0]
	o.countLocked(pg.Head, counts{pg.owned, pg.ref, pg.local})
	pg.owned, pg.ref, pg.local = 0, 0, 0
	p.noteScattered(pg)
}
