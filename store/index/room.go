package index

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// room keeps a Commit from waiting inside Pebble for a flush that cannot succeed, as on a full file system: there nothing
// could wake it, not even Close. Commit waits here instead, and is told. It also slows Pebble down, which tries
// a failed flush again at once.
type room struct {
	x    *Index
	stop chan struct{}

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at the end of each flush
	failing error         // of the last flush
	backoff time.Duration
}

const maxBackoff = 2 * time.Second

func newRoom(x *Index) *room {
	return &room{x: x, stop: make(chan struct{}), changed: make(chan struct{})}
}

// close ends all waiting. It is called once.
func (r *room) close() { close(r.stop) }

// flushed hears the end of each flush. It runs under Pebble's lock.
func (r *room) flushed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failing = err
	if err == nil {
		r.backoff = 0
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// state is how the last flush ended, and a channel that is closed when the next one ends.
func (r *room) state() (failing error, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failing, r.changed
}

// failed hears of each failure in the background.
func (r *room) failed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.backoff = min(max(2*r.backoff, 50*time.Millisecond), maxBackoff)
}

// pause delays the making of a table after failures in the background. Once writing has ended it lasts until Close, so that
// Pebble does not spend the time trying.
func (r *room) pause() error {
	r.mu.Lock()
	d := r.backoff
	r.mu.Unlock()
	if r.x.fuse.isBlown() {
		<-r.stop
		return r.x.Err()
	}
	if d == 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.stop:
	}
	return nil
}

// wait returns once Pebble would take a batch of n bytes without waiting for a flush, or says why that cannot be.
func (r *room) wait(n int) error {
	if err := r.disk(n); err != nil {
		return err
	}
	for {
		failing, changed := r.state()
		// The sum that Pebble compares with the same limit before it makes a new memtable.
		if r.x.db.Metrics().MemTable.Size < uint64(waitingMemTables*r.x.opts.memTableBytes()) {
			return nil
		}
		if failing != nil {
			return flushError(failing)
		}
		if err := r.await(changed); err != nil {
			return err
		}
	}
}

// await waits for c, or for the end of the index.
func (r *room) await(c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-r.x.fuse.blown:
		return r.x.Err()
	case <-r.stop:
		return ErrClosed
	}
}

func flushError(err error) error {
	return fmt.Errorf("index: what is in memory cannot be written to tables, it is tried again: %w", err)
}

// toOpen refuses to open where the file system is too full for it: Pebble would try to write the tables of what its logs
// hold for ever, without a word.
func (x *Index) toOpen() error {
	usage, err := x.fs.GetDiskUsage(x.opts.Dir)
	if err != nil || x.opts.ReadOnly {
		return nil
	}
	names, err := x.fs.List(x.opts.Dir)
	if err != nil {
		return fmt.Errorf("index: cannot list %s: %w", x.opts.Dir, err)
	}
	need := uint64(x.opts.logBytes())
	for _, name := range names {
		if !strings.HasSuffix(name, ".log") {
			continue
		}
		if info, err := x.fs.Stat(x.fs.PathJoin(x.opts.Dir, name)); err == nil {
			need += uint64(info.Size())
		}
	}
	if usage.AvailBytes < need {
		return fmt.Errorf("%w: the file system of %s has %d MiB free, and opening wants %d MiB: make space on it and start again",
			ErrNoRoom, x.opts.Dir, usage.AvailBytes>>20, (need+1<<20-1)>>20)
	}
	return nil
}

// disk refuses a batch that the file system would not take, as its half in the log would end all writing. Beside the batch it may
// need a new log, which is preallocated; tables that do not fit are no such failure.
func (r *room) disk(n int) error {
	usage, err := r.x.opts.FS.GetDiskUsage(r.x.opts.Dir)
	if err != nil {
		return nil // a file system that cannot tell
	}
	need := uint64(n) + uint64(r.x.opts.memTableBytes())
	if usage.AvailBytes < need {
		return fmt.Errorf("%w: %s has %d MiB free, and a commit of %d KiB wants %d MiB", ErrNoRoom, r.x.opts.Dir,
			usage.AvailBytes>>20, n>>10, need>>20)
	}
	return nil
}
