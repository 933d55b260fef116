package segment

import (
	"errors"
	"fmt"
)

// Release gives back a segment that holds nothing any more: as a spare, whose
// file is overwritten later, or removed. The caller guarantees that nobody reads
// from it. Spares above Options.Spares, or above the limit, are removed.
func (l *Log) Release(number uint64, remove bool) error { return l.release(number, remove, true) }

// Discard is Release of a segment that does not have its full space (Punch): its
// file is of no use any more, and removed.
func (l *Log) Discard(number uint64) error { return l.release(number, true, false) }

func (l *Log) release(number uint64, remove, whole bool) error {
	l.askLimit()
	l.mu.Lock()
	if err := l.releasableLocked(number); err != nil {
		l.mu.Unlock()
		return err
	}
	remove = remove || len(l.free) >= l.opts.Spares || l.limit > 0 && l.files > l.limit
	l.releasing[number] = true
	l.mu.Unlock()
	err := l.releaseFile(number, remove, whole)
	l.mu.Lock()
	delete(l.releasing, number)
	if err == nil {
		delete(l.sealed, number)
		if remove {
			l.files--
		} else {
			l.free = append(l.free, number)
		}
		l.noteAvailableLocked()
		l.grantLocked()
	}
	l.mu.Unlock()
	kick(l.kickKeeper)
	return err
}

// releaseFile lets the handle of a segment go, and removes its file if asked to; one
// of full size may be kept by the source of new ones.
func (l *Log) releaseFile(number uint64, remove, whole bool) error {
	path := l.opts.path(number)
	if _, err := l.opts.FS.Stat(path); err != nil {
		return fmt.Errorf("releasing segment %s: %w", Name(number), err)
	}
	l.handles.drop(number)
	if !remove || whole && l.opts.Source != nil && l.opts.Source.Keep(path) {
		return nil
	}
	if err := l.opts.FS.Remove(path); err != nil && !notExist(err) {
		return fmt.Errorf("removing segment %s: %w", Name(number), err)
	}
	return nil
}

func (l *Log) releasableLocked(number uint64) error {
	if l.closing {
		return ErrClosed
	}
	if number == 0 || number > l.highest {
		return invalid("release of segment %s, which never was", Name(number))
	}
	for _, lists := range [][]*openSegment{l.live, l.prepared} {
		for _, s := range lists {
			if s.number == number {
				return invalid("release of segment %s, which is in use", Name(number))
			}
		}
	}
	for _, n := range l.free {
		if n == number {
			return invalid("release of segment %s, which is free", Name(number))
		}
	}
	if l.releasing[number] {
		return invalid("release of segment %s, which is being released", Name(number))
	}
	return nil
}

// Run is a number of blocks of a segment.
type Run struct{ From, Blocks int }

// Punch gives the space of runs of a sealed segment back to the file system, and
// returns when that is durable. The caller guarantees that nobody reads them, and that no header is
// among them that anyone still needs: they read as zeros, the end of the log.
// ErrNoPunch is returned where the file system cannot do it.
func (l *Log) Punch(number uint64, runs ...Run) error {
	for _, r := range runs {
		if r.From < 0 || r.Blocks <= 0 || r.Blocks > l.blocks-r.From {
			return invalid("punching %d blocks at %d of segment %s", r.Blocks, r.From, Name(number))
		}
	}
	l.mu.Lock()
	err := l.releasableLocked(number)
	if err == nil {
		l.releasing[number] = true // it is not used anew meanwhile
	}
	l.mu.Unlock()
	if err != nil {
		return err
	}
	defer func() {
		l.mu.Lock()
		delete(l.releasing, number)
		l.mu.Unlock()
	}()
	err = l.punchFile(l.opts.path(number), runs)
	if errors.Is(err, errSync) { // as with any other segment
		return l.fail("syncing segment "+Name(number), err)
	}
	if err != nil {
		return fmt.Errorf("punching segment %s: %w", Name(number), err)
	}
	return nil
}

func (l *Log) punchFile(path string, runs []Run) error {
	if _, err := l.opts.FS.Stat(path); err != nil { // OpenReadWrite would make it
		return err
	}
	f, err := l.opts.FS.OpenReadWrite(path, fileCategory)
	if err != nil {
		return err
	}
	for _, r := range runs {
		if err := punchHole(f, int64(r.From)*BlockSize, int64(r.Blocks)*BlockSize); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(syncError(retryInterrupted(f.Sync)), f.Close())
}
