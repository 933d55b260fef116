package lun

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"lunar/store/segment"
)

// ballast keeps the capacity that the pool has not used yet out of others' hands
// (preallocate: true): files of a segment's size, allocated and otherwise empty. A
// new segment is one of them under another name, so that its space is never free in
// between, and a segment that is given back becomes one. For the index a file is removed.
type ballast struct {
	fs   vfs.FS
	dir  string
	size int64 // of a file
	on   bool

	mu   sync.Mutex
	next uint64
	have []string // paths
	n    atomic.Int64
}

const ballastDir = "ballast"

// count is how many files there are.
func (b *ballast) count() int64 {
	if b == nil {
		return 0
	}
	return b.n.Load()
}

func (b *ballast) bytes() int64 {
	if b == nil {
		return 0
	}
	return b.n.Load() * b.size
}

// openBallast finds the files of the last time; where the pool keeps no ballast
// any more it removes them.
func (p *Pool) openBallast() error {
	b := &ballast{fs: p.fs, dir: p.path(ballastDir), size: p.id.SegmentBytes, on: p.opts.Preallocate && !p.opts.ReadOnly}
	p.ballast = b
	if p.opts.ReadOnly {
		return nil
	}
	names, err := p.fs.List(b.dir)
	if err != nil && !b.on {
		return nil // there is none
	}
	for _, name := range names {
		path := p.fs.PathJoin(b.dir, name)
		number, ok := segment.ParseName(name)
		if ok && b.on {
			b.have, b.next = append(b.have, path), max(b.next, number)
			b.n.Add(1)
			continue
		}
		if err := p.fs.Remove(path); err != nil {
			return Errorf(ErrNotPool, "ballast of the pool: %w", err)
		}
	}
	if !b.on {
		return nil
	}
	if err := p.fs.MkdirAll(b.dir, 0o755); err != nil {
		return Errorf(ErrNotPool, "ballast of the pool: %w", err)
	}
	return nil
}

// Take makes a ballast file a segment's file, if there is one (segment.Source).
func (b *ballast) Take(path string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.have) == 0 {
		return false
	}
	from := b.popLocked()
	return b.fs.Rename(from, path) == nil
}

// Keep makes a segment's file ballast (segment.Source).
func (b *ballast) Keep(path string) bool {
	if !b.on {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	to := b.nameLocked()
	if b.fs.Rename(path, to) != nil {
		return false
	}
	b.have = append(b.have, to)
	b.n.Add(1)
	return true
}

func (b *ballast) popLocked() string {
	last := len(b.have) - 1
	path := b.have[last]
	b.have = b.have[:last]
	b.n.Add(-1)
	return path
}

func (b *ballast) nameLocked() string {
	b.next++
	return b.fs.PathJoin(b.dir, segment.Name(b.next))
}

// grow allocates one file more.
func (b *ballast) grow() error {
	b.mu.Lock()
	path := b.nameLocked()
	b.mu.Unlock()
	f, err := b.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	err = f.Preallocate(0, b.size)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("%w", joinRemove(b.fs, path, err))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.have = append(b.have, path)
	b.n.Add(1)
	return nil
}

func joinRemove(fs vfs.FS, path string, err error) error {
	if gone := fs.Remove(path); gone != nil {
		return fmt.Errorf("%w; %w", err, gone)
	}
	return err
}

// yield removes up to n files and says how many it removed.
func (b *ballast) yield(n int64) (gone int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ; gone < n && len(b.have) > 0; gone++ {
		_ = b.fs.Remove(b.popLocked()) // if it stays it is found at the next start
	}
	return gone
}

// keepBallast brings the ballast to what the pool may still take, a part of it at a
// time. The index's part is left free as far as it may want it at once.
func (p *Pool) keepBallast() {
	b := p.ballast
	if !b.on {
		return
	}
	index := max(p.indexBytes()-int64(p.index.DiskBytes())-4*p.memTable(), 0)
	want := (p.state.capacity()-p.indexBytes())/b.size - p.files() + index/b.size
	have := b.count()
	if have > want {
		b.yield(have - want)
		return
	}
	for made := int64(0); have+made < want; made++ {
		if err := b.grow(); err != nil {
			if p.ballastShort.CompareAndSwap(false, true) {
				p.event("preallocate", "", fmt.Sprintf("of the capacity, %s could not be preallocated: %v", human((want-have-made)*b.size), err))
			}
			return
		}
		if made >= 256 || p.janitor.stopping() {
			return // the next second goes on
		}
	}
	if have < want {
		p.ballastShort.Store(false)
		p.event("preallocate", "", fmt.Sprintf("the whole capacity of %s is preallocated", human(p.state.capacity())))
	}
}
