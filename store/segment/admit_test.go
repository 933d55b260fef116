package segment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// admitSoon admits with a short patience.
func admitSoon(l *Log, reserved bool, blocks int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if reserved {
		return l.AdmitReserved(ctx, blocks, 1)
	}
	return l.Admit(ctx, blocks, 1)
}

func wantFull(t *testing.T, err error) {
	t.Helper()
	var errno syscall.Errno
	if !errors.Is(err, ErrFull) || !errors.As(err, &errno) || errno != syscall.ENOSPC {
		t.Fatalf("got %v (%v), want ErrFull", err, errno)
	}
}

// TestNoSpaceToPrepare: a full file system makes writers wait, and passes.
func TestNoSpaceToPrepare(t *testing.T) {
	s, opts := stubbed(t)
	var full atomic.Int64
	opts.OnFull = func() { full.Add(1) }
	s.setFail(failKind(errorfs.OpFilePreallocate, syscall.ENOSPC))
	l := mustOpen(t, opts, 1, nil, 0)
	err := admitSoon(l, false, 1)
	wantFull(t, err)
	if !errors.Is(err, context.DeadlineExceeded) || full.Load() == 0 || l.Err() != nil {
		t.Fatalf("%v, %d calls of OnFull, log %v", err, full.Load(), l.Err())
	}
	if names, _ := list(l.opts); len(names) != 0 || l.Stats().Files != 0 {
		t.Fatalf("files %v were left behind, %d counted", names, l.Stats().Files)
	}
	granted := make(chan error, 1)
	go func() { granted <- l.Admit(testContext(t), 1, 1) }()
	eventually(t, "one waits", func() bool { return l.Stats().Waiting == 1 })
	s.setFail(nil)
	if err := <-granted; err != nil {
		t.Fatal(err)
	}
	l.Unadmit(1, 1)
}

// TestFolderSyncFails: a folder whose sync failed may lose any name in it.
func TestFolderSyncFails(t *testing.T) {
	s, opts := stubbed(t)
	s.setFail(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSync && op.Path == testDir && s.count(errorfs.OpFilePreallocate) > 0 {
			return syscall.ENOSPC
		}
		return nil
	})
	if _, err := Open(opts, 1, nil, 0); !errors.Is(err, ErrFailed) {
		t.Fatalf("opened with %v", err)
	}
}

