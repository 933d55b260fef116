package lun

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"lunar/cow"
	"lunar/store/index"
	"lunar/store/segment"
)

// Kinds of catalogue objects in the index.
const (
	objectLUN     = 'L'
	objectVersion = 'V'
	objectBranch  = 'B'
	objectForward = 'W' // by forgotten id: where its blocks went
	objectHoles   = 'H' // by segment: how many of its blocks are holes
)

const (
	metaState = "state"
	// idMargin is how far the durable mark of identifiers runs ahead, so that
	// ordinary operations need not wait for a checkpoint.
	idMargin = 1 << 16
)

// durable is what the last checkpoint says of the pool as a whole.
type durable struct {
	Position uint64 `json:"position"` // first sequence that replay must look at
	Epoch    uint64 `json:"epoch"`
	IDs      uint64 `json:"ids"` // identifiers below this may have been handed out
	Capacity int64  `json:"capacity"`
	Highest  uint64 `json:"highest_segment"`
	Format   int    `json:"format,omitempty"`   // of the catalogue and the counters; 1 is not written
	Index    string `json:"index,omitempty"`    // names the index, for its copies
	Salvaged string `json:"salvaged,omitempty"` // why the pool is good for reading only

	// The same for those who read while a checkpoint runs; room is the capacity
	// that is in force, which the next checkpoint makes durable.
	ids, room atomicInt
	position  atomicInt
}

type atomicInt = atomic.Int64

func (d *durable) publish() {
	d.ids.Store(int64(d.IDs))
	d.position.Store(int64(d.Position))
}

func (d *durable) idReserved() uint64 { return uint64(d.ids.Load()) }
func (d *durable) capacity() int64    { return d.room.Load() }

// pending is what a checkpoint took at its position, to be committed.
type pending struct {
	position uint64
	nextID   uint64
	luns     map[cow.LUNID]*cow.LUN
	versions map[cow.VersionID]*cow.Version
	branches map[cow.BranchID]*cow.Branch
	forwards map[cow.VersionID]cow.VersionID
	entries  int64 // of the log that it covers, and their blocks
	blocks   int64
}

// Checkpoint writes what changed in the maps to the index, with the position of
// the log that it covers. It is the only commit of the index.
func (p *Pool) Checkpoint() error {
	p.ckptMu.Lock()
	defer p.ckptMu.Unlock()
	return p.checkpointHeld()
}

// checkpointHeld is Checkpoint with ckptMu held. Where the file system has no room for
// the commit, it is made with what the ballast keeps for the index.
func (p *Pool) checkpointHeld() error {
	err := p.tryCheckpoint()
	for try := 0; try < 4 && errors.Is(err, index.ErrNoRoom) && p.ballast.makeRoom(1); try++ {
		err = p.tryCheckpoint()
	}
	if errors.Is(err, index.ErrNoRoom) {
		p.event("checkpoint", "", "checkpoint postponed: "+err.Error())
	}
	return err
}

func (p *Pool) tryCheckpoint() error {
	if err := p.writable(); err != nil {
		return err
	}
	return p.endCheckpoint(p.beginCheckpoint())
}

// beginCheckpoint chooses the position. Writers go on.
func (p *Pool) beginCheckpoint() pending {
	entries, blocks := p.entries.Load(), p.appended.Load()
	p.space.emptied.Store(0)
	p.gate.lock()
	pend := p.takeObjects(uint64(p.log.Next()))
	p.gate.unlock()
	pend.entries, pend.blocks = entries, blocks
	return pend
}

// endCheckpoint commits what the maps hold by now, which may be more than what
// the position covers.
func (p *Pool) endCheckpoint(pend pending) error {
	for _, v := range p.allViews() {
		p.takeDirty(v)
	}
	gen := p.overlay.swap()
	// Everything that the taken pages point at was appended before this.
	err := p.log.Sync(p.log.Next() - 1)
	if err != nil {
		err = p.logError(err)
	} else if err = p.commitIndex(pend, gen); errors.Is(err, index.ErrNoRoom) {
		// Nothing was written: the next checkpoint takes it along.
		p.overlay.undo()
		p.putBack(pend)
		return err
	}
	if err != nil {
		p.fail(err)
		return err
	}
	p.entries.Add(-pend.entries)
	p.appended.Add(-pend.blocks)
	p.cache.shrink()
	p.releaseSegments()
	p.spaceBack.wake()
	return nil
}

