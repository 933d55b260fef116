package lun

import (
	"context"
	"errors"
	"time"

	"lunar/cow"
	"lunar/reservation"
	"lunar/store/segment"
)

// admit asks the ledger for a request's growth. Called in the gate, so that the
// growth is exact and is settled at once. It never waits.
func (p *Pool) admit(v *view, g growth) reservation.Decision {
	if g == (growth{}) {
		return reservation.Decision{Verdict: reservation.Admit}
	}
	d := p.ledger.Admit(uint64(v.lun), g.live, g.area)
	if d.Verdict == reservation.Admit {
		p.ledger.Settle(uint64(v.lun), g.live, g.area, g.live, g.area)
	}
	return d
}

func (p *Pool) unadmit(v *view, g growth) { p.ledger.Release(uint64(v.lun), g.live, g.area) }

// admitLog waits for memory and log room for a write, outside every lock. When
// segments are short, writers wait their turn in proportion. A writer fails for
// want of a segment only if none came back for as long as it may wait: what is
// promised has its place, and the cleaner is on its way to it.
func (p *Pool) admitLog(blocks, entries int) error {
	if p.appended.Load() > 2*checkpointBytes/blockSize || p.entries.Load() > 2*checkpointEntries || p.overlayFull() {
		if err := p.behindCheckpoint(); err != nil {
			return err
		}
	}
	if pressure := p.pressure(); pressure > 0 {
		p.janitor.kick(jobClean)
		if d := p.pace.delay(blocks+entries, pressure, p.leftByOthers(), time.Now()); d > time.Millisecond && !p.opts.Manual {
			time.Sleep(d)
		}
	}
	// The common case has room and needs no timer.
	if p.log.Admit(noWait, blocks, entries) == nil {
		return nil
	}
	if p.opts.Manual {
		return p.admitManual(blocks, entries)
	}
	for {
		released, written := p.space.released.Load(), p.log.Stats().Written
		ctx, cancel := context.WithTimeout(background(), p.spaceWait())
		err := p.log.Admit(ctx, blocks, entries)
		cancel()
		stuck := p.space.released.Load() == released && p.log.Stats().Written == written && !p.checking.Load()
		if err == nil || stuck || !errors.Is(err, context.DeadlineExceeded) {
			return p.logError(err)
		}
	}
}

// admitManual cleans itself, as nobody else does. The log's own goroutines have
// some time for what they do.
func (p *Pool) admitManual(blocks, entries int) error {
	for try := 0; ; try++ {
		if err := p.makeRoom(); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(background(), 50*time.Millisecond)
		err := p.log.Admit(ctx, blocks, entries)
		cancel()
		late := !errors.Is(err, segment.ErrFull) && try < 600 || try < 40
		if !late || !errors.Is(err, context.DeadlineExceeded) {
			return p.logError(err)
		}
	}
}

// noWait is a context that has ended: who waits with it does not.
var noWait = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// overlayFull says that what waits for a checkpoint takes too much memory.
func (p *Pool) overlayFull() bool {
	return p.overlay.bytes.Load() > 256<<20 || p.dirty.Load() > int64(max(4096, p.cache.limit))
}

// behindCheckpoint makes a writer wait for the checkpoint that it is ahead of.
func (p *Pool) behindCheckpoint() error {
	p.janitor.kick(jobCheckpoint)
	if p.opts.Manual {
		return p.Checkpoint()
	}
	ctx, cancel := context.WithTimeout(background(), time.Minute)
	defer cancel()
	for p.appended.Load() > 2*checkpointBytes/blockSize || p.entries.Load() > 2*checkpointEntries || p.overlayFull() {
		wait := p.spaceBack.wait()
		select {
		case <-wait:
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return Errorf(ErrNoSpace, "the checkpoint is more than a minute behind; the disk is too slow: %w", errIO)
		}
		if err := p.writable(); err != nil {
			return err
		}
	}
	return nil
}

