package lun

import (
	"sync"
	"sync/atomic"

	"lunar/cow"
)

// page is a cached page map. It is reached through its view without a lock; the
// map itself is guarded by mu. A page with pins < 0 has been evicted and must
// be looked up again.
type page struct {
	mu   sync.Mutex
	pins atomic.Int32
	used atomic.Bool // since the clock hand passed
	view *view
	num  uint64

	// guarded by mu
	cow.Page
	err  error // of loading; the page is not in its view any more
	segs []segDelta
	// replaced says of whom Page.Head replaced blocks since the last encode.
	replaced []pair
	owned    int64 // changes of the counters of Page.Head since the last encode
	ref      int64
	local    int64
	listed   bool // on the pool's list of dirty pages
}

type segDelta struct {
	seg   uint64
	delta int64
}

// addSeg notes that the page has n more (or fewer) blocks in a segment.
func (pg *page) addSeg(seg uint64, n int64) {
	for i := len(pg.segs) - 1; i >= 0 && i >= len(pg.segs)-4; i-- {
		if pg.segs[i].seg == seg {
			pg.segs[i].delta += n
			return
		}
	}
	pg.segs = append(pg.segs, segDelta{seg, n})
}

// addReplaced notes that the page's head replaced a block of another version.
func (pg *page) addReplaced(owner cow.VersionID) {
	for i := len(pg.replaced) - 1; i >= 0 && i >= len(pg.replaced)-4; i-- {
		if pg.replaced[i].owner == owner {
			pg.replaced[i].n++
			return
		}
	}
	pg.replaced = append(pg.replaced, pair{owner, 1})
}

func (pg *page) pin() bool {
	for {
		n := pg.pins.Load()
		if n < 0 {
			return false
		}
		if pg.pins.CompareAndSwap(n, n+1) {
			pg.used.Store(true)
			return true
		}
	}
}

func (pg *page) unpin() { pg.pins.Add(-1) }

// lock locks the page; it waits for whoever loads it, and fails as the load did.
func (pg *page) lock() error {
	pg.mu.Lock()
	if pg.err != nil {
		pg.mu.Unlock()
		return pg.err
	}
	return nil
}

// The pages of a view hang in a three-level table of 512 x 512 x 128 pages of
// 2 MiB: 64 TiB, the largest LUN.
type (
	leaf [512]atomic.Pointer[page]
	node [512]atomic.Pointer[leaf]
)

// view is the pages of one line of versions as seen from its tip: a LUN's head,
// or a frozen version that somebody reads. A snapshot of a head moves the view
// on to the new head; its pages stay.
type view struct {
	pool   *Pool
	branch cow.BranchID
	still  bool // a snapshot that somebody reads; never a head

	// These change only under the write side of the gate with treeMu held.
	version cow.VersionID
	lun     cow.LUNID
	size    int64
	frozen  bool // nothing is written through it (any more)
	ctr     *counter

	dead    atomic.Bool // rolled back or deleted: nothing is read either
	dirtyMu sync.Mutex
	dirty   []*page

	opens  int           // handles, guarded by Pool.viewMu
	slow   atomic.Int64  // until when its writers are held back, Unix nanoseconds
	births atomic.Uint64 // pages that the version touched for the first time
	root   [128]atomic.Pointer[node]
}

func (v *view) slot(num uint64, create bool) *atomic.Pointer[page] {
	r := &v.root[num>>18]
	n := r.Load()
	if n == nil {
		if !create {
			return nil
		}
		r.CompareAndSwap(nil, new(node))
		n = r.Load()
	}
	lp := &n[num>>9&511]
	l := lp.Load()
	if l == nil {
		if !create {
			return nil
		}
		lp.CompareAndSwap(nil, new(leaf))
		l = lp.Load()
	}
	return &l[num&511]
}

// resident returns the page pinned if it is in memory, else nil.
func (v *view) resident(num uint64) *page {
	s := v.slot(num, false)
	if s == nil {
		return nil
	}
	if pg := s.Load(); pg != nil && pg.pin() {
		return pg
	}
	return nil
}