// TestLimit: ordinary writers stop before the reserve, reserved ones at the limit,
// and Release lets both go on.
func TestLimit(t *testing.T) {
	opts := memOptions(crashable(t))
	var limit, full atomic.Int64
	limit.Store(6)
	opts.MaxSegments = func() int { return int(limit.Load()) }
	opts.OnFull = func() { full.Add(1) }
	l := mustOpen(t, opts, 1, nil, 0)
	fill := func(reserved bool) (n int, err error) {
		for ; n < 1000; n++ {
			err := admitSoon(l, reserved, 1)
			for err != nil && !errors.Is(err, ErrFull) { // the keeper was slow
				err = admitSoon(l, reserved, 1)
			}
			if err != nil {
				return n, err
			}
			p := pattern(1, uint64(n), 1, 1)
			if _, err := l.Append(dataEntry(1, uint64(n), p), p, false, nil); err != nil {
				t.Fatal(err)
			}
		}
		return n, nil
	}
	ordinary, err := fill(false)
	wantFull(t, err)
	if full.Load() == 0 || ordinary < 3*12 || ordinary > 4*16 {
		t.Fatalf("%d blocks fit below a limit of 6 segments with 2 in reserve; %d calls of OnFull", ordinary, full.Load())
	}
	reserved, err := fill(true)
	wantFull(t, err)
	if reserved < 2*12 || reserved > 3*16 {
		t.Fatalf("%d blocks fit into the reserve of 2", reserved)
	}
	if n := l.Stats().Files; n != 6 {
		t.Fatalf("%d files with a limit of 6", n)
	}
	if err := l.Sync(l.Next() - 1); err != nil {
		t.Fatal(err)
	}
	granted := make(chan error, 1)
	go func() { granted <- l.Admit(testContext(t), 1, 1) }()
	eventually(t, "one waits", func() bool { return l.Stats().Waiting == 1 })
	for n := uint64(1); n <= 3; n++ {
		eventually(t, "it is sealed", func() bool { _, ok := l.Sealed(n); return ok })
		if err := l.Release(n, n == 2); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-granted; err != nil {
		t.Fatal(err)
	}
	l.Unadmit(1, 1)
	if _, err := fill(false); err == nil {
		t.Fatal("no end of it")
	}
	limit.Store(0)
	if _, err := fill(false); err != nil {
		t.Fatalf("without a limit: %v", err)
	}
}

func TestTooLargeForLimit(t *testing.T) {
	opts := memOptions(crashable(t))
	opts.MaxSegments = func() int { return 4 }
	l := mustOpen(t, opts, 1, nil, 0)
	if err := l.Admit(context.Background(), 1000, 1); !errors.Is(err, ErrFull) {
		t.Fatalf("admitted with %v", err)
	}
}

// TestMemoryBound holds the writer back: admissions stop at the bound.
func TestMemoryBound(t *testing.T) {
	s, opts := stubbed(t)
	opts.MemoryBytes = 20 * BlockSize
	opts.SegmentBytes = 1 << 20
	l := mustOpen(t, opts, 1, nil, 0)
	t.Cleanup(func() { s.hold.Store(-1); close(s.passes) })
	s.hold.Store(int64(errorfs.OpFileWriteAt))
	n := 0
	var err error
	for ; err == nil && n < 100; n++ {
		if err = admitSoon(l, n%2 == 0, 1); err == nil {
			p := pattern(1, uint64(n), 1, 1)
			if _, err := l.Append(dataEntry(1, uint64(n), p), p, false, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrFull) || n < 15 || n > 21 {
		t.Fatalf("%d blocks were admitted into memory for 20: %v", n, err)
	}
	s.hold.Store(-1)
	for range 10 {
		s.passes <- struct{}{}
	}
	if err := l.Admit(testContext(t), 1000, 1); err != nil { // alone, it may be larger
		t.Fatal(err)
	}
	l.Unadmit(1000, 1)
}

// TestFirstComeFirstServed: a large write gets its turn although small ones keep coming.
func TestFirstComeFirstServed(t *testing.T) {
	opts := memOptions(crashable(t))
	l := mustOpen(t, opts, 1, nil, 0)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			p := pattern(1, 0, 1, 1)
			e := dataEntry(1, 0, p)
			for l.Admit(ctx, 1, 1) == nil {
				if _, err := l.Append(e, p, false, nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 3 {
		putBlocks(t, l, 1, 0, 100, 1) // longer than six segments
	}
	cancel()
	wg.Wait()
}

// TestBusy runs all of it at once: writers of all sizes, readers, syncs, rotation,
// admissions given back, on segments so small that they are left all the time.
func TestBusy(t *testing.T) {
	eachFS(t, func(t *testing.T, opts Options) {
		opts.WriteDelay = time.Millisecond
		opts.MemoryBytes = 256 << 10
		opts.MaxOpen = 3
		l := mustOpen(t, opts, 1, nil, 0)
		b := &busy{t: t, l: l, stop: make(chan struct{})}
		var writers, others sync.WaitGroup
		for i := range 4 {
			writers.Go(func() { b.write(rand.New(rand.NewPCG(1, uint64(i)))) })
			others.Go(func() { b.read(rand.New(rand.NewPCG(2, uint64(i)))) })
		}
		others.Go(func() { b.rotate() })
		writers.Wait()
		close(b.stop)
		others.Wait()
		if err := l.Sync(^Seq(0)); err != nil {
			t.Fatal(err)
		}
		for _, w := range b.writes {
			wantBlocks(t, l, w.extents, w.data)
		}
		if s := l.Stats(); s.MemoryBytes != 0 || s.Written != s.Next-1 || s.Handles > 3 || s.Files < 20 {
			t.Errorf("at rest: %+v", s)
		}
		if c := l.adm.credit; c != (cost{}) {
			t.Errorf("credit %+v is left", c)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		all, got := mustRecover(t, opts, 1)
		if got.LastReplayed != l.Next()-1 || len(all) != int(l.Next()-1) {
			t.Errorf("recovered %+v of %d", got, l.Next()-1)
		}
	})
}

type busyWrite struct {
	extents []Extent
	data    []byte
}

type busy struct {
	t      *testing.T
	l      *Log
	stop   chan struct{}
	mu     sync.Mutex
	writes []busyWrite
}

func (b *busy) write(rng *rand.Rand) {
	ctx := context.Background()
	var last Seq
	for i := range 150 {
		n := 1 + rng.IntN(4)
		switch rng.IntN(20) {
		case 0:
			n = 1 + rng.IntN(60)
		case 1:
			if err := b.l.Sync(last); err != nil || b.l.Synced() < last {
				b.t.Errorf("sync of %d: %v, synced %d", last, err, b.l.Synced())
			}
		case 2:
			if err := b.l.Admit(ctx, n, 3); err != nil {
				b.t.Error(err)
			}
			b.l.Unadmit(n, 3)
		case 3:
			b.structural(rng)
			continue
		}
		p := pattern(rng.Uint64(), uint64(i), n, rng.Uint64())
		e := dataEntry(1, uint64(i), p)
		given, owned := p, rng.IntN(2) == 0
		if owned {
			given = b.l.Buffers().Get(len(p))
			copy(given, p)
		}
		if err := b.l.Admit(ctx, n, 1); err != nil {
			b.t.Error(err)
			return
		}
		out, err := b.l.Append(e, given, owned, nil)
		if err != nil {
			b.t.Error(err)
			return
		}
		last = out[len(out)-1].Seq
		b.mu.Lock()
		b.writes = append(b.writes, busyWrite{out, p})
		b.mu.Unlock()
	}
}

// structural appends with exactly the credit that it needs, whatever is left
// of the segment.
func (b *busy) structural(rng *rand.Rand) {
	n := 1 + rng.IntN(15)
	if err := b.l.AdmitReserved(context.Background(), n, 2); err != nil {
		b.t.Error(err)
		return
	}
	if _, err := b.l.Append(Entry{Kind: Struct, Version: 1}, bytes.Repeat([]byte{1}, n*BlockSize-rng.IntN(100)), false, nil); err != nil {
		b.t.Error(err)
	}
	if _, err := b.l.Append(Entry{Kind: Trim, Version: 1, Count: 9}, nil, false, nil); err != nil {
		b.t.Error(err)
	}
}

func (b *busy) read(rng *rand.Rand) {
	p := make([]byte, 64*BlockSize)
	for {
		select {
		case <-b.stop:
			return
		default:
		}
		b.mu.Lock()
		n := len(b.writes)
		var w busyWrite
		if n > 0 {
			w = b.writes[max(0, n-1-int(rng.ExpFloat64()*20))]
		}
		b.mu.Unlock()
		for _, x := range w.extents {
			at := rng.IntN(x.Count)
			k := 1 + rng.IntN(x.Count-at)
			if err := b.l.Read(p[:k*BlockSize], x.Loc+Loc(at)); err != nil {
				b.t.Error(err)
				return
			}
			if from := (x.First + at) * BlockSize; !bytes.Equal(p[:k*BlockSize], w.data[from:from+k*BlockSize]) {
				b.t.Error(fmt.Errorf("wrong content at %d", x.Loc))
				return
			}
		}
		time.Sleep(10 * time.Microsecond)
	}
}

func (b *busy) rotate() {
	for {
		select {
		case <-b.stop:
			return
		case <-time.After(2 * time.Millisecond):
			if err := b.l.Rotate(); err != nil {
				b.t.Error(err)
				return
			}
		}
	}
}

func TestCloseWhileWaiting(t *testing.T) {
	opts := memOptions(vfs.NewMem())
	opts.MaxSegments = func() int { return 3 }
	l := mustOpen(t, opts, 1, nil, 0)
	errs := make(chan error, 3)
	for range cap(errs) {
		go func() { errs <- l.Admit(context.Background(), 20, 1) }()
	}
	eventually(t, "all wait", func() bool { return l.Stats().Waiting == cap(errs) })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for range cap(errs) {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("got %v, want ErrClosed", err)
		}
	}
}
