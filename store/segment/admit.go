package segment

import (
	"context"
	"fmt"
)

// cost is what an admission takes of the two things that are short.
type cost struct {
	room   int64 // blocks of segments, an upper bound
	memory int64 // bytes
}

// entryMemory is what an entry without payload counts in memory: its share of
// a header.
const entryMemory = 64

// costOf bounds what entries appends of blocks in all can take: each begins at
// most one record that it does not fill, and one more for each RecordBlocks
// (at least 4) and for each end of a segment (at least 16 blocks) that it
// crosses; a structural entry may leave as many blocks of a segment unused
// as it has. That is less than twice the blocks, and two for each entry. The
// bound is linear, so that any split of an admission into appends is covered.
func costOf(blocks, entries int) cost {
	return cost{room: 2 * (int64(blocks) + int64(entries)), memory: int64(blocks)*BlockSize + int64(entries)*entryMemory}
}

// admission is what writers wait for, guarded by Log.mu. The invariant:
//
//	credit.room <= what is left of the open segment + the prepared ones
//
// since each Append gives back at least what it takes. Hence Append always
// finds a prepared segment.
type admission struct {
	credit   cost  // admitted and not yet appended
	memory   int64 // admitted and not yet written
	reserved waiters
	ordinary waiters
}

// request is what an admission asks for.
type request struct {
	cost     cost
	reserved bool
	rotate   bool // wants the open segment sealed instead of credit
}

// waiter is an admission that waits for its turn.
type waiter struct {
	request
	next    *waiter
	granted bool
	done    chan error
}

func newWaiter(r request) *waiter { return &waiter{request: r, done: make(chan error, 1)} }

// waiters is a queue: first come, first served, so that a large write gets its turn.
type waiters struct {
	head, tail *waiter
	n          int
}

func (q *waiters) push(w *waiter) {
	if q.tail == nil {
		q.head = w
	} else {
		q.tail.next = w
	}
	q.tail = w
	q.n++
}

func (q *waiters) remove(w *waiter) {
	var prev *waiter
	for x := q.head; x != nil; prev, x = x, x.next {
		if x != w {
			continue
		}
		if prev == nil {
			q.head = x.next
		} else {
			prev.next = x.next
		}
		if q.tail == x {
			q.tail = prev
		}
		x.next = nil
		q.n--
		return
	}
}

// Admit waits until the log can take entries appends with blocks of payload in
// all without waiting: memory, and prepared segments. It is called before the
// write gate. The credit is used up by Append, or given back by Unadmit. A
// caller must not wait in Admit while it holds credit.
//
// When ctx ends while there is no segment to write to, the error is ErrFull.
func (l *Log) Admit(ctx context.Context, blocks, entries int) error {
	return l.admit(ctx, request{cost: costOf(blocks, entries)})
}

// AdmitReserved is Admit for what makes room: the cleaner's copies and
// structural changes. It goes before others, and may take the last Reserve
// segments below the limit.
func (l *Log) AdmitReserved(ctx context.Context, blocks, entries int) error {
	return l.admit(ctx, request{cost: costOf(blocks, entries), reserved: true})
}

// Unadmit gives back credit that was not appended.
func (l *Log) Unadmit(blocks, entries int) {
	c := costOf(blocks, entries)
	l.mu.Lock()
	l.adm.credit.room -= c.room
	l.adm.credit.memory -= c.memory
	l.adm.memory -= c.memory
	l.grantLocked()
	l.mu.Unlock()
}

func (l *Log) admit(ctx context.Context, r request) error {
	l.mu.Lock()
	if err := l.usableLocked(); err != nil {
		l.mu.Unlock()
		return err
	}
	first := l.adm.reserved.n == 0 && (r.reserved || l.adm.ordinary.n == 0)
	if first && l.fitsLocked(r) {
		l.takeLocked(r)
		l.mu.Unlock()
		return nil
	}
	if l.limit > 0 && r.cost.room > int64(l.limit)*int64(l.blocks-1) {
		l.mu.Unlock()
		return fmt.Errorf("%w: %d bytes at a time, below a limit of %d segments", ErrFull, r.cost.memory, l.limit)
	}
	w := newWaiter(r)
	l.queueOf(w).push(w)
	l.mu.Unlock()
	return l.await(ctx, w)
}

func (l *Log) queueOf(w *waiter) *waiters {
	if w.reserved {
		return &l.adm.reserved
	}
	return &l.adm.ordinary
}

// await waits for a queued admission. It asks for the limit again, as it may
// have been raised, and wakes those who can help.
func (l *Log) await(ctx context.Context, w *waiter) error {
	l.askLimit()
	kick(l.kickKeeper)
	kick(l.kickWriter)
	l.mu.Lock()
	full := !w.granted && l.fullLocked(w.request)
	l.mu.Unlock()
	if full {
		l.callFull()
	}
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case err := <-w.done: // in the last moment
		return err
	default:
	}
	l.queueOf(w).remove(w)
	full, cause := l.fullLocked(w.request), l.prepareErr
	l.grantLocked()
	if full {
		return &noRoom{context.Cause(ctx), cause}
	}
	return fmt.Errorf("waiting for the log: %w", context.Cause(ctx))
}

