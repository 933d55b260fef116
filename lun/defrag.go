package lun

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"lunar/cow"
	"lunar/store/segment"
)

const (
	quietTicks   = 3       // seconds without a write before scattered pages are put together
	mostNoted    = 1 << 18 // pages that are remembered: 512 GiB of LUNs
	defragBlocks = 1 << 16 // put together between two checkpoints: 256 MiB
)

// defrag puts the blocks of heads together that random writes scattered. It knows
// the pages that are worth it: each is looked at when it is loaded and when its
// changes are encoded, so that an idle pool in order costs nothing.
type defrag struct {
	least int
	held  int64 // blocks in the pool when it was opened

	mu    sync.Mutex
	noted map[pageKey]struct{}

	// The cleaner's own.
	asked uint64 // bytes that clients had written at the last tick
	quiet int    // ticks since that changed
	spent int64  // blocks put together
}

// noteScattered remembers a head's page if it is worth putting together. Called
// with pg.mu.
func (p *Pool) noteScattered(pg *page) {
	if pg.view.still || p.opts.NoDefragment {
		return
	}
	var ws [cow.PageBlocks / windowBlocks]window
	if len(scattered(pg.Locations(), p.defrag.least, ws[:0])) == 0 {
		return
	}
	d := &p.defrag
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.noted == nil {
		d.noted = map[pageKey]struct{}{}
	}
	if len(d.noted) < mostNoted {
		d.noted[pageKey{pg.view.branch, pg.num}] = struct{}{}
	}
}

// pages is how many pages are remembered.
func (d *defrag) pages() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.noted)
}

// some returns remembered pages in the order of their LUNs.
func (d *defrag) some() []pageKey {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]pageKey, 0, len(d.noted))
	for k := range d.noted {
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b pageKey) int { return cmp.Or(cmp.Compare(a.branch, b.branch), cmp.Compare(a.page, b.page)) })
	return out
}

func (d *defrag) forget(k pageKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.noted, k)
}

// clientBytes is what was appended to the log other than copies.
func (p *Pool) clientBytes() uint64 {
	return p.log.Stats().PayloadBytes - uint64(p.moved.Load())*blockSize
}

// defragDue says, once a second, whether nobody has written for a while and there is
// something to put together.
func (p *Pool) defragDue() bool {
	d := &p.defrag
	if asked := p.clientBytes(); asked != d.asked {
		d.asked, d.quiet = asked, 0
		return false
	}
	d.quiet++
	return d.quiet >= quietTicks && d.pages() > 0 && p.whyReadOnly() == nil
}

// defragment puts scattered pages together until none is left, the budget is spent, or
// stop says so, which is asked after each page. It reports what it did.
func (p *Pool) defragment(stop func(worked time.Duration) bool) error {
	d := &p.defrag
	began, before, pages := time.Now(), d.spent, 0
	defer func() {
		if d.spent > before {
			p.event("defragment", "", fmt.Sprintf("%s in %d pages put together in %s, %d pages left",
				human((d.spent-before)*blockSize), pages, time.Since(began).Round(time.Millisecond), d.pages()))
		}
	}()
	if more, err := p.mayDefragment(); err != nil || !more {
		return err
	}
	since := int64(0)
	for _, k := range d.some() {
		if since >= defragBlocks {
			if err := p.Checkpoint(); err != nil {
				return err
			}
			since = 0
		}
		if more, err := p.mayDefragment(); err != nil || !more {
			return err
		}
		at := time.Now()
		n, err := p.defragPage(k)
		if err != nil {
			return err
		}
		d.spent, since, pages = d.spent+n, since+n, pages+1
		if stop(time.Since(at)) {
			return nil
		}
	}
	return nil
}

// mayDefragment says whether there is a budget. Where segments that wait for a
// checkpoint are what lacks, it makes one, and they are there another time.
func (p *Pool) mayDefragment() (bool, error) {
	p.high.Store(int64(p.highMark()))
	written := int64(p.clientBytes() / blockSize)
	budget := defragBudget(p.defrag.held, written, p.defrag.spent, p.log.Available(), int(p.high.Load()), int(p.space.blocks))
	if budget >= cow.PageBlocks {
		return true, nil
	}
	if p.entries.Load() > 0 && p.space.hasUnreleased() {
		return false, p.Checkpoint()
	}
	return false, nil
}

// gathered is what was read of a page, to be put together.
type gathered struct {
	placed []placed // version is the block's owner
	bytes  []byte
}

