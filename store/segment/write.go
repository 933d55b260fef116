package segment

// writeOut writes the closed records, in order, up to the one that holds
// entry upTo.
func (l *Log) writeOut(upTo Seq) error {
	for Seq(l.written.Load()) < upTo {
		more, err := l.writeOne()
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// writeOne writes the oldest closed record.
func (l *Log) writeOne() (more bool, err error) {
	l.ioMu.Lock()
	defer l.ioMu.Unlock()
	if err := l.Err(); err != nil {
		return false, err
	}
	l.mu.Lock()
	rec := l.head
	l.mu.Unlock()
	if rec == nil {
		return false, nil
	}
	rec.filling.Wait()
	l.completeHeader(rec)
	if err := l.writeRecord(rec); err != nil {
		// The record stays at the head of the queue, and its blocks in memory,
		// where readers find them.
		return false, l.fail("writing a record to segment "+Name(rec.seg.number), err)
	}
	last := rec.last()
	rec.seg.dirty.Store(true) // before written: a sync that covers written syncs this segment
	l.written.Store(uint64(last))
	l.forget(rec)
	return true, nil
}

// completeHeader writes the fixed part of the header.
func (l *Log) completeHeader(rec *record) {
	h := Header{
		Format: Format, PoolID: l.opts.PoolID, Epoch: l.opts.Epoch,
		First: rec.first, Synced: l.Synced(), At: l.opts.loc(rec.seg.number, rec.at), Payload: rec.blocks,
	}
	h.seal(rec.header, rec.entries, rec.bytes)
}

func (l *Log) writeRecord(rec *record) error {
	iov := append(l.iov[:0], rec.header)
	for _, c := range rec.chunks {
		iov = append(iov, c.mem[:c.n*BlockSize])
	}
	seg := rec.seg
	if end := rec.end(); end > seg.reached {
		ahead := l.zerosBehind(rec)
		for n := ahead; n > 0; n -= len(zeros) / BlockSize {
			iov = append(iov, zeros[:min(n*BlockSize, len(zeros))])
		}
		seg.reached = end + ahead
	}
	if seg.out.sequential() {
		seg.syncMu.Lock()
		defer seg.syncMu.Unlock()
	}
	err := seg.out.write(iov, int64(rec.at)*BlockSize, l.bulk(rec))
	clear(iov)
	l.iov = iov[:0]
	return err
}

// zeros is written ahead, and never written to.
var zeros = make([]byte, 64<<10)

// smallRecord is the most blocks of a record that zeros are written behind.
const smallRecord = 64

// zerosBehind says how many blocks of zeros go out with a record. Small records that are synced one by one in space that was
// allocated and never written cost a commit of the file system's journal each; with zeros written ahead, one in many does.
// They lie where the next records will, which are written later (ioMu), and read as the end of the log, as what was there.
func (l *Log) zerosBehind(rec *record) int {
	if l.opts.ZeroAhead <= 0 || !l.leading.Load() || rec.blocks > smallRecord {
		return 0
	}
	return min(int(l.opts.ZeroAhead/BlockSize), l.blocks-rec.end())
}

// bulk says whether a record belongs to a long stream of large writes. Those pass
// the page cache by: it would cost more than everything else that is done for
// them, and push out what is read (docs/adr/0011). What is written in between
// counts against the stream.
func (l *Log) bulk(rec *record) bool {
	if rec.large*8 < rec.blocks*7 || rec.large < largeWrite {
		l.stream = max(l.stream-rec.blocks, 0)
		return false
	}
	after := int(l.opts.DirectAfter / BlockSize)
	l.stream = min(l.stream+rec.blocks, max(2*after, 1))
	return l.opts.DirectAfter >= 0 && l.stream > after
}

// forget lets the memory of a written record go: from here on readers find its
// blocks in the file.
func (l *Log) forget(rec *record) {
	for _, c := range rec.chunks {
		slots := rec.seg.pending[c.base : c.base+c.n]
		for i := range slots {
			slots[i].Store(nil)
		}
		c.release(l.bufs)
	}
	clear(rec.chunks)
	rec.chunks = rec.chunks[:0]
	seg, last := rec.seg, rec.last()
	l.mu.Lock()
	if l.head = rec.next; l.head == nil {
		l.tail = nil
	}
	l.adm.memory -= rec.charge
	rec.seg, rec.entries, rec.blocks, rec.large, rec.bytes, rec.charge = nil, 0, 0, 0, 0, 0
	rec.next, l.spareRecs = l.spareRecs, rec
	done := seg.sealed && seg.last == last
	l.grantLocked()
	l.mu.Unlock()
	if done {
		kick(l.kickFinisher)
	}
}

// writeBehind is the writer goroutine. It writes full records when Append
// kicks it, and others when they have waited for WriteDelay. Its clock runs
// only while something is appended: an idle log costs nothing, and a busy one
// is not slowed by a wake-up for each record.
func (l *Log) writeBehind() {
	defer l.running.Done()
	clock := timerOf()
	defer clock.Stop()
	var seen Seq // the record that was being filled at the last tick
	ticking := false
	for {
		tick := false
		select {
		case <-l.stop:
			return
		case <-l.kickWriter:
		case <-clock.C:
			tick, ticking = true, false
		}
		var armed bool
		if seen, armed = l.closeOld(seen, tick); armed && !ticking {
			clock.Reset(l.opts.WriteDelay)
			ticking = true
		}
		for !l.leading.Load() { // a sync goes first, and kicks us when it has written
			more, err := l.writeOne()
			if err != nil {
				return // reads go on without us
			}
			if !more {
				break
			}
		}
	}
}

// closeOld closes the current record if it was there at the last tick, or if
// someone waits for its memory. It says whether the clock is to run on.
func (l *Log) closeOld(seen Seq, tick bool) (Seq, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rec := l.cur
	if rec != nil && (l.memoryShortLocked() || tick && rec.first == seen) {
		l.closeRecordLocked()
		return 0, l.armed
	}
	if tick {
		if rec == nil && seen == 0 {
			l.armed = false
		}
		seen = 0
		if rec != nil {
			seen = rec.first
		}
	}
	return seen, l.armed
}

// memoryShortLocked says whether the first in a queue waits for memory.
func (l *Log) memoryShortLocked() bool {
	for _, q := range []*waiters{&l.adm.reserved, &l.adm.ordinary} {
		if q.head != nil && l.adm.memory+q.head.cost.memory > l.opts.MemoryBytes {
			return true
		}
	}
	return false
}
