package lun

import (
	"slices"

	"lunar/cow"
	"lunar/reservation"
	"lunar/store/segment"
)

// rangeChunk is how many blocks one log record of TRIM or WRITE_ZEROES covers:
// 1 GiB where only existing pages are touched, 64 MiB where each page is made.
const (
	trimChunk = 1 << 18
	zeroChunk = 1 << 14
)

// Trim makes the whole blocks of the range holes. It is advice: blocks that
// would have to be kept in a full snapshot area stay.
func (v *Volume) Trim(off, n int64, fua bool) error {
	if err := v.mayWrite(off, n); err != nil {
		return err
	}
	first, last := (off+blockSize-1)/blockSize, (off+n)/blockSize
	if off+n == v.Size() {
		last = (off + n + blockSize - 1) / blockSize
	}
	_, err := v.eraseRange(uint64(first), uint64(max(first, last)), asAdvice)
	if err == nil && fua {
		// Where nothing was left to be done, what did it may not be durable yet.
		err = v.pool.sync(v.pool.log.Next() - 1)
	}
	return err
}

// Zero makes the range read as zeroes. With noHole, and on thick LUNs, the
// blocks stay charged, so that a later write of them cannot fail.
func (v *Volume) Zero(off, n int64, noHole, fua bool) error {
	if err := v.mayWrite(off, n); err != nil {
		return err
	}
	end := off + n
	first, last := (off+blockSize-1)/blockSize, end/blockSize
	if end == v.Size() {
		last = (end + blockSize - 1) / blockSize
	}
	how := asHole
	if noHole || v.pool.isThick(v.view.lun) {
		how = asZero
	}
	var err error
	if first > last || last*blockSize < off { // inside one block
		err, first = v.zeroPart(off, n, how), last
	} else if err = v.zeroPart(off, min(first*blockSize-off, n), how); err == nil {
		err = v.zeroPart(last*blockSize, end-last*blockSize, how)
	}
	if err == nil {
		_, err = v.eraseRange(uint64(first), uint64(last), how)
	}
	if err == nil && fua {
		err = v.pool.sync(v.pool.log.Next() - 1)
	}
	return err
}

// zeroPart zeroes a part of one block. What reads as zeroes already stays as it
// is: a hole is not filled for it, unless it has to be paid for.
func (v *Volume) zeroPart(off, n int64, how erasure) error {
	if n <= 0 {
		return nil
	}
	e := entryPool.Get().(*entries)
	defer entryPool.Put(e)
	block := uint64(off / blockSize)
	i := int(block % cow.PageBlocks)
	if err := v.lookup(block/cow.PageBlocks, i, 1, e); err != nil {
		return err
	}
	if e.loc[i] == cow.Zero || e.loc[i] == 0 && how == asHole {
		return nil
	}
	return v.write(make([]byte, n), off, false, false)
}

// fastZero is the least range, in bytes, that Zero is surely faster with than a
// write: one of 4 KiB takes as long as a write, or twice as long where the zeroes
// stay charged (measured).
const fastZero = 64 << 10

// FastZero says whether Zero of a range is faster than writing it: it is one
// record without data, unless there are parts of blocks to be written.
func (v *Volume) FastZero(off, n int64) bool {
	return n >= fastZero && off%blockSize == 0 && ((off+n)%blockSize == 0 || off+n == v.Size())
}

// erasure says what becomes of a range.
type erasure uint8

const (
	asAdvice erasure = iota // holes, as far as there is room to keep what snapshots hold
	asHole                  // holes
	asZero                  // zeroes that stay charged
	asCut                   // holes behind the end of the device: what snapshots hold of them goes to the area, above its limit too
)

// eraseRange maps the blocks first..last-1 to holes or to charged zeroes.
func (v *Volume) eraseRange(first, last uint64, how erasure) (segment.Seq, error) {
	chunk := uint64(trimChunk)
	if how == asZero {
		chunk = zeroChunk
	}
	var seq segment.Seq
	for first < last {
		n := min(last-first, chunk-first%chunk)
		s, err := v.erase(first, n, how)
		if err != nil {
			return 0, err
		}
		seq, first = max(seq, s), first+n
	}
	return seq, nil
}

func (v *Volume) erase(block, n uint64, how erasure) (segment.Seq, error) {
	e := eraser{writeOp: writePool.Get().(*writeOp), block: block, n: n, how: how}
	e.v = v
	defer e.release()
	var wait spaceWait
	for {
		if err := v.pool.admitLog(0, 1); err != nil {
			return 0, err
		}
		d, done, err := e.try()
		if done && e.last != 0 {
			return e.last, err
		}
		v.pool.log.Unadmit(0, 1)
		e.unpin() // who waits holds neither log credit nor pages
		switch {
		case err != nil || done:
			return 0, err
		case d.Verdict == reservation.Admit:
			continue // pages came up meanwhile
		case how == asAdvice && d.Reason == reservation.AreaFull:
			return 0, nil
		}
		if err := v.pool.waitForSpace(v.view.lun, d, &wait); err != nil {
			if n == 1 || !v.pool.fitsInParts(v.view.lun, d, err) {
				return 0, err
			}
			if _, err := v.erase(block, n/2, how); err != nil {
				return 0, err
			}
			return v.erase(block+n/2, n-n/2, how)
		}
	}
}

// eraser is a TRIM or WRITE_ZEROES on its way.
type eraser struct {
	*writeOp
	block, n uint64
	how      erasure
}

func (e *eraser) charged() bool { return e.how == asZero }

