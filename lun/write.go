package lun

import (
	"sync"
	"time"

	"lunar/cow"
	"lunar/reservation"
	"lunar/store/segment"
)

// WriteAt writes a copy of p at off. With fua it returns when p is durable.
func (v *Volume) WriteAt(p []byte, off int64, fua bool) error {
	return v.write(p, off, fua, false)
}

// WriteOwned writes p, got from Buffer, at off; p belongs to the pool from now
// on, in every outcome.
func (v *Volume) WriteOwned(p []byte, off int64, fua bool) error {
	if off%blockSize == 0 && len(p)%blockSize == 0 {
		return v.write(p, off, fua, true)
	}
	err := v.write(p, off, fua, false)
	v.Discard(p)
	return err
}

func (v *Volume) write(p []byte, off int64, fua, owned bool) error {
	err := v.mayWrite(off, int64(len(p)))
	if err != nil || len(p) == 0 {
		if owned {
			v.Discard(p)
		}
		return err
	}
	w := writePool.Get().(*writeOp)
	defer w.release()
	w.v = v
	if off%blockSize == 0 && len(p)%blockSize == 0 {
		err = w.blocks(p, uint64(off/blockSize), owned)
	} else {
		err = w.partial(p, off)
	}
	if err == nil && fua {
		err = v.pool.sync(w.last)
	}
	return err
}

func (v *Volume) mayWrite(off, n int64) error {
	if v.ro {
		return errRO
	}
	if err := v.pool.writable(); err != nil {
		return err
	}
	return v.bounds(off, n)
}

// writeOp is one write on its way: what it pinned and what the log gave it.
type writeOp struct {
	v       *Volume
	pages   []*page
	crcs    []uint32
	extents []segment.Extent
	last    segment.Seq
	now     bool      // fail with errWouldWait rather than wait
	until   time.Time // the end of waiting for space, once it began
	// A read-modify-write read these locations; mapping fails if they changed.
	edges []edge
}

type edge struct {
	block uint64
	loc   uint64
	crc   uint32
}

var writePool = sync.Pool{New: func() any { return new(writeOp) }}

func (w *writeOp) release() {
	w.unpin()
	w.v, w.crcs, w.extents, w.edges, w.last = nil, w.crcs[:0], w.extents[:0], w.edges[:0], 0
	w.now, w.until = false, time.Time{}
	writePool.Put(w)
}

func (w *writeOp) unpin() {
	for i, pg := range w.pages {
		pg.unpin()
		w.pages[i] = nil
	}
	w.pages = w.pages[:0]
}

func (w *writeOp) pin(block uint64, n int) error {
	for num := block / cow.PageBlocks; num <= (block+uint64(n)-1)/cow.PageBlocks; num++ {
		pg, err := w.v.view.get(num)
		if err != nil {
			return err
		}
		w.pages = append(w.pages, pg)
	}
	return nil
}

// partial writes bytes that do not fill whole blocks: it reads the edges,
// and begins again if one of them was written by somebody else in between.
func (w *writeOp) partial(p []byte, off int64) error {
	first := uint64(off / blockSize)
	n := int((off+int64(len(p))+blockSize-1)/blockSize - int64(first))
	for {
		b := w.v.pool.buffers().Get(n * blockSize)
		b = b[:n*blockSize]
		w.edges = w.edges[:0]
		err := w.edge(b[:blockSize], first)
		if err == nil && n > 1 {
			err = w.edge(b[(n-1)*blockSize:], first+uint64(n)-1)
		}
		if err != nil {
			w.v.Discard(b)
			return err
		}
		copy(b[off-int64(first)*blockSize:], p)
		if err = w.blocks(b, first, true); err == errWouldWait {
			w.v.Discard(b)
		}
		if err != errChanged {
			return err
		}
		w.unpin()
	}
}

// edge reads a block together with the location that it was read from.
func (w *writeOp) edge(b []byte, block uint64) error {
	e := entryPool.Get().(*entries)
	defer entryPool.Put(e)
	i := int(block % cow.PageBlocks)
	for {
		phase := w.v.pool.grace.enter(w.v.shard)
		err := w.v.lookup(block/cow.PageBlocks, i, 1, e)
		bad := 0
		if err == nil {
			bad, err = w.v.pool.fetch(b, i, 1, e)
		}
		w.v.pool.grace.leave(w.v.shard, phase)
		if err != nil {
			return err
		}
		if bad < 0 {
			w.edges = append(w.edges, edge{block, e.loc[i], e.crc[i]})
			return nil
		}
		// It was moved meanwhile, or it is damaged; a read tells which.
		if err := w.v.readBlocks(b, block); err != nil {
			return err
		}
	}
}