// get returns the page pinned, loading it if need be. Two callers load once:
// the first holds the page's lock while it loads.
func (v *view) get(num uint64) (*page, error) {
	s := v.slot(num, true)
	for {
		if pg := s.Load(); pg != nil && pg.pin() {
			return pg, nil
		} else if pg != nil {
			s.CompareAndSwap(pg, nil) // evicted: whoever comes first takes it out
			continue
		}
		pg := v.pool.cache.take()
		pg.view, pg.num = v, num
		pg.mu.Lock()
		pg.pins.Store(1)
		pg.used.Store(true)
		if !s.CompareAndSwap(nil, pg) {
			pg.mu.Unlock()
			continue
		}
		err := v.pool.load(pg)
		if err != nil {
			pg.err = err
			s.CompareAndSwap(pg, nil)
			pg.mu.Unlock()
			pg.unpin()
			return nil, err
		}
		pg.mu.Unlock()
		v.pool.cache.add(pg)
		return pg, nil
	}
}

// drop takes all clean unused pages out of the view; they are loaded anew when
// they are needed.
func (v *view) drop() {
	for i := range v.root {
		n := v.root[i].Load()
		if n == nil {
			continue
		}
		for j := range n {
			l := n[j].Load()
			if l == nil {
				continue
			}
			for k := range l {
				pg := l[k].Load()
				if pg == nil || !pg.pin() {
					continue
				}
				pg.mu.Lock()
				dropped := pg.dropLocked()
				pg.mu.Unlock()
				if !dropped {
					pg.unpin()
				}
			}
		}
	}
}

// pageBytes is what a cached page costs: the arrays, owners and bookkeeping.
const pageBytes = 8 << 10

// cache bounds the pages in memory. Clean unpinned pages leave by a clock;
// dirty ones stay until a checkpoint has taken them.
type cache struct {
	mu    sync.Mutex
	ring  []*page
	hand  int
	limit int
}

func (c *cache) take() *page { return &page{} }

func (c *cache) add(pg *page) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for tries := 0; len(c.ring) >= c.limit && tries < 8; tries++ {
		if !c.evictLocked() {
			break
		}
	}
	c.ring = append(c.ring, pg)
}

// shrink takes out what a checkpoint has made clean and is above the limit.
func (c *cache) shrink() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.ring) > c.limit && c.evictLocked() {
	}
}

// evictLocked takes one page out. It gives up after a turn and a half, when
// everything is dirty or in use.
func (c *cache) evictLocked() bool {
	for range len(c.ring) + len(c.ring)/2 {
		if len(c.ring) == 0 {
			return false // all that was in it had been dropped
		}
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		pg := c.ring[c.hand]
		if pg.pins.Load() == 0 && !pg.used.Swap(false) && pg.evict() {
			last := len(c.ring) - 1
			c.ring[c.hand] = c.ring[last]
			c.ring[last] = nil
			c.ring = c.ring[:last]
			return true
		}
		if pg.pins.Load() < 0 {
			last := len(c.ring) - 1
			c.ring[c.hand] = c.ring[last]
			c.ring[last] = nil
			c.ring = c.ring[:last]
			continue
		}
		c.hand++
	}
	return false
}

// evict takes an unused clean page out of its view.
func (pg *page) evict() bool {
	if !pg.mu.TryLock() {
		return false
	}
	defer pg.mu.Unlock()
	if pg.Dirty || len(pg.segs) > 0 || !pg.pins.CompareAndSwap(0, -1) {
		return false
	}
	if s := pg.view.slot(pg.num, false); s != nil {
		s.CompareAndSwap(pg, nil)
	}
	return true
}

// dropLocked takes a clean page that only the caller has pinned out of its view,
// and says whether it did; the caller's pin is gone then. Called with pg.mu.
func (pg *page) dropLocked() bool {
	if pg.Dirty || len(pg.segs) > 0 || !pg.pins.CompareAndSwap(1, -1) {
		return false
	}
	if s := pg.view.slot(pg.num, false); s != nil {
		s.CompareAndSwap(pg, nil)
	}
	return true
}