// takeObjects collects the changed catalogue entries and the position. Called
// under the gate's write side: the catalogue is exactly that of the position.
func (p *Pool) takeObjects(position uint64) pending {
	pend := pending{position: position, nextID: p.tree.Next(),
		luns: map[cow.LUNID]*cow.LUN{}, versions: map[cow.VersionID]*cow.Version{}, branches: map[cow.BranchID]*cow.Branch{},
		forwards: map[cow.VersionID]cow.VersionID{}}
	for id := range p.objects.forwards {
		pend.forwards[id] = p.tree.Forward(id)
	}
	for id := range p.objects.luns {
		pend.luns[id] = p.tree.LUN(id)
	}
	for id := range p.objects.versions {
		pend.versions[id] = p.tree.Version(id)
	}
	for id := range p.objects.branches {
		pend.branches[id] = p.tree.Branch(id)
	}
	p.objects = newObjectSet()
	return pend
}

// putBack notes the objects of a checkpoint that could not be committed.
func (p *Pool) putBack(pend pending) {
	p.gate.lock()
	defer p.gate.unlock()
	for id := range pend.luns {
		p.objects.luns[id] = true
	}
	for id := range pend.versions {
		p.objects.versions[id] = true
	}
	for id := range pend.branches {
		p.objects.branches[id] = true
	}
	for id := range pend.forwards {
		p.objects.forwards[id] = true
	}
}

// commitIndex writes one generation and the catalogue in one batch.
func (p *Pool) commitIndex(pend pending, gen *generation) error {
	b := p.index.NewBatch()
	defer b.Close()
	if err := p.stageObjects(b, pend); err != nil {
		return err
	}
	stagePages(b, gen)
	counted := p.stageCounters(b, pend, gen)
	used := p.stageSegments(b, pend, gen)
	next := durable{Position: pend.position, Epoch: p.state.Epoch, IDs: max(p.state.IDs, pend.nextID+idMargin), Capacity: p.state.capacity(), Highest: p.space.top(), Format: p.state.Format, Index: p.state.Index}
	state, err := json.Marshal(&next)
	if err != nil {
		return err
	}
	b.SetMeta(metaState, state)
	if err := b.Commit(); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	counted()
	used()
	p.overlay.done()
	p.commits++
	p.state.Position, p.state.IDs, p.state.Highest = next.Position, next.IDs, next.Highest
	p.state.publish()
	p.noteAge()
	p.ledger.SetIndex(p.indexBytes() / blockSize)
	return nil
}

func (p *Pool) stageObjects(b *index.Batch, pend pending) error {
	for id, l := range pend.luns {
		if err := stageObject(b, objectLUN, uint64(id), l); err != nil {
			return err
		}
	}
	for id, v := range pend.versions {
		if err := stageObject(b, objectVersion, uint64(id), v); err != nil {
			return err
		}
	}
	for id, x := range pend.branches {
		if err := stageObject(b, objectBranch, uint64(id), x); err != nil {
			return err
		}
	}
	for id, into := range pend.forwards {
		if into == 0 {
			b.DeleteObject(objectForward, uint64(id))
		} else {
			b.SetObject(objectForward, uint64(id), binary.AppendUvarint(nil, uint64(into)))
		}
	}
	return nil
}

func stageObject[T any](b *index.Batch, kind uint8, id uint64, x *T) error {
	if x == nil {
		b.DeleteObject(kind, id)
		return nil
	}
	body, err := json.Marshal(x)
	if err != nil {
		return err
	}
	b.SetObject(kind, id, body)
	return nil
}

func stagePages(b *index.Batch, gen *generation) {
	for k, ops := range gen.ops {
		for _, o := range ops {
			br, num, v := uint64(k.branch), k.page, uint64(o.version)
			switch o.kind {
			case opSet:
				b.SetPage(br, num, v, o.rec)
			case opMerge:
				b.MergePage(br, num, v, o.rec)
			case opMove:
				b.MovePage(br, num, v, o.rec)
			case opDelete:
				b.DeletePage(br, num, v)
			}
		}
	}
}

// stageCounters writes stored + changes: the sum over the pages of the batch,
// never what memory says, which is ahead of it. committed notes what is stored.
func (p *Pool) stageCounters(b *index.Batch, pend pending, gen *generation) (committed func()) {
	p.counter.mu.RLock()
	defer p.counter.mu.RUnlock()
	next := map[cow.VersionID]counts{}
	for v, pairs := range gen.pairs {
		s := p.counter.stored[v]
		s.plus(gen.counters[v])
		next[v] = s
		b.SetCounter(uint64(v), marshalCounts(s, pairs))
	}
	for id, v := range pend.versions {
		if v == nil {
			b.DeleteCounter(uint64(id))
		}
	}
	return func() {
		p.counter.mu.Lock()
		defer p.counter.mu.Unlock()
		for v, s := range next {
			p.counter.stored[v] = s
		}
		for id, v := range pend.versions {
			if v == nil {
				delete(p.counter.stored, id)
			}
		}
	}
}

