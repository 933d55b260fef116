package segment

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// stub stands between a log and its file system: it counts operations, keeps
// their order, holds one kind back, and fails one kind.
type stub struct {
	mu     sync.Mutex
	events []string
	counts map[errorfs.OpKind]int

	hold   atomic.Int64 // the kind to hold back, or -1
	passes chan struct{}
	fail   func(op errorfs.Op) error
}

func newStub() *stub {
	s := &stub{counts: map[errorfs.OpKind]int{}, passes: make(chan struct{}, 100)}
	s.hold.Store(-1)
	return s
}

func (s *stub) String() string { return "stub" }

func (s *stub) MaybeError(op errorfs.Op) error {
	s.mu.Lock()
	s.counts[op.Kind]++
	switch op.Kind {
	case errorfs.OpFileWriteAt, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpOpenDir, errorfs.OpFilePreallocate:
		s.events = append(s.events, fmt.Sprintf("%s %s", eventName[op.Kind], op.Path[strings.LastIndex(op.Path, "/")+1:]))
	}
	fail := s.fail
	s.mu.Unlock()
	if s.hold.Load() == int64(op.Kind) {
		<-s.passes
	}
	if fail != nil {
		return fail(op)
	}
	return nil
}

var eventName = map[errorfs.OpKind]string{
	errorfs.OpFileWriteAt: "write", errorfs.OpFileSync: "sync", errorfs.OpFileSyncData: "syncdata",
	errorfs.OpOpenDir: "folder", errorfs.OpFilePreallocate: "allocate",
}

func (s *stub) count(kind errorfs.OpKind) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[kind]
}

