package lun

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	"lunar/cow"
	"lunar/store/segment"
)

// waiting is what replay read from the log and has not mapped yet. Between two structural changes only the order within
// a page matters, so that each page is loaded, locked and encoded once for all of its entries, in the order of the
// index, by several workers that have no page in common.
type waiting struct {
	parts [replayWorkers][]waitingPart
	crcs  []uint32
	n     int
	takes sync.Mutex // one worker at a time takes the dirty pages
}

const (
	replayWorkers = 2
	noCRCs        = -1
	waitingBytes  = 64 // of a part in memory
	leastWaiting  = 1 << 14
	mostWaiting   = 1 << 20
	waitingShare  = 4 // the part of index.cache that is used, 1/n
)

// waitingPart is what an entry of the log does to one page.
type waitingPart struct {
	view    *view
	num     uint64
	seq     segment.Seq
	loc     uint64 // of the first block; 0 and cow.Zero for all
	crcs    int    // where in waiting.crcs, or noCRCs
	from, k int
}

// keep copies checksums, which are the log's, and returns where they are.
func (q *waiting) keep(crcs []uint32) int {
	q.crcs = append(q.crcs, crcs...)
	return len(q.crcs) - len(crcs)
}

// add cuts an entry into its pages. 64 neighbours go to one worker: they are read from the same block of the index.
func (q *waiting) add(v *view, e segment.Entry, seq segment.Seq, loc uint64, crcs int) {
	for i := 0; i < int(e.Count); {
		block := e.Block + uint64(i)
		x := waitingPart{view: v, num: block / cow.PageBlocks, seq: seq, loc: loc, crcs: crcs, from: int(block % cow.PageBlocks)}
		x.k = min(cow.PageBlocks-x.from, int(e.Count)-i)
		if crcs != noCRCs {
			x.loc, x.crcs = loc+uint64(i), crcs+i
		}
		w := &q.parts[x.num/64%replayWorkers]
		*w = append(*w, x)
		q.n++
		i += x.k
	}
}

// free gives its memory back.
func (q *waiting) free() { q.parts, q.crcs = [replayWorkers][]waitingPart{}, nil }

// boundWaiting maps what waits once it takes its share of the memory.
func (p *Pool) boundWaiting() error {
	most := min(max(p.opts.IndexCache/waitingShare/waitingBytes, leastWaiting), mostWaiting)
	if p.rebuilding {
		most = leastWaiting // what it encodes waits for boundRebuild
	}
	if int64(p.waiting.n) < most {
		return nil
	}
	return p.replayWaiting()
}

// replayWaiting maps all that waits.
func (p *Pool) replayWaiting() error {
	q := &p.waiting
	if q.n == 0 {
		return nil
	}
	var errs [replayWorkers]error
	var others sync.WaitGroup
	for i, parts := range q.parts {
		switch {
		case len(parts) == 0:
		case p.opts.Manual || i == replayWorkers-1:
			errs[i] = p.replayParts(parts)
		default:
			others.Go(func() { errs[i] = p.replayParts(parts) })
		}
	}
	others.Wait()
	for i := range q.parts {
		clear(q.parts[i])
		q.parts[i] = q.parts[i][:0]
	}
	q.n, q.crcs = 0, q.crcs[:0]
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return p.boundRebuild()
}

// replayParts maps the parts of one worker.
func (p *Pool) replayParts(parts []waitingPart) error {
	slices.SortFunc(parts, func(a, b waitingPart) int {
		return cmp.Or(cmp.Compare(a.view.branch, b.view.branch), cmp.Compare(a.num, b.num), cmp.Compare(a.seq, b.seq))
	})
	for len(parts) > 0 {
		n := 1
		for n < len(parts) && parts[n].view == parts[0].view && parts[n].num == parts[0].num {
			n++
		}
		if err := p.replayPage(parts[:n], p.waiting.crcs); err != nil {
			return err
		}
		parts = parts[n:]
	}
	return nil
}

// replayPage applies the parts of one page, oldest first, of which the index is not ahead.
func (p *Pool) replayPage(parts []waitingPart, crcs []uint32) error {
	v := parts[0].view
	pg, err := v.get(parts[0].num)
	if err != nil {
		return fmt.Errorf("replaying entry %d: %w", parts[0].seq, err)
	}
	defer pg.unpin()
	if err := pg.lock(); err != nil {
		return err
	}
	v.prepare(pg)
	for _, x := range parts {
		switch {
		case pg.Applied >= uint64(x.seq):
		case x.crcs != noCRCs:
			v.mapRange(pg, x.from, x.k, x.loc, crcs[x.crcs:], x.seq)
		case x.loc != 0 || !pg.Empty():
			v.mapErase(pg, x.from, x.k, x.loc, x.seq)
		}
	}
	p.encode(pg)
	pg.mu.Unlock()
	p.boundReplay()
	return nil
}

// boundReplay keeps the pages in memory within the cache while nothing is committed: encoded pages are small.
func (p *Pool) boundReplay() {
	if p.dirty.Load() <= int64(p.cache.limit/2) {
		return
	}
	p.waiting.takes.Lock()
	defer p.waiting.takes.Unlock()
	if p.dirty.Load() <= int64(p.cache.limit/2) {
		return // another worker was here
	}
	for _, v := range p.allViews() {
		p.takeDirty(v)
	}
}