// noteAppend counts what was appended since the last checkpoint.
func (p *Pool) noteAppend(blocks, entries int) {
	b := p.appended.Add(int64(blocks))
	e := p.entries.Add(int64(entries))
	if e == int64(entries) {
		p.janitor.stir() // the first since a checkpoint
	}
	if b > checkpointBytes/blockSize || e > checkpointEntries || p.dirty.Load() > int64(max(2048, p.cache.limit/2)) {
		p.janitor.kick(jobCheckpoint)
	}
}

// noteHeaders counts the headers of the records since it was called last: where each write is flushed by itself, they
// are half of what a recovery has to read.
func (p *Pool) noteHeaders() {
	now := int64(p.log.Records())
	for {
		old := p.headers.Load()
		if now <= old {
			return
		}
		if p.headers.CompareAndSwap(old, now) {
			p.noteAppend(int(now-old), 0)
			return
		}
	}
}

// payerTotals sums up what the versions of each LUN own, in blocks; versions of
// no LUN are under 0. Called with treeMu held or with the tree at rest.
func (p *Pool) payerTotals() map[cow.LUNID]int64 {
	out := map[cow.LUNID]int64{}
	for _, v := range p.tree.Versions() {
		out[p.tree.Payer(v.ID)] += p.counter.of(v.ID).owned.Load()
	}
	return out
}

// sums are the visible and the locally paid blocks of every canonical version.
type sums map[cow.VersionID]counts

// sums adds the counters up along the tree, parents first. Called with treeMu
// held or with the tree at rest.
func (p *Pool) sums() sums {
	out := sums{}
	var group []cow.VersionID
	for _, v := range p.tree.Versions() {
		if v.State != cow.Alias && v.State != cow.Merging {
			group = p.tree.Group(v.ID, group[:0])
			out[v.ID] = p.onTop(v, out[v.Parent], group)
		}
	}
	return out
}

// onTop adds what a version, with the ids of its group, changes to what is seen
// through its parent.
func (p *Pool) onTop(v *cow.Version, parent counts, group []cow.VersionID) counts {
	c := counts{ref: parent.ref}
	if up := p.tree.Version(v.Parent); up != nil && up.LUN == v.LUN {
		c.local = parent.local
	}
	for _, id := range group {
		c.plus(p.memberCounts(id, v.LUN))
	}
	return c
}

// sumOf is sums for one version, at a cost that does not depend on how many there
// are: what a frozen version sees in all is remembered. Called with adminMu.
func (p *Pool) sumOf(id cow.VersionID) counts {
	v := p.tree.Version(id)
	group := p.tree.Group(id, nil)
	sum, frozen := p.cum[id]
	if !frozen {
		return p.onTop(v, p.cum[v.Parent], group)
	}
	for _, g := range group {
		sum.owned += p.memberCounts(g, v.LUN).owned
	}
	return sum
}

// freezeSums remembers what the heads that a change freezes see in all. Called
// before the change is applied, under the gate's write side.
func (p *Pool) freezeSums(c cow.Change) {
	freeze := func(id cow.VersionID) {
		if v := p.tree.Version(id); v != nil && v.State == cow.Head {
			sum := p.sumOf(id)
			sum.owned = 0
			p.cum[id] = sum
		}
	}
	for i := range c.Versions {
		if c.Versions[i].State != cow.Head {
			freeze(c.Versions[i].ID)
		}
	}
	for i := range c.Marks {
		if s := c.Marks[i].State; s != "" && s != cow.Head {
			for _, id := range c.Marks[i].IDs {
				freeze(id)
			}
		}
	}
}

// loadSums remembers what all frozen versions see.
func (p *Pool) loadSums() {
	for id, sum := range p.sums() {
		if p.tree.Version(id).State != cow.Head {
			sum.owned = 0
			p.cum[id] = sum
		}
	}
}

// memberCounts are the counters under an id that was merged into a version of
// LUN lun. What it changed of another LUN's blocks says nothing about this one;
// adopt has booked instead what this one's versions see.
func (p *Pool) memberCounts(id cow.VersionID, lun cow.LUNID) counts {
	c := p.counter.of(id).load()
	if p.tree.Version(id).LUN != lun {
		c.local = 0
	}
	return c
}

