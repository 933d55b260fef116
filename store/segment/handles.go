package segment

import (
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// handle is an open file. It is closed when its last reference is let go.
type handle struct {
	number uint64
	f      vfs.File
	refs   atomic.Int32
	used   atomic.Uint64 // the table's time when it was last found
}

func newHandle(number uint64, f vfs.File) *handle {
	h := &handle{number: number, f: f}
	h.refs.Store(1)
	return h
}

func (h *handle) acquire() bool {
	for {
		n := h.refs.Load()
		if n == 0 {
			return false
		}
		if h.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release lets a reference go. The error of closing is nobody's: what the file
// holds was synced, or the log has failed and said so.
func (h *handle) release() {
	if h.refs.Add(-1) == 0 {
		h.f.Close()
	}
}

// handleTable holds the open files of sealed segments: sets of a few ways, so
// that finding one takes no lock. Within a set the longest unused one goes
// first; time is counted in insertions (by two: a hit lies between them), so that
// a hit writes nothing shared unless something was inserted since.
type handleTable struct {
	tick atomic.Uint64
	sets []handleSet
}

type handleSet struct {
	mu   sync.Mutex // insertion and removal
	ways []atomic.Pointer[handle]
}

const handleWays = 8

func newHandleTable(most int) *handleTable {
	ways := min(handleWays, most)
	t := &handleTable{sets: make([]handleSet, most/ways)}
	for i := range t.sets {
		t.sets[i].ways = make([]atomic.Pointer[handle], ways)
	}
	return t
}

func (t *handleTable) set(number uint64) *handleSet { return &t.sets[number%uint64(len(t.sets))] }

// get returns the handle of a segment with a reference, or nil.
func (t *handleTable) get(number uint64) *handle {
	set := t.set(number)
	for i := range set.ways {
		h := set.ways[i].Load()
		if h != nil && h.number == number && h.acquire() {
			if now := t.tick.Load() + 1; h.used.Load() != now {
				h.used.Store(now)
			}
			return h
		}
	}
	return nil
}

// open is get, opening the file if no handle is there.
func (t *handleTable) open(number uint64, open func() (vfs.File, error)) (*handle, error) {
	set := t.set(number)
	set.mu.Lock()
	defer set.mu.Unlock()
	if h := t.get(number); h != nil {
		return h, nil
	}
	f, err := open()
	if err != nil {
		return nil, err
	}
	h := newHandle(number, f)
	h.refs.Add(1)
	t.insertLocked(set, h)
	return h, nil
}

// insert gives a handle to the table, which takes over one reference.
func (t *handleTable) insert(h *handle) {
	set := t.set(h.number)
	set.mu.Lock()
	defer set.mu.Unlock()
	t.insertLocked(set, h)
}

func (t *handleTable) insertLocked(set *handleSet, h *handle) {
	h.used.Store(t.tick.Add(2)) // a hit since the insertion before is older
	victim, oldest := 0, ^uint64(0)
	for i := range set.ways {
		old := set.ways[i].Load()
		if old == nil || old.number == h.number {
			victim = i
			break
		}
		if used := old.used.Load(); used < oldest {
			victim, oldest = i, used
		}
	}
	if old := set.ways[victim].Swap(h); old != nil {
		old.release()
	}
}

// drop forgets the handle of a segment.
func (t *handleTable) drop(number uint64) {
	set := t.set(number)
	set.mu.Lock()
	defer set.mu.Unlock()
	for i := range set.ways {
		if h := set.ways[i].Load(); h != nil && h.number == number {
			set.ways[i].Store(nil)
			h.release()
		}
	}
}

// close forgets all handles.
func (t *handleTable) close() {
	for i := range t.sets {
		set := &t.sets[i]
		set.mu.Lock()
		for w := range set.ways {
			if h := set.ways[w].Swap(nil); h != nil {
				h.release()
			}
		}
		set.mu.Unlock()
	}
}

// len counts the open handles.
func (t *handleTable) len() (n int) {
	for i := range t.sets {
		for w := range t.sets[i].ways {
			if t.sets[i].ways[w].Load() != nil {
				n++
			}
		}
	}
	return n
}
