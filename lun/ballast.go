package lun

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"lunar/store/segment"
)

// ballast keeps the capacity that the pool has not used yet out of others' hands
// (preallocate: true): files of a segment's size, allocated and otherwise empty. A
// new segment is one of them under another name, so that its space is never free in
// between, and a segment that is given back becomes one. For the index a file is removed:
// the last few of them are kept for it, since nothing is ever freed without a checkpoint.
type ballast struct {
	fs   vfs.FS
	dir  string
	size int64 // of a file
	kept int64 // files that segments are not made of
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

// forLog is how many files segments may be made of.
func (b *ballast) forLog() int64 { return max(b.count()-b.kept, 0) }

// indexAtOnce is what the index may want of the file system at once, in bytes: to
// open it replays its logs into tables, a commit may begin a new one.
func (p *Pool) indexAtOnce() int64 { return 6 * p.memTable() }

// indexShare is what of the capacity no segment may take: with ballast, what is kept
// for the index beside what it takes now.
func (p *Pool) indexShare() int64 {
	share := p.indexBytes()
	if p.ballast.on {
		share = max(share, int64(p.index.DiskBytes())+p.ballast.kept*p.ballast.size)
	}
	return share
}

// openBallast finds the files of the last time; where the pool keeps no ballast
// any more it removes them.
func (p *Pool) openBallast() error {
	b := &ballast{fs: p.fs, dir: p.path(ballastDir), size: p.id.SegmentBytes, on: p.opts.Preallocate && !p.opts.ReadOnly}
	b.kept = 1 + (p.indexAtOnce()+b.size-1)/b.size
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

// Take makes a ballast file a segment's file, if there is one to spare
// (segment.Source). Where the folder of segments has to grow for the name and the
// file system has no block for that, another file gives its own.
func (b *ballast) Take(path string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if int64(len(b.have)) <= b.kept {
		return false
	}
	from := b.popLocked()
	err := b.fs.Rename(from, path)
	if errors.Is(err, syscall.ENOSPC) && b.makeRoomLocked(1) {
		err = b.fs.Rename(from, path)
	}
	if err != nil {
		b.pushLocked(from) // it is ballast as before
	}
	return err == nil
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
	b.pushLocked(to)
	return true
}

func (b *ballast) pushLocked(path string) {
	b.have = append(b.have, path)
	b.n.Add(1)
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
	b.pushLocked(path)
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
	return b.yieldLocked(n)
}

func (b *ballast) yieldLocked(n int64) (gone int64) {
	for ; gone < n && len(b.have) > 0; gone++ {
		_ = b.fs.Remove(b.popLocked()) // if it stays it is found at the next start
	}
	return gone
}

// makeRoom removes up to n files for a use that cannot go on otherwise, and returns
// when the file system has their space: xfs frees files in the background. It says
// whether there were any.
func (b *ballast) makeRoom(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.makeRoomLocked(n)
}

func (b *ballast) makeRoomLocked(n int64) bool {
	before, err := b.fs.GetDiskUsage(b.dir)
	gone := b.yieldLocked(n)
	for deadline := time.Now().Add(2 * time.Second); err == nil && gone > 0 && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		now, err := b.fs.GetDiskUsage(b.dir)
		if err != nil || now.AvailBytes >= before.AvailBytes+uint64(gone*b.size/2) {
			break
		}
	}
	return gone > 0
}

// keepBallast brings the ballast to what the pool may still take, a part of it at a
// time. The index's part is left free as far as it may want it at once.
func (p *Pool) keepBallast() {
	b := p.ballast
	if !b.on {
		return
	}
	capacity := p.state.capacity()
	index := max(p.indexBytes()-int64(p.index.DiskBytes())-4*p.memTable(), 0) / b.size
	want := (capacity-p.indexShare())/b.size - p.files() + max(index, b.kept)
	have := b.count()
	if have > want {
		b.yield(have - want)
	}
	for made := int64(0); have+made < want; made++ {
		if err := b.grow(); err != nil {
			p.ballastLacks(capacity, (want-have-made)*b.size, err)
			return
		}
		if made >= 256 || p.janitor.stopping() {
			return // the next second goes on
		}
	}
	if p.ballastOf.Swap(capacity) != capacity {
		p.event("preallocate", "", fmt.Sprintf("the whole capacity of %s is preallocated", human(capacity)))
	}
}

// ballastLacks reports that the file system is fuller than the capacity, once. A
// file or two come and go with the tables of the index.
func (p *Pool) ballastLacks(capacity, bytes int64, err error) {
	if bytes < capacity/100 && p.ballastOf.Load() > 0 {
		return
	}
	if p.ballastOf.Swap(-1) != -1 {
		p.event("preallocate", "", fmt.Sprintf("of the capacity, %s could not be preallocated: %v", human(bytes), err))
	}
}