// defragPage puts the scattered windows of one page together.
func (p *Pool) defragPage(k pageKey) (int64, error) {
	p.cleanMu.Lock()
	defer p.cleanMu.Unlock()
	p.viewMu.Lock()
	v := p.tips[k.branch]
	p.viewMu.Unlock()
	if v == nil {
		p.defrag.forget(k)
		return 0, nil
	}
	var g gathered
	b := p.buf.Get(cow.PageBlocks * blockSize)
	defer p.buf.Put(b)
	g.bytes = b[:0]
	err := p.gather(v, k.page, &g)
	p.defrag.forget(k) // before the blocks move: whoever encodes the page then looks at it again
	if err != nil || len(g.placed) == 0 {
		return 0, err
	}
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	live, err := p.livingOf(k.page, &g)
	if err != nil {
		return 0, err
	}
	index := map[uint64]int{}
	for i, x := range g.placed {
		index[x.block] = i
	}
	return p.moveLiving(k.page, live, func(run []living) []byte {
		i := index[run[0].block] // neighbours in the page are neighbours in what was read
		return g.bytes[i*blockSize : (i+len(run))*blockSize]
	})
}

// gather reads the scattered windows of a page, outside of all locks: a window whose
// blocks cannot all be read, or change meanwhile, is left as it is.
func (p *Pool) gather(v *view, num uint64, g *gathered) error {
	phase := p.grace.enter(0)
	defer p.grace.leave(0, phase)
	pg, err := v.get(num)
	if err != nil {
		return err
	}
	defer pg.unpin()
	if err := pg.lock(); err != nil {
		return err
	}
	var e entries
	var owner [cow.PageBlocks]cow.VersionID
	for i := range cow.PageBlocks {
		x := pg.At(i)
		e.loc[i], e.crc[i], owner[i] = x.Loc, x.CRC, x.Owner
	}
	pg.mu.Unlock()
	windows := scattered(&e.loc, p.defrag.least, nil)
	for _, w := range windows {
		p.prefetch(e.loc[w.from : w.from+windowBlocks])
	}
	for _, w := range windows {
		have, size := len(g.placed), len(g.bytes)
		for i := w.from; i < w.from+windowBlocks; i++ {
			if !cow.Stored(e.loc[i]) {
				continue
			}
			g.placed = append(g.placed, placed{version: owner[i], block: num*cow.PageBlocks + uint64(i), loc: e.loc[i], crc: e.crc[i]})
			g.bytes = g.bytes[:len(g.bytes)+blockSize]
		}
		if !p.readWindow(g.placed[have:], g.bytes[size:]) {
			g.placed, g.bytes = g.placed[:have], g.bytes[:size]
		}
	}
	return nil
}

// readWindow reads blocks from where they lie, and says whether all are what they should be.
func (p *Pool) readWindow(blocks []placed, b []byte) bool {
	for i := 0; i < len(blocks); {
		run := 1
		for i+run < len(blocks) && blocks[i+run].loc == blocks[i].loc+uint64(run) && p.space.segment(blocks[i+run].loc) == p.space.segment(blocks[i].loc) {
			run++
		}
		if p.log.Read(b[i*blockSize:(i+run)*blockSize], segment.Loc(blocks[i].loc)) != nil {
			return false
		}
		i += run
	}
	for i, x := range blocks {
		if segment.Checksum(b[i*blockSize:(i+1)*blockSize]) != x.crc {
			return false
		}
	}
	return true
}

// livingOf finds where the entries of what was read are stored, in the order of the
// blocks: in one pass over the page's records on each branch, since each block may have
// an owner of its own. Called with adminMu.
func (p *Pool) livingOf(num uint64, g *gathered) ([]living, error) {
	owned := map[cow.VersionID][]placed{}
	for _, x := range g.placed {
		owned[x.version] = append(owned[x.version], x)
	}
	branches := map[cow.BranchID][]cow.VersionID{}
	for o := range owned {
		if v := p.tree.Version(o); v != nil {
			branches[v.Branch] = append(branches[v.Branch], o)
		}
	}
	var live []living
	for b, owners := range branches {
		var err error
		if live, err = p.livingOn(b, num, owners, owned, live); err != nil {
			return nil, err
		}
	}
	for _, ps := range owned { // merged into another meanwhile
		var err error
		if live, err = p.living(num, ps, live); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(live, func(a, b living) int { return cmp.Compare(a.block, b.block) })
	return live, nil
}

// livingOn finds the blocks whose entries are stored on one branch, and takes their
// owners out of owned.
func (p *Pool) livingOn(b cow.BranchID, num uint64, owners []cow.VersionID, owned map[cow.VersionID][]placed, live []living) ([]living, error) {
	least, most := slices.Min(owners), slices.Max(owners)
	p.settle(b, num, most, nil)
	it := p.records(b, num, most)
	for it.next() && it.version >= least {
		ps := owned[it.version]
		if ps == nil {
			continue
		}
		if err := it.record(); err != nil {
			return live, errors.Join(err, it.close())
		}
		was := len(live)
		live = appendLiving(live, holder{it.version, b}, &it.rec, ps)
		if len(live) == was+len(ps) {
			delete(owned, it.version)
		} else {
			live = live[:was]
		}
	}
	return live, it.close()
}
