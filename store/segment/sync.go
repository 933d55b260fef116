package segment

import "sync"

// group is the group commit. One caller leads: it writes and syncs for all
// whose entries were appended by then. The others wait until someone who led
// has covered them, or until it is their turn to lead.
//
// A sync covers exactly the entries that were written before it began: the leader
// reads Log.written first and syncs then, and publishes what it read.
// So nobody is released by a sync that may have missed a record.
type group struct {
	mu      sync.Mutex
	cond    sync.Cond
	leading bool
	want    Seq // the largest entry that anyone waits for
}

// Sync returns when all entries up to upTo are durable. An error is final:
// the entries behind Synced may be lost, whatever a later sync would say.
func (l *Log) Sync(upTo Seq) error {
	if Seq(l.synced.Load()) >= upTo {
		return nil
	}
	l.mu.Lock()
	upTo = min(upTo, l.next-1)
	l.mu.Unlock()
	g := &l.group
	g.mu.Lock()
	g.want = max(g.want, upTo)
	for {
		if Seq(l.synced.Load()) >= upTo {
			g.mu.Unlock()
			return nil
		}
		if err := l.Err(); err != nil {
			g.mu.Unlock()
			return err
		}
		if l.closed.Load() {
			g.mu.Unlock()
			return ErrClosed
		}
		if !g.leading {
			break
		}
		g.cond.Wait()
	}
	g.leading = true
	want := g.want
	g.mu.Unlock()

	err := l.lead(want)

	g.mu.Lock()
	g.leading = false
	g.cond.Broadcast()
	g.mu.Unlock()
	return err
}

// lead writes out the records up to want and syncs every segment with records
// that are not synced.
func (l *Log) lead(want Seq) error {
	if Seq(l.written.Load()) < want {
		l.mu.Lock()
		if l.cur != nil && l.cur.first <= want {
			want = l.next - 1
			l.closeRecordLocked()
		}
		l.mu.Unlock()
		l.leading.Store(true)
		err := l.writeOut(want)
		l.leading.Store(false)
		if err != nil {
			return err
		}
		l.mu.Lock()
		more := l.head != nil
		l.mu.Unlock()
		if more {
			kick(l.kickWriter)
		}
	}
	covered := l.written.Load()
	for _, s := range *l.liveSet.Load() {
		if err := s.sync(); err != nil {
			return l.fail("syncing segment "+Name(s.number), err)
		}
	}
	l.mu.Lock()
	l.counts.syncs++
	l.mu.Unlock()
	l.publish(covered)
	return nil
}

// publish raises the synced mark, which later headers carry.
func (l *Log) publish(covered uint64) {
	for {
		old := l.synced.Load()
		if old >= covered || l.synced.CompareAndSwap(old, covered) {
			return
		}
	}
}

// Mark writes a record that carries the synced mark of the last sync, for a
// log that goes idle: without it, damage to the last records would look like
// a torn tail. It is not synced itself. A log without room is left as it is.
func (l *Log) Mark() error {
	r := request{cost: costOf(0, 1), reserved: true}
	l.mu.Lock()
	if err := l.usableLocked(); err != nil {
		l.mu.Unlock()
		return err
	}
	if !l.fitsLocked(r) {
		l.mu.Unlock()
		return nil
	}
	l.takeLocked(r)
	l.mu.Unlock()
	var out [1]Extent
	got, err := l.Append(Entry{Kind: Mark}, nil, false, out[:0])
	if err != nil {
		l.Unadmit(0, 1)
		return err
	}
	l.mu.Lock()
	l.closeRecordLocked()
	l.mu.Unlock()
	return l.writeOut(got[0].Seq)
}