// fitsLocked says whether an admission can be granted now.
func (l *Log) fitsLocked(r request) bool {
	room, all := l.roomLocked()
	need := l.adm.credit.room + r.cost.room
	if r.rotate {
		return need <= room-l.leftLocked()
	}
	if l.adm.memory > 0 && l.adm.memory+r.cost.memory > l.opts.MemoryBytes {
		return false
	}
	if need > room {
		return false
	}
	return r.reserved || all < 0 || need <= all-int64(l.opts.Reserve)*int64(l.blocks-1)
}

// leftLocked is what is left of the open segment. The last block of a segment
// may stay unused, as it takes no payload.
func (l *Log) leftLocked() int64 {
	if l.seg == nil {
		return 0
	}
	return int64(max(l.blocks-l.seg.used-1, 0))
}

// roomLocked is the room that may be given out now, and all that there is up
// to the limit (-1 without one).
//
// Of the prepared segments only so many count that at most MaxUnsynced have
// unsynced records; but one who is alone may take them all, so that a
// write longer than a segment gets its turn.
func (l *Log) roomLocked() (room, all int64) {
	each := int64(l.blocks - 1)
	n := min(max(l.opts.MaxUnsynced-len(l.live), 0), len(l.prepared))
	if l.adm.credit.room == 0 && l.unsyncedLocked() == 0 {
		n = len(l.prepared)
	}
	room, all = l.leftLocked()+int64(n)*each, -1
	if l.limit > 0 {
		all = l.leftLocked() + int64(l.availableLocked())*each
	}
	return room, all
}

// unsyncedLocked counts the segments that were left and are not yet synced.
func (l *Log) unsyncedLocked() int {
	if l.seg != nil {
		return len(l.live) - 1
	}
	return len(l.live)
}

// availableLocked counts the segments that can still be used below the limit.
func (l *Log) availableLocked() int {
	return len(l.prepared) + l.preparing + len(l.free) + max(l.limit-l.files, 0)
}

// fullLocked says whether w waits for a segment to be released, or for space
// on the file system, rather than for memory or a sync.
func (l *Log) fullLocked(r request) bool {
	need := l.adm.credit.room + r.cost.room
	if l.prepareErr != nil && len(l.prepared) == 0 {
		return need > l.leftLocked()
	}
	if l.limit == 0 {
		return false
	}
	_, all := l.roomLocked()
	if !r.reserved {
		all -= int64(l.opts.Reserve) * int64(l.blocks-1)
	}
	return need > all
}

// takeLocked gives what was asked for.
func (l *Log) takeLocked(r request) {
	if r.rotate {
		if l.seg != nil {
			l.sealLocked()
		}
		return
	}
	l.adm.credit.room += r.cost.room
	l.adm.credit.memory += r.cost.memory
	l.adm.memory += r.cost.memory
}

// grantLocked gives those who wait their turn, as far as it goes.
func (l *Log) grantLocked() {
	for _, q := range []*waiters{&l.adm.reserved, &l.adm.ordinary} {
		for q.head != nil && l.fitsLocked(q.head.request) {
			w := q.head
			q.remove(w)
			w.granted = true
			l.takeLocked(w.request)
			w.done <- nil
		}
		if q.head != nil {
			return // reserved ones go first
		}
	}
}

// refuseLocked sends all away who wait.
func (l *Log) refuseLocked(err error) {
	for _, q := range []*waiters{&l.adm.reserved, &l.adm.ordinary} {
		for q.head != nil {
			w := q.head
			q.remove(w)
			w.done <- err
		}
	}
}

// settleLocked turns the credit of an append into the use of a record.
func (l *Log) settleLocked(c cost, rec *record) {
	l.adm.credit.room -= c.room
	l.adm.credit.memory -= c.memory
	rec.charge += c.memory
	if l.adm.ordinary.n+l.adm.reserved.n > 0 {
		l.grantLocked()
	}
}

// askLimit asks the owner for the limit, outside of any lock.
func (l *Log) askLimit() {
	if l.opts.MaxSegments == nil {
		return
	}
	limit := l.opts.MaxSegments()
	l.mu.Lock()
	l.limit = max(limit, 0)
	l.noteAvailableLocked()
	l.grantLocked()
	l.mu.Unlock()
}

// Refresh asks for the limit anew, where it may have changed by itself.
func (l *Log) Refresh() { l.askLimit() }

func (l *Log) callFull() {
	if l.opts.OnFull != nil {
		l.opts.OnFull()
	}
}