// pinAll pins every page of the range that has anything, or all of them where
// each will have something. It returns the count of births that it saw.
func (e *eraser) pinAll() (births uint64, err error) {
	e.unpin()
	births = e.v.view.births.Load()
	from, to := e.block/cow.PageBlocks, (e.block+e.n-1)/cow.PageBlocks+1
	nums, all, err := []uint64(nil), e.charged(), error(nil)
	if !all {
		nums, all, err = e.v.pool.existing(e.v.view, from, to)
	}
	if err != nil {
		return 0, err
	}
	if all {
		for num := from; num < to; num++ {
			nums = append(nums, num)
		}
	}
	for _, num := range nums {
		pg, err := e.v.view.get(num)
		if err != nil {
			return 0, err
		}
		e.pages = append(e.pages, pg)
	}
	return births, nil
}

func (e *eraser) try() (d reservation.Decision, done bool, err error) {
	births, err := e.pinAll()
	if err != nil {
		return d, false, err
	}
	v := e.v
	v.pool.gate.enter(v.shard)
	defer v.pool.gate.leave(v.shard)
	if v.view.frozen || v.view.dead.Load() {
		return d, false, errGone
	}
	// A page that was written for the first time since the pages were listed
	// would keep its blocks here, and lose them in a replay.
	if !e.charged() && births != v.view.births.Load() {
		return reservation.Decision{Verdict: reservation.Admit}, false, nil
	}
	if err := e.lockPages(); err != nil {
		return d, false, err
	}
	defer e.unlockPages()
	var g growth
	work := false
	for _, pg := range e.pages {
		from, k := e.within(pg.num)
		if e.charged() || !pg.Empty() {
			v.view.prepare(pg)
			g.add(v.view, pg, from, k, e.charged())
			work = true
		}
	}
	if !work {
		return d, true, nil
	}
	if e.how == asCut {
		v.pool.ledger.Charge(uint64(v.view.lun), g.live, g.area)
	} else if d = v.pool.admit(v.view, g); d.Verdict != reservation.Admit {
		return d, false, nil
	}
	return d, true, e.apply(g)
}

func (e *eraser) apply(g growth) error {
	v := e.v
	kind, loc := segment.Trim, uint64(0)
	if e.charged() {
		kind, loc = segment.Zero, cow.Zero
	}
	var err error
	e.extents, err = v.pool.log.Append(segment.Entry{Kind: kind, Version: uint64(v.view.version), Block: e.block, Count: e.n}, nil, false, e.extents[:0])
	if err != nil {
		v.pool.unadmit(v.view, g)
		return v.pool.logError(err)
	}
	e.last = e.extents[0].Seq
	for _, pg := range e.pages {
		if e.charged() || !pg.Empty() {
			from, k := e.within(pg.num)
			v.view.mapErase(pg, from, k, loc, e.last)
		}
	}
	v.pool.noteAppend(0, 1)
	return nil
}

// within returns the part of a page that the range covers.
func (e *eraser) within(num uint64) (from, k int) {
	lo := max(e.block, num*cow.PageBlocks)
	hi := min(e.block+e.n, (num+1)*cow.PageBlocks)
	return int(lo % cow.PageBlocks), int(hi - lo)
}

// mapErase maps k blocks to a hole or to charged zeroes; holes that nobody has
// anything under stay untouched.
func (v *view) mapErase(pg *page, from, k int, loc uint64, seq segment.Seq) {
	if loc != 0 {
		v.mapRange(pg, from, k, loc, nil, seq)
		return
	}
	for i := from; i < from+k; i++ {
		if pg.At(i).Loc != 0 {
			v.mapRange(pg, i, 1, 0, nil, seq)
		}
	}
	if pg.Dirty {
		pg.Applied = max(pg.Applied, uint64(seq))
	}
}

// existing lists the pages of [from, to) that have anything on the path of a
// view; all is true where looking would cost more than it saves.
func (p *Pool) existing(v *view, from, to uint64) (nums []uint64, all bool, err error) {
	if to-from <= 4 {
		return nil, true, nil
	}
	p.treeMu.RLock()
	path := p.tree.Path(v.version, nil)
	p.treeMu.RUnlock()
	for _, step := range path {
		p.viewMu.Lock()
		tip := p.tips[step.Branch]
		p.viewMu.Unlock()
		if tip != nil {
			nums = append(nums, tip.residentPages(from, to)...)
		}
		nums = append(nums, p.overlay.pagesFrom(step.Branch, from, to)...)
		err := p.index.Pages(uint64(step.Branch), from, to-1, func(num uint64) bool {
			nums = append(nums, num)
			return true
		})
		if err != nil {
			return nil, false, Errorf(ErrCorrupt, "reading the index: %w", err)
		}
	}
	slices.Sort(nums)
	return slices.Compact(nums), false, nil
}

// residentPages lists the pages of [from, to) that are in memory. All pages with
// anything unsaved are among them.
func (v *view) residentPages(from, to uint64) (nums []uint64) {
	for num := from; num < to; {
		end := min(to, num|511+1)
		if l := v.leafOf(num); l != nil {
			for ; num < end; num++ {
				if pg := l[num&511].Load(); pg != nil && pg.pins.Load() >= 0 {
					nums = append(nums, num)
				}
			}
		}
		num = end
	}
	return nums
}

// leafOf returns the part of the table that has a page, or nil.
func (v *view) leafOf(num uint64) *leaf {
	if n := v.root[num>>18].Load(); n != nil {
		return n[num>>9&511].Load()
	}
	return nil
}