var errChanged = Errorf(ErrRefused, "edge block changed")

// blocks writes whole blocks: memory and log room first, then pages, then
// admission, sequence and mapping inside the gate.
func (w *writeOp) blocks(p []byte, block uint64, owned bool) error {
	v, n := w.v, len(p)/blockSize
	w.crcs = w.crcs[:0]
	for i := range n {
		w.crcs = append(w.crcs, segment.Checksum(p[i*blockSize:(i+1)*blockSize]))
	}
	wait := spaceWait{until: w.until}
	for {
		d, done, err := w.attempt(p, block, owned)
		if done {
			if d.Throttle > 0 {
				v.view.slow.Store(time.Now().Add(slowFor).UnixNano())
				v.pool.slowDown(v.view.lun, d.Throttle)
			}
			return nil
		}
		if err == nil && w.now {
			err = errWouldWait
		}
		if err == nil {
			if err = v.pool.waitForSpace(v.view.lun, d, &wait); n > 1 && v.pool.fitsInParts(v.view.lun, d, err) {
				w.until = wait.until
				return w.halves(p, block, owned)
			}
		}
		if err != nil {
			if owned && err != errWouldWait {
				v.Discard(p)
			}
			return err
		}
	}
}

// halves writes a request in two parts, each of them a request of its own as if the client had sent it so.
func (w *writeOp) halves(p []byte, block uint64, owned bool) error {
	if owned {
		defer w.v.Discard(p)
	}
	half := len(p) / blockSize / 2
	if err := w.blocks(p[:half*blockSize], block, false); err != nil {
		return err
	}
	w.unpin()
	return w.blocks(p[half*blockSize:], block+uint64(half), false)
}

// attempt writes if there is space for it. Otherwise it leaves no log credit
// and no pages behind: who waits for space holds up nobody else.
func (w *writeOp) attempt(p []byte, block uint64, owned bool) (d reservation.Decision, done bool, err error) {
	v, n := w.v, len(p)/blockSize
	if w.now {
		if !v.pool.roomNow(n, 1) {
			return d, false, errWouldWait
		}
	} else if err := v.pool.admitLog(n, 1); err != nil {
		return d, false, err
	}
	if err = w.pin(block, n); err == nil {
		d, done, err = w.tryMap(p, block, owned)
	}
	if !done {
		v.pool.log.Unadmit(n, 1)
		w.unpin()
	}
	return d, done, err
}

func (w *writeOp) tryMap(p []byte, block uint64, owned bool) (d reservation.Decision, done bool, err error) {
	v, n := w.v, len(p)/blockSize
	v.pool.gate.enter(v.shard)
	defer v.pool.gate.leave(v.shard)
	if v.view.frozen || v.view.dead.Load() {
		return d, false, errGone
	}
	if int64(block+uint64(n))*blockSize > (v.view.size+blockSize-1)/blockSize*blockSize {
		return d, false, errBounds
	}
	if err := w.lockPages(); err != nil {
		return d, false, err
	}
	defer w.unlockPages()
	for _, e := range w.edges {
		if e.block < block || e.block >= block+uint64(n) {
			continue // in the other half
		}
		loc, crc := w.pageOf(e.block).Lookup(int(e.block % cow.PageBlocks))
		if loc != e.loc || crc != e.crc {
			return d, false, errChanged
		}
	}
	var g growth
	for i := 0; i < n; {
		pg, from, k := w.part(block, i, n)
		v.view.prepare(pg)
		g.add(v.view, pg, from, k, true)
		i += k
	}
	if d = v.pool.admit(v.view, g); d.Verdict != reservation.Admit {
		return d, false, nil
	}
	w.extents, err = v.pool.log.Append(segment.Entry{
		Kind: segment.Data, Version: uint64(v.view.version), Block: block, Count: uint64(n), CRCs: w.crcs,
	}, p, owned, w.extents[:0])
	if err != nil {
		v.pool.unadmit(v.view, g)
		return d, false, v.pool.logError(err)
	}
	for _, x := range w.extents {
		w.place(block, x)
	}
	v.pool.noteAppend(n, len(w.extents))
	return d, true, nil
}

// part returns the page that block+i lies in, the index in it, and how many of
// the blocks i..n are in it.
func (w *writeOp) part(block uint64, i, n int) (pg *page, from, k int) {
	at := block + uint64(i)
	from = int(at % cow.PageBlocks)
	return w.pageOf(at), from, min(cow.PageBlocks-from, n-i)
}

func (w *writeOp) pageOf(block uint64) *page { return w.pages[block/cow.PageBlocks-w.pages[0].num] }

