package segment

import (
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// TestPinAgainstReuse pins blocks while they are written and their chunks begin
// other lives: who gets a chunk gets that of its block, for as long as it holds it.
func TestPinAgainstReuse(t *testing.T) {
	const blocks = 40_000 / crashStride / crashStride
	s := &openSegment{pending: make([]atomic.Pointer[chunk], blocks)}
	b := NewBuffers(1 << 20)
	var now atomic.Int64
	var readers sync.WaitGroup
	var pinned atomic.Int64
	for range 2 {
		readers.Go(func() {
			for {
				i := int(now.Load())
				if i == blocks-1 {
					return
				}
				c := s.pin(i, b)
				if c == nil {
					continue
				}
				pinned.Add(1)
				if got := binary.LittleEndian.Uint64(c.mem); c.base != i || got != uint64(i) {
					t.Errorf("block %d: pinned a chunk of block %d that holds %d", i, c.base, got)
					c.release(b)
					return
				}
				c.release(b)
			}
		})
	}
	for i := range blocks {
		m := newMemory(b.Get(BlockSize))
		binary.LittleEndian.PutUint64(m.bytes, uint64(i))
		c := newChunk(m, m.bytes, i, 1)
		m.release(b)
		s.pending[i].Store(c)
		now.Store(int64(i))
		if i%64 == 0 {
			runtime.Gosched()
		}
		s.pending[i].Store(nil)
		c.release(b)
	}
	readers.Wait()
	if pinned.Load() == 0 {
		t.Error("nothing was ever pinned")
	}
}

// TestSyncErrorIsKept: the kernel reports a failed sync once; all who ask hear of it.
func TestSyncErrorIsKept(t *testing.T) {
	s := newStub()
	fs := errorfs.Wrap(vfs.NewMem(), s)
	f, err := fs.OpenReadWrite("x", fileCategory)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seg := &openSegment{number: 1, h: newHandle(1, f)}
	seg.dirty.Store(true)
	s.setFail(failKind(errorfs.OpFileSyncData, syscall.EIO))
	if err := seg.sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("got %v", err)
	}
	s.setFail(nil)
	for range 2 {
		if err := seg.sync(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("asked again: %v", err)
		}
		seg.dirty.Store(true)
	}
	if n := s.count(errorfs.OpFileSyncData); n != 1 {
		t.Fatalf("%d syncs of a file whose sync failed", n)
	}
}

// TestHandleTable: the longest unused file is closed, and never one in use.
func TestHandleTable(t *testing.T) {
	fs := vfs.NewMem()
	opened := 0
	open := func() (vfs.File, error) { opened++; return fs.OpenReadWrite("x", fileCategory) }
	table := newHandleTable(2)
	get := func(n uint64) *handle {
		t.Helper()
		h := table.get(n)
		if h == nil {
			var err error
			if h, err = table.open(n, open); err != nil {
				t.Fatal(err)
			}
		}
		return h
	}
	held := get(1)
	get(2).release()
	get(1).release()
	get(3).release() // 2 goes
	if opened != 3 || table.len() != 2 || table.get(2) != nil {
		t.Fatalf("%d opened, %d open", opened, table.len())
	}
	get(4).release() // 1 goes, though it is held
	get(5).release()
	if _, err := held.f.ReadAt(make([]byte, 1), 0); err == nil { // a closed memory file would panic
		t.Error("an empty file was read")
	}
	if held.refs.Load() != 1 {
		t.Errorf("%d references", held.refs.Load())
	}
	held.release()
	if held.acquire() {
		t.Error("a closed handle was acquired")
	}
	table.drop(5)
	if table.get(5) != nil || table.len() != 1 {
		t.Error("a dropped handle is found")
	}
	table.close()
	if table.len() != 0 {
		t.Error("handles are left")
	}
	if _, err := table.open(9, func() (vfs.File, error) { return nil, syscall.EMFILE }); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("got %v", err)
	}
}
