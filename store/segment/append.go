package segment

import "fmt"

// Extent is where a part of a write went.
type Extent struct {
	Seq   Seq
	Loc   Loc // of the first block; 0 for entries without payload
	First int // index of the first block of the write
	Count int
}

// piece is a reserved part of an entry: where it will be encoded and copied to.
type piece struct {
	rec    *record // not to be touched after fill: it may be written and used again
	number uint64  // of the segment
	mem    *chunk  // nil without payload
	at     int     // offset in the record's header
	block  int     // the segment's first payload block
	first  int     // of the entry's blocks
	n      int
	seq    Seq
}

// Append puts an entry at the end of the log and appends to out where its
// blocks went. It takes the credit of an Admit that the caller made for
// len(data) in blocks and one entry. It waits for nothing and does no I/O.
//
// data is the payload: whole blocks with their checksums in e.CRCs for Data and
// Moved; for Struct, the bytes themselves, whose padding, length and checksums the
// log adds. A payload longer than a record, or than what is left of a
// segment, becomes several entries and extents; Struct stays whole. Without
// owned, data is copied; with it, data (from Buffers().Get) belongs to the log,
// which puts it back when it was written.
//
// On an error nothing was appended: data and credit are still the caller's.
func (l *Log) Append(e Entry, data []byte, owned bool, out []Extent) ([]Extent, error) {
	if e.Kind == Struct {
		e, data, owned = structural(e, data), padded(data), false
	}
	if err := l.checkEntry(&e, data); err != nil {
		return out, err
	}
	blocks := e.PayloadBlocks()
	var own *memory
	if owned && blocks > 0 {
		own = newMemory(data)
	}
	cost := costOf(blocks, 1)
	l.mu.Lock()
	err := l.usableLocked()
	if err == nil && l.adm.credit.room < cost.room {
		err = invalid("an append of %d blocks that was not admitted", blocks)
	}
	if err != nil {
		l.mu.Unlock()
		if own != nil {
			own.bytes = nil // stays the caller's
			own.release(l.bufs)
		}
		return out, err
	}
	wake := false
	l.appending++
	for done := 0; ; {
		p, kickIt := l.reserveLocked(&e, done, blocks-done, own)
		wake = wake || kickIt
		done += p.n
		last := done == blocks
		if last {
			l.appending--
			l.settleLocked(cost, p.rec)
		}
		l.mu.Unlock()
		l.fill(&e, &p, data, own != nil)
		out = append(out, p.extent(l, &e))
		if last {
			break
		}
		l.mu.Lock()
	}
	if own != nil {
		own.release(l.bufs)
	}
	if wake {
		kick(l.kickWriter)
	}
	return out, nil
}

// structural completes a structural entry from its payload.
func structural(e Entry, data []byte) Entry {
	n := (len(data) + BlockSize - 1) / BlockSize
	e.Block, e.Count, e.Birth = uint64(len(data)), uint64(n), 0
	e.CRCs = make([]uint32, n)
	p := padded(data)
	for i := range e.CRCs {
		e.CRCs[i] = Checksum(p[i*BlockSize : (i+1)*BlockSize])
	}
	return e
}

// padded is data with zeros up to a whole block.
func padded(data []byte) []byte {
	if len(data)%BlockSize == 0 {
		return data
	}
	p := make([]byte, (len(data)+BlockSize-1)/BlockSize*BlockSize)
	copy(p, data)
	return p
}

// checkEntry refuses what must not be written. Data may be longer than a record.
func (l *Log) checkEntry(e *Entry, data []byte) error {
	if !e.Kind.HasPayload() {
		if len(data) != 0 {
			return invalid("a %s entry with payload", e.Kind)
		}
		return e.Validate()
	}
	if len(data) == 0 || uint64(len(data)) != e.Count*BlockSize || len(e.CRCs) != int(e.Count) {
		return invalid("a %s entry of %d blocks with %d bytes and %d checksums", e.Kind, e.Count, len(data), len(e.CRCs))
	}
	if e.Kind == Struct {
		if most := min(MaxRecordBlocks, l.blocks-1); int(e.Count) > most {
			return fmt.Errorf("%w: a structural change of %d bytes, the most is %d", ErrTooLarge, e.Block, most*BlockSize)
		}
		return e.Validate()
	}
	head := *e // the rules for one record, without its limit
	head.Count, head.CRCs = 1, e.CRCs[:1]
	if e.Block+e.Count < e.Block {
		return invalid("a %s entry of %d blocks at %d", e.Kind, e.Count, e.Block)
	}
	return head.Validate()
}