// stageSegments writes the rows of segments. A segment that is dead with this
// commit loses its row with it: from then on replay looks into it again, which
// must be so before it is used anew. One that a copy of the index needs keeps a
// row, sealed and without live blocks, until the copies are newer.
func (p *Pool) stageSegments(b *index.Batch, pend pending, gen *generation) (committed func()) {
	s := p.space
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range gen.segments {
		s.ofLocked(n)
	}
	var after []func()
	commit, needed := p.commits+1, p.backups.needs()
	for n, u := range s.segs {
		old := u.sealed && uint64(u.info.Last) < pend.position
		stored := u.stored + gen.segments[n]
		died := u.died
		if died == 0 {
			died = commit
		}
		switch {
		case stored == 0 && old && died > needed:
			if !u.row || u.rowed != 0 || !u.rowSealed {
				b.SetSegment(n, row{sealed: true, info: u.info}.marshal())
			}
			after = append(after, func() { u.stored, u.row, u.rowed, u.rowSealed, u.dead, u.died = 0, true, 0, true, false, died })
		case stored == 0 && (old || !u.row):
			if u.row {
				b.DeleteSegment(n)
			}
			after = append(after, func() { u.stored, u.row, u.dead = 0, false, old })
			after = append(after, s.stageHoles(b, n, u, 0))
			continue
		case !u.row || u.rowed != stored || u.rowSealed != old:
			b.SetSegment(n, row{live: stored, sealed: old, info: u.info}.marshal())
			after = append(after, func() { u.stored, u.row, u.rowed, u.rowSealed, u.dead = stored, true, stored, old, false; u.died = 0 })
		}
		after = append(after, s.stageHoles(b, n, u, u.holes.made))
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, fn := range after {
			fn()
		}
	}
}

// releaseSegments gives back the segments that the durable checkpoint neither
// points at nor would replay, once no reader holds an address in them.
func (p *Pool) releaseSegments() {
	s := p.space
	var dead []uint64
	s.mu.Lock()
	for n, u := range s.segs {
		if u.dead && u.live.Load() == 0 {
			dead = append(dead, n)
		}
	}
	s.mu.Unlock()
	if len(dead) == 0 {
		return
	}
	slices.Sort(dead)
	p.grace.wait()
	for _, n := range dead {
		s.mu.Lock()
		whole := s.segs[n].holes.made == 0
		delete(s.segs, n)
		s.mu.Unlock()
		release := p.log.Discard
		if whole {
			release = func(n uint64) error { return p.log.Release(n, p.log.Stats().Free >= p.spares()) }
		}
		if err := release(n); err != nil {
			p.event("segment-release", "", "segment could not be released: "+err.Error())
			continue
		}
		s.released.Add(1)
	}
}

// Segments are used again rather than new ones made: those that are in the page
// cache are written at half the cost. So once reuseAfter of them are empty and at
// most reuseBelow spares are left, a checkpoint turns them into spares.
const reuseAfter, reuseBelow = 4, 2

// sealed is told of each segment that the log has moved past.
func (p *Pool) sealed(info segment.SegmentInfo) {
	p.space.seal(info)
	if p.space.emptied.Load() >= reuseAfter && p.log.Stats().Free <= reuseBelow {
		p.janitor.kick(jobCheckpoint)
	}
}

// spares is how many dead segments are kept for reuse: overwriting a written
// segment makes fdatasync about twice as fast (PERFORMANCE.md).
func (p *Pool) spares() int {
	return int(min(16, max(2, p.state.capacity()/p.id.SegmentBytes/32)))
}

// idleSpares is how many of them stay while nothing is written, so that the pool
// takes little more of the disk than what it holds.
func (p *Pool) idleSpares() int {
	_, live, _ := p.space.totals()
	return int(min(int64(p.spares()), max(2, live/int64(p.space.blocks)/16)))
}

// dropIdleSpares gives the other ones back if nothing was appended since the log's
// next entry was seen; it returns what that is now.
func (p *Pool) dropIdleSpares(seen segment.Seq) segment.Seq {
	next := p.log.Next()
	if next == seen && p.log.Stats().Free > 2 {
		if err := p.log.DropSpares(p.idleSpares()); err != nil {
			p.event("segment-release", "", "spare segments could not be removed: "+err.Error())
		}
	}
	return next
}

// buffers is where payload lives until it is in the log.
func (p *Pool) buffers() *segment.Buffers { return p.buf }
