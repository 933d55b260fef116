package segment

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"
)

// How often a preparation that failed is tried again while nothing else happens.
const (
	retryWanted = 250 * time.Millisecond // someone waits for it
	retryIdle   = 5 * time.Second
)

// finish is the goroutine that finishes segments that were left. It is not the
// keeper, as the sync of a large segment takes longer than filling the next one.
func (l *Log) finish() {
	defer l.running.Done()
	for {
		select {
		case <-l.stop:
			return
		case <-l.kickFinisher:
		}
		if l.finishSealed() != nil {
			return
		}
	}
}

// keep is the keeper goroutine: it prepares the next segments, so that nobody
// who writes has to.
func (l *Log) keep() {
	defer l.running.Done()
	retry := timerOf()
	defer retry.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-l.kickKeeper:
		case <-retry.C:
			l.askLimit()
		}
		short := l.prepareAhead()
		if l.Err() != nil {
			return
		}
		if short {
			if delay := l.retryAfter(); delay > 0 {
				retry.Reset(delay)
			}
		}
	}
}

// retryAfter is when to try again to prepare a segment; 0 is when someone asks for it.
func (l *Log) retryAfter() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.adm.reserved.n+l.adm.ordinary.n > 0 {
		return retryWanted // the limit may be raised without a word to us
	}
	if l.prepareErr != nil {
		return retryIdle
	}
	return 0
}

// finishSealed syncs the segments that were left and whose records are all
// written, hands their files to the readers' table, and reports them, in order.
func (l *Log) finishSealed() error {
	l.sealMu.Lock()
	defer l.sealMu.Unlock()
	for {
		l.mu.Lock()
		var s *openSegment
		if len(l.live) > 0 && l.live[0].sealed && uint64(l.live[0].last) <= l.written.Load() {
			s = l.live[0]
		}
		l.mu.Unlock()
		if s == nil {
			return nil
		}
		if err := s.sync(); err != nil {
			return l.fail("syncing segment "+Name(s.number), err)
		}
		l.publish(uint64(s.last)) // all segments before it were finished
		s.h.acquire()
		l.handles.insert(s.h)
		info := s.info()
		l.mu.Lock()
		l.sealed[s.number] = info
		l.live = append(l.live[:0], l.live[1:]...)
		l.showLiveLocked()
		l.grantLocked()
		l.mu.Unlock()
		s.out.close()
		s.h.release()
		if l.opts.OnSeal != nil {
			l.opts.OnSeal(info)
		}
	}
}

// prepareAhead makes segments ready until there are as many as wanted. It says
// whether it is short of them and another attempt may help.
func (l *Log) prepareAhead() (short bool) {
	for {
		number, fresh, ok := l.nextToPrepare()
		if !ok {
			return false
		}
		if number == 0 {
			l.askLimit()
			if number, fresh, ok = l.nextToPrepare(); number == 0 {
				if ok {
					l.callFull()
				}
				return ok
			}
		}
		s, err := l.prepare(number, fresh)
		l.mu.Lock()
		l.preparing--
		l.prepareErr = err
		if err == nil {
			l.prepared = append(l.prepared, s)
			l.grantLocked()
		} else if fresh {
			l.files--
		} else {
			l.free = append(l.free, number)
		}
		l.noteAvailableLocked()
		l.mu.Unlock()
		if err != nil {
			if !passing(err) {
				l.fail("preparing segment "+Name(number), err)
				return false
			}
			l.callFull()
			return true
		}
	}
}

// nextToPrepare takes a free segment, or the number of a new one. ok is false
// if enough are prepared; the number is 0 if there is none.
func (l *Log) nextToPrepare() (number uint64, fresh, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.prepared) >= l.wantedLocked() {
		return 0, false, false
	}
	if k := len(l.free); k > 0 {
		number, l.free = l.free[k-1], l.free[:k-1]
		l.preparing++
		return number, false, true
	}
	if l.limit > 0 && l.files >= l.limit {
		return 0, false, true
	}
	if l.highest >= l.opts.maxNumber() {
		return 0, false, true
	}
	l.highest++
	l.files++
	l.preparing++
	return l.highest, true, true
}

// wantedLocked is how many segments are to be prepared: one ahead, or what
// those who wait in front need.
func (l *Log) wantedLocked() int {
	wanted := int64(1)
	if l.seg == nil {
		wanted = 2
	}
	for _, q := range []*waiters{&l.adm.reserved, &l.adm.ordinary} {
		if q.head != nil {
			each := int64(l.blocks - 1)
			missing := l.adm.credit.room + q.head.cost.room
			if !q.head.rotate {
				missing -= l.leftLocked()
			}
			wanted = max(wanted, (missing+each-1)/each)
		}
	}
	return int(wanted)
}

// prepare opens a segment's file for writing and gives it its full size. The
// name and size of a new one are made durable, so that a sync of its records
// has nothing else to write.
func (l *Log) prepare(number uint64, fresh bool) (*openSegment, error) {
	path := l.opts.path(number)
	if fresh && l.opts.Source != nil {
		l.opts.Source.Take(path) // if not, the file is made
	}
	f, err := l.opts.FS.OpenReadWrite(path, fileCategory)
	if err != nil {
		return nil, err
	}
	if err = preallocate(f, l.opts.SegmentBytes); err == nil && fresh {
		if err = f.Sync(); err == nil {
			err = syncFolder(l.opts.FS, l.opts.Dir)
		}
		err = syncError(err)
	}
	if err != nil {
		f.Close()
		if fresh && passing(err) {
			// What was allocated is what others lack. If this fails too, the
			// next attempt opens a file of a new number, and this one
			// stays as an empty one, to be found by the next recovery.
			_ = l.opts.FS.Remove(path)
		}
		return nil, err
	}
	reached := 0
	if !fresh {
		reached = l.blocks
	}
	return &openSegment{
		number: number, h: newHandle(number, f), out: newRecordWriter(f, l.opts.PlainWrites),
		reached: reached, pending: make([]atomic.Pointer[chunk], l.blocks),
	}, nil
}

// errSync marks a failed sync, which is final whatever its errno: the kernel
// reports it once.
var errSync = errors.New("sync failed")

func syncError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errSync, err)
}

// passing says whether an error may go away by itself.
func passing(err error) bool {
	if errors.Is(err, errSync) {
		return false
	}
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// Rotate seals the open segment, if it holds anything, and returns when it is
// written, synced and reported.
func (l *Log) Rotate() error {
	l.mu.Lock()
	if err := l.usableLocked(); err != nil || l.seg == nil {
		l.mu.Unlock()
		return err
	}
	number, last := l.seg.number, l.next-1
	w := newWaiter(request{rotate: true, reserved: true})
	l.adm.reserved.push(w)
	l.grantLocked()
	l.mu.Unlock()
	if err := l.await(context.Background(), w); err != nil {
		return err
	}
	if err := l.Sync(last); err != nil {
		return err
	}
	for {
		if err := l.finishSealed(); err != nil {
			return err
		}
		if !l.isLive(number) {
			return nil
		}
		// Something was appended to the segment before it was sealed.
		if err := l.Sync(^Seq(0)); err != nil {
			return err
		}
	}
}

func (l *Log) isLive(number uint64) bool {
	for _, s := range *l.liveSet.Load() {
		if s.number == number {
			return true
		}
	}
	return false
}