func (s *stub) setFail(fail func(op errorfs.Op) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

// failKind fails all operations of a kind.
func failKind(kind errorfs.OpKind, err error) func(errorfs.Op) error {
	return func(op errorfs.Op) error {
		if op.Kind == kind {
			return err
		}
		return nil
	}
}

func stubbed(t *testing.T) (*stub, Options) {
	s := newStub()
	opts := memOptions(nil)
	opts.FS = errorfs.Wrap(crashable(t), s)
	return s, opts
}

// eventually waits for something that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

// TestGroupCommit holds the first sync back while others append and wait: they
// must not be released by it, and share the next one. On disk their records are
// in the file before the first sync ends; that must not count.
func TestGroupCommit(t *testing.T) {
	eachFS(t, testGroupCommit)
}

func testGroupCommit(t *testing.T, opts Options) {
	s := newStub()
	disk := opts.FS == vfs.Default
	opts.FS = errorfs.Wrap(opts.FS, s)
	opts.SegmentBytes = 1 << 20 // the keeper is to have nothing to sync
	l := mustOpen(t, opts, 1, nil, 0)
	t.Cleanup(func() { s.hold.Store(-1); close(s.passes) })
	s.hold.Store(int64(errorfs.OpFileSyncData))
	first := putBlocks(t, l, 1, 0, 1, 1)
	firstDone := make(chan error, 1)
	go func() { firstDone <- l.Sync(first[0].Seq) }()
	eventually(t, "the first sync runs", func() bool { return s.count(errorfs.OpFileSyncData) == 1 })

	const followers = 20
	var released atomic.Int64
	done := make(chan error, followers)
	for i := range followers {
		out := putBlocks(t, l, 1, uint64(i), 1, 1)
		go func() {
			err := l.Sync(out[0].Seq)
			if l.Synced() < out[0].Seq {
				err = errors.Join(err, fmt.Errorf("released at %d before %d", l.Synced(), out[0].Seq))
			}
			released.Add(1)
			done <- err
		}()
	}
	want := l.Next() - 1
	if disk {
		writeNow(t, l)
	}
	eventually(t, "all wait", func() bool {
		l.group.mu.Lock()
		defer l.group.mu.Unlock()
		return l.group.want == want
	})
	s.passes <- struct{}{}
	if err := <-firstDone; err != nil || l.Synced() != first[0].Seq {
		t.Fatalf("first sync: %v, synced %d", err, l.Synced())
	}
	eventually(t, "the second sync runs", func() bool { return s.count(errorfs.OpFileSyncData) == 2 })
	time.Sleep(5 * time.Millisecond)
	if n := released.Load(); n != 0 {
		t.Fatalf("%d callers were released by a sync that began before their records were written", n)
	}
	s.passes <- struct{}{}
	for range followers {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if n := s.count(errorfs.OpFileSyncData); n != 2 {
		t.Fatalf("%d syncs for two groups", n)
	}
	s.hold.Store(-1)
	if err := l.Sync(want); err != nil || s.count(errorfs.OpFileSyncData) != 2 {
		t.Fatalf("a sync of what is durable: %v, %d syncs", err, s.count(errorfs.OpFileSyncData))
	}
}

// TestSyncOrder reviews the order of operations of a small life.
func TestSyncOrder(t *testing.T) {
	s, opts := stubbed(t)
	opts.ZeroAhead = -1
	l := mustOpen(t, opts, 1, nil, 0)
	putBlocks(t, l, 1, 0, 2, 1)
	if err := l.Sync(1); err != nil {
		t.Fatal(err)
	}
	if err := l.Mark(); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(s.events, "\n")
	const want = `folder data
allocate 000000000001.seg
sync 000000000001.seg
folder data
sync data
allocate 000000000002.seg
sync 000000000002.seg
folder data
sync data
write 000000000001.seg
write 000000000001.seg
syncdata 000000000001.seg
write 000000000001.seg`
	if got = strings.Replace(got, "folder data\nsync data\nallocate", "folder data\nallocate", 1); got != want {
		t.Fatalf("operations:\n%s\nwant:\n%s", got, want)
	}
}

// TestSegmentOrder checks the rules for many segments: a segment's name and
// size are durable before it is written to, and no more than MaxUnsynced segments
// have records that are not synced.
func TestSegmentOrder(t *testing.T) {
	for _, most := range []int{2, 3, 8} {
		t.Run(fmt.Sprint(most), func(t *testing.T) { segmentOrder(t, most) })
	}
}

func segmentOrder(t *testing.T, most int) {
	s, opts := stubbed(t)
	opts.MaxUnsynced = most
	l := mustOpen(t, opts, 1, nil, 0)
	for i := range 200 {
		putBlocks(t, l, 1, uint64(i), 1+i%5, 1)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	dirty, ready := map[string]bool{}, map[string]bool{}
	var named []string
	segments := 0
	for _, e := range s.events {
		what, file, _ := strings.Cut(e, " ")
		switch {
		case what == "sync" && file == testDir:
			for _, n := range named {
				ready[n] = true
			}
			named = nil
		case what == "sync":
			named = append(named, file)
		case what == "syncdata":
			delete(dirty, file)
		case what == "write":
			if !ready[file] {
				t.Fatalf("%s is written to before its name was durable", file)
			}
			if !dirty[file] {
				segments++
			}
			if dirty[file] = true; len(dirty) > most {
				t.Fatalf("%d segments with unsynced records", len(dirty))
			}
		}
	}
	if segments < 600/15 {
		t.Fatalf("only %d segments", segments)
	}
}

// TestSyncFails: a failed sync is final, for all, whatever a later one would say.
func TestSyncFails(t *testing.T) {
	s, opts := stubbed(t)
	var fails atomic.Int64
	opts.OnFail = func(error) { fails.Add(1) }
	l := mustOpen(t, opts, 1, nil, 0)
	durable := putBlocks(t, l, 1, 0, 2, 1)
	if err := l.Sync(1); err != nil {
		t.Fatal(err)
	}
	written := putBlocks(t, l, 1, 10, 2, 2)
	if err := l.Admit(testContext(t), 3, 1); err != nil {
		t.Fatal(err)
	}
	once := failKind(errorfs.OpFileSyncData, syscall.ENOSPC)
	s.setFail(func(op errorfs.Op) error {
		err := once(op)
		if err != nil {
			s.setFail(nil) // as the kernel: it is reported once
		}
		return err
	})
	errs := make(chan error, 10)
	for range cap(errs) {
		go func() { errs <- l.Sync(2) }()
	}
	for range cap(errs) {
		wantFailed(t, "sync", <-errs)
	}
	wantFailed(t, "sync again", l.Sync(2))
	wantFailed(t, "admit", l.Admit(context.Background(), 1, 1))
	p := pattern(1, 0, 1, 1)
	_, err := l.Append(dataEntry(1, 0, p), p, false, nil)
	wantFailed(t, "append", err)
	wantFailed(t, "mark", l.Mark())
	wantFailed(t, "rotate", l.Rotate())
	wantFailed(t, "err", l.Err())
	if err := l.Sync(1); err != nil {
		t.Fatalf("sync of what was durable before: %v", err)
	}
	if l.Synced() != 1 || fails.Load() != 1 {
		t.Fatalf("synced %d, %d reports", l.Synced(), fails.Load())
	}
	wantBlocks(t, l, durable, pattern(1, 0, 2, 1))
	wantBlocks(t, l, written, pattern(1, 10, 2, 2))
	wantFailed(t, "close", l.Close())
}

// wantFailed checks that an error is the log's failure, and that a client gets
// EIO whatever the cause.
func wantFailed(t *testing.T, what string, err error) {
	t.Helper()
	var errno syscall.Errno
	if !errors.Is(err, ErrFailed) || !errors.As(err, &errno) || errno != syscall.EIO {
		t.Errorf("%s: %v (%v), want ErrFailed", what, err, errno)
	}
}

// TestWriteFails: what was appended is still read, from memory.
func TestWriteFails(t *testing.T) {
	s, opts := stubbed(t)
	l := mustOpen(t, opts, 1, nil, 0)
	s.setFail(failKind(errorfs.OpFileWriteAt, syscall.ENOSPC))
	out := putBlocks(t, l, 1, 0, 3, 1)
	out2 := putBlocks(t, l, 1, 9, 7, 1)
	waiting := make(chan error, 1)
	go func() { waiting <- l.Admit(context.Background(), 400, 1) }()
	eventually(t, "an admission waits", func() bool { return l.Stats().Waiting == 1 || l.Err() != nil })
	wantFailed(t, "sync", l.Sync(out[0].Seq))
	wantFailed(t, "a waiting admission", <-waiting)
	if !errors.Is(l.Err(), syscall.ENOSPC) {
		t.Errorf("the cause is gone: %v", l.Err())
	}
	s.setFail(nil)
	wantFailed(t, "sync after the disk is well again", l.Sync(out[0].Seq))
	wantBlocks(t, l, out, pattern(1, 0, 3, 1))
	wantBlocks(t, l, out2, pattern(1, 9, 7, 1))
}

// TestBackgroundSyncFails: the keeper's sync of a segment that was left is the
// one that fails; who asks for its entries must hear of it.
func TestBackgroundSyncFails(t *testing.T) {
	s, opts := stubbed(t)
	l := mustOpen(t, opts, 1, nil, 0)
	s.setFail(failKind(errorfs.OpFileSyncData, syscall.EIO))
	var last Seq
	for i := 0; l.Err() == nil && i < 100; i++ {
		if err := l.Admit(testContext(t), 1, 1); err != nil {
			break
		}
		p := pattern(1, uint64(i), 1, 1)
		out, err := l.Append(dataEntry(1, uint64(i), p), p, false, nil)
		if err != nil {
			break
		}
		last = out[0].Seq
	}
	eventually(t, "the log fails", func() bool { return l.Err() != nil })
	s.setFail(nil)
	for seq := Seq(1); seq <= last; seq++ {
		wantFailed(t, "sync", l.Sync(seq))
	}
}

func TestMarkCarriesSynced(t *testing.T) {
	opts := memOptions(crashable(t))
	l := mustOpen(t, opts, 1, nil, 0)
	putBlocks(t, l, 1, 0, 2, 1)
	if err := l.Sync(1); err != nil {
		t.Fatal(err)
	}
	if err := l.Mark(); err != nil {
		t.Fatal(err)
	}
	mem := opts.FS.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: testRNG()})
	opts.FS = mem
	if _, got := mustRecover(t, opts, 1); got.Synced != 1 || got.LastReplayed != 2 {
		t.Fatalf("recovered %+v", got)
	}
}

// TestZeroAhead: in a file that was never written a small record that is synced takes zeros along, once for many of them; what a
// recovery finds behind it is the end of the log. In one that is used again, and behind large records, there are none.
func TestZeroAhead(t *testing.T) {
	opts := memOptions(crashable(t))
	opts.ZeroAhead, opts.SegmentBytes = 32*BlockSize, 1<<20
	reached := func(l *Log) int {
		l.ioMu.Lock()
		defer l.ioMu.Unlock()
		return l.live[len(l.live)-1].reached
	}
	syncedPut := func(l *Log, n int) {
		t.Helper()
		out := putBlocks(t, l, 1, 0, n, 1)
		if err := l.Sync(out[len(out)-1].Seq); err != nil {
			t.Fatal(err)
		}
	}
	l := mustOpen(t, opts, 1, nil, 0)
	for i := range 17 { // two blocks each: the 17th ends where the zeros of the first do
		if syncedPut(l, 1); reached(l) != 2+32 {
			t.Fatalf("after %d records the file is written up to block %d, want %d", i+1, reached(l), 2+32)
		}
	}
	if syncedPut(l, 1); reached(l) != 36+32 {
		t.Fatalf("the next records found block %d, want %d", reached(l), 36+32)
	}
	r, err := Recover(opts, 1, noneSealed, false, func(Entry, Seq, Loc, []byte) error { return nil })
	if err != nil || r.Next != 19 {
		t.Fatalf("recovered up to %d, %v; want 19", r.Next, err)
	}
}