func (w *writeOp) lockPages() error {
	for i, pg := range w.pages {
		if err := pg.lock(); err != nil {
			for _, q := range w.pages[:i] {
				q.mu.Unlock()
			}
			return err
		}
	}
	return nil
}

func (w *writeOp) unlockPages() {
	for _, pg := range w.pages {
		pg.mu.Unlock()
	}
}

// place maps one extent that the log gave.
func (w *writeOp) place(block uint64, x segment.Extent) {
	for i := 0; i < x.Count; {
		pg, from, k := w.part(block, x.First+i, x.First+x.Count)
		w.v.view.mapRange(pg, from, k, uint64(x.Loc)+uint64(i), w.crcs[x.First+i:], x.Seq)
		i += k
	}
	w.last = x.Seq
}

// prepare makes a locked page ready to take changes of the view's version.
// Called in the gate.
func (v *view) prepare(pg *page) {
	if pg.Head != v.version {
		v.pool.encode(pg)
		pg.Advance(v.version)
	}
	if !pg.Has {
		v.births.Add(1)
		pg.Absorb(v.absorbable)
		if pg.Dirty {
			v.pool.markDirty(pg)
		}
	}
}

// absorbable resolves ids merged into a version of the same LUN. A merge counts
// from the checkpoint that covers its begin: replay must not meet an absorbed
// record together with the entries that filled it.
func (v *view) absorbable(id cow.VersionID) cow.VersionID {
	t := v.pool.tree
	x := t.Version(id)
	if x == nil || x.LUN != v.lun || x.State == cow.Merging && v.pool.mergeNew.Load() {
		return id
	}
	return t.Canonical(id)
}

// mapRange maps k blocks from index from on to consecutive locations and
// settles what that changes. Called in the gate with the page locked.
func (v *view) mapRange(pg *page, from, k int, loc uint64, crcs []uint32, seq segment.Seq) {
	sp := v.pool.space
	var c counts
	pay := payer{view: v}
	for i := range k {
		l := loc
		if cow.Stored(loc) {
			l += uint64(i)
		}
		crc := uint32(0)
		if crcs != nil {
			crc = crcs[i]
		}
		old := pg.Set(from+i, l, crc)
		c.plus(pay.change(pg.Head, old, loc != 0))
		switch {
		case old.Owner != pg.Head:
			if cow.Charged(old.Loc) {
				pg.addReplaced(old.Owner)
			}
		case cow.Stored(old.Loc):
			v.freeLocked(pg, old.Loc)
		}
	}
	if cow.Stored(loc) {
		seg := sp.segment(loc)
		sp.of(seg).live.Add(int64(k))
		pg.addSeg(seg, int64(k))
	}
	pg.owned, pg.ref, pg.local = pg.owned+c.owned, pg.ref+c.ref, pg.local+c.local
	v.ctr.add(c)
	pg.Applied = max(pg.Applied, uint64(seq))
	v.pool.markDirty(pg)
}

// freeLocked gives back a block that only this page named.
func (v *view) freeLocked(pg *page, loc uint64) {
	seg := v.pool.space.segment(loc)
	v.pool.space.lose(seg)
	pg.addSeg(seg, -1)
}

func (c *counts) plus(n counts) {
	c.owned += n.owned
	c.ref += n.ref
	c.local += n.local
}

// payer says what a change of one block does to the counters of the view's
// version (docs/CAPACITY.md). It remembers the last owner's LUN.
type payer struct {
	view *view
	last cow.VersionID
	same bool
}

func (p *payer) sameLUN(owner cow.VersionID) bool {
	if owner != p.last {
		p.last, p.same = owner, p.view.pool.tree.Payer(owner) == p.view.lun
	}
	return p.same
}

// change returns the change of the counters when old is replaced by a charged
// block or by a hole.
func (p *payer) change(head cow.VersionID, old cow.Entry, charged bool) (c counts) {
	if charged {
		c = counts{1, 1, 1}
	}
	if !cow.Charged(old.Loc) {
		return c
	}
	c.ref--
	if old.Owner == head {
		c.owned--
	}
	if old.Owner == head || p.sameLUN(old.Owner) {
		c.local--
	}
	return c
}

// growth is what a request adds to a LUN's live data and snapshot area.
type growth struct{ live, area int64 }

// add counts the k blocks from index from on of a prepared page.
func (g *growth) add(v *view, pg *page, from, k int, charged bool) {
	pay := payer{view: v}
	for i := from; i < from+k; i++ {
		c := pay.change(pg.Head, pg.At(i), charged)
		g.live += c.local
		g.area += c.owned - c.local
	}
}