// account describes a LUN to the ledger.
func (p *Pool) account(l *cow.LUN) (reservation.Account, error) {
	a := reservation.Account{Size: blocksOf(l.Size), Thick: l.Thick, Limit: reservation.NoLimit}
	reserve, err := ParseAmount(l.Reserve)
	if err != nil {
		return a, err
	}
	limit, err := ParseAmount(l.Limit)
	if err != nil {
		return a, err
	}
	if n, ok := reserve.Of(l.Size); ok {
		a.Reserve = blocksOf(n)
	}
	if n, ok := limit.Of(l.Size); ok {
		a.Limit = blocksOf(n)
		if a.Limit < a.Reserve {
			return a, Errorf(ErrInvalid, "LUN %q: limit %s is below the reserve %s; raise the limit or lower the reserve", l.Name, l.Limit, l.Reserve)
		}
	}
	a.OnFull = reservation.Recycle
	if l.OnFull == OnFullFreeze {
		a.OnFull = reservation.Freeze
	}
	return a, nil
}

func blocksOf(bytes int64) int64 { return (bytes + blockSize - 1) / blockSize }

// headroom is what the pool keeps for cleaning: room for the segments in
// flight, a twelfth of the capacity so that victims have enough dead blocks to be
// worth moving, and two blocks a segment for headers and ends that take nothing.
// Both in blocks.
func (p *Pool) headroom(capacity int64) int64 {
	segment := int64(p.space.blocks)
	return min(capacity/12+2*capacity/segment+6*segment, capacity/2)
}

// indexBytes is what the index takes, and at least what is kept for it: it grows
// with what is written, inside promises too, and while it rewrites its tables it
// takes more for a moment.
func (p *Pool) indexBytes() int64 { return p.indexBytesAt(p.state.capacity()) }

// indexBytesAt is the same with another capacity.
func (p *Pool) indexBytesAt(capacity int64) int64 {
	return max(int64(p.index.DiskBytes())+p.backups.bytes(), min(capacity/64+6*p.memTable(), capacity/8))
}

// buildLedger makes the ledger from the tree and the counters.
func (p *Pool) buildLedger() error {
	capacity := p.state.Capacity
	p.ledger = reservation.New(capacity/blockSize, p.headroom)
	totals := p.payerTotals()
	s := p.sums()
	var errs []error
	for _, l := range p.tree.LUNs() {
		a, err := p.account(l)
		if err != nil {
			return err
		}
		a.Live = s[l.Head].local
		a.Area = totals[l.ID] - a.Live
		errs = append(errs, p.ledger.Restore(uint64(l.ID), a))
	}
	p.ledger.SetShared(totals[0])
	p.ledger.SetIndex(p.indexBytes() / blockSize)
	return errors.Join(errs...)
}

// segmentsOfPage groups a record's locations by segment.
func (p *Pool) countSegments(r *cow.Record, out map[uint64]int64, sign int64) {
	for i := range cow.PageBlocks {
		if r.Set.Has(i) && cow.Stored(r.Loc[i]) {
			out[p.space.segment(r.Loc[i])] += sign
		}
	}
}

// appendStruct writes a structural change's body to the log. Called in the gate.
func (p *Pool) appendStruct(body []byte) (segment.Seq, error) {
	x, err := p.log.Append(segment.Entry{Kind: segment.Struct}, body, false, nil)
	if err != nil {
		return 0, p.logError(err)
	}
	return x[0].Seq, nil
}

// reserved returns the ledger's account of a LUN.
func (p *Pool) reserved(id cow.LUNID) reservation.Account {
	a, _ := p.ledger.Get(uint64(id))
	return a
}

// repromise changes what the ledger promises a LUN; it is refused before
// anything changes.
func (p *Pool) repromise(id cow.LUNID, old, a reservation.Account) error {
	if a.Size != old.Size {
		if err := p.ledger.Resize(uint64(id), a.Size, 0); err != nil {
			return err
		}
	}
	if a.Reserve == old.Reserve && a.Limit == old.Limit && a.OnFull == old.OnFull {
		return nil
	}
	err := p.ledger.SetPolicy(uint64(id), a.Reserve, a.Limit, a.OnFull)
	if err != nil && a.Size != old.Size {
		err = errors.Join(err, p.ledger.Resize(uint64(id), old.Size, 0))
	}
	return err
}