// reserveLocked takes the space and the sequence number of the next piece: as
// many of the remaining blocks as the record takes. kick says that the writer
// has something to do.
func (l *Log) reserveLocked(e *Entry, done, remaining int, own *memory) (p piece, kick bool) {
	n := min(remaining, l.opts.RecordBlocks)
	if e.Kind == Struct {
		n = remaining
	}
	rec := l.cur
	if rec != nil {
		k := n
		if e.Kind != Struct {
			k = min(n, l.blocks-rec.end())
		}
		full := n > 0 && k == 0 || rec.end()+k > l.blocks
		if full || !rec.takes(sizeOf(e.Kind, k), k) {
			l.closeRecordLocked()
			kick, rec = true, nil
		} else {
			n = k
		}
	}
	if rec == nil {
		whole := 0
		if e.Kind == Struct {
			whole = n
		}
		rec = l.openRecordLocked(min(n, 1), whole)
		if !l.armed {
			l.armed, kick = true, true
		}
		n = min(n, l.blocks-rec.end())
	}
	p = piece{rec: rec, number: rec.seg.number, at: headerFixed + rec.bytes, block: rec.end(), first: done, n: n, seq: l.next}
	if n > 0 {
		p.mem = rec.place(n, own, done, l.bufs)
		if own != nil && e.Kind == Data && e.Count >= largeWrite {
			rec.large += n
		}
	}
	l.next++
	rec.entries++
	rec.bytes += sizeOf(e.Kind, n)
	rec.blocks += n
	rec.filling.Add(1)
	rec.seg.used += n
	rec.seg.payload += n
	rec.seg.last = p.seq
	l.counts.payload += uint64(n) * BlockSize
	l.counts.total += uint64(n) * BlockSize
	if rec.blocks >= rec.limit || !rec.takes(sizeOf(Moved, 1), 1) {
		l.closeRecordLocked() // full: it need not wait for the next append
		kick = true
	}
	return p, kick
}

// sizeOf is the size of an entry of n payload blocks in the header.
func sizeOf(kind Kind, n int) int {
	size := entryFixed + n*crcBytes
	if kind == Moved {
		size += birthBytes
	}
	return size
}

// fill encodes the entry and copies its payload, outside of the mutex, and
// shows the blocks to readers.
func (l *Log) fill(e *Entry, p *piece, data []byte, owned bool) {
	block, count := e.Block, e.Count
	if e.Kind == Data || e.Kind == Moved {
		block, count = e.Block+uint64(p.first), uint64(p.n)
	}
	var crcs []uint32
	if p.n > 0 {
		crcs = e.CRCs[p.first : p.first+p.n]
	}
	putEntry(p.rec.header[p.at:], e.Kind, e.Version, block, count, e.Birth, crcs)
	if p.n > 0 {
		if !owned {
			copy(p.mem.mem[(p.block-p.mem.base)*BlockSize:], data[p.first*BlockSize:(p.first+p.n)*BlockSize])
		}
		slots := p.rec.seg.pending[p.block : p.block+p.n]
		for i := range slots {
			slots[i].Store(p.mem)
		}
	}
	p.rec.filling.Done()
}

func (p *piece) extent(l *Log, e *Entry) Extent {
	if p.n == 0 {
		return Extent{Seq: p.seq, Count: int(e.Count)}
	}
	return Extent{Seq: p.seq, Loc: l.opts.loc(p.number, p.block), First: p.first, Count: p.n}
}

// openRecordLocked begins a record that can take at least least payload blocks,
// or whole of them, going on to the next prepared segment if this one is used up.
func (l *Log) openRecordLocked(least, whole int) *record {
	if l.seg != nil && l.seg.used+1+max(least, whole) > l.blocks {
		l.sealLocked()
	}
	if l.seg == nil {
		l.nextSegmentLocked()
	}
	rec := l.spareRecs
	if rec == nil {
		rec = &record{header: l.bufs.Get(BlockSize)}
	} else {
		l.spareRecs, rec.next = rec.next, nil
	}
	rec.seg, rec.at, rec.first = l.seg, l.seg.used, l.next
	rec.limit = max(l.opts.RecordBlocks, whole)
	l.seg.used++
	if l.seg.first == 0 {
		l.seg.first = l.next
	}
	l.counts.records.Add(1)
	l.counts.total += BlockSize
	l.cur = rec
	return rec
}

// closeRecordLocked hands the current record to the writers.
func (l *Log) closeRecordLocked() {
	rec := l.cur
	if rec == nil {
		return
	}
	l.cur = nil
	rec.dropSlab(l.bufs)
	if l.tail == nil {
		l.head = rec
	} else {
		l.tail.next = rec
	}
	l.tail = rec
}

// sealLocked leaves the segment: nothing is appended to it any more.
func (l *Log) sealLocked() {
	l.closeRecordLocked()
	l.seg.sealed = true
	l.seg = nil
}

// nextSegmentLocked takes a prepared segment. There is one: the admission
// counted it (see admission).
func (l *Log) nextSegmentLocked() {
	l.seg = l.prepared[0]
	l.prepared = append(l.prepared[:0], l.prepared[1:]...)
	l.live = append(l.live, l.seg)
	l.noteAvailableLocked()
	l.showLiveLocked()
	kick(l.kickKeeper)
	kick(l.kickFinisher) // all of the segment before may be written already
}

// showLiveLocked tells readers which segments may have blocks in memory.
func (l *Log) showLiveLocked() {
	set := append([]*openSegment(nil), l.live...)
	l.liveSet.Store(&set)
}
