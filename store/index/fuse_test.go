package index

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

func syncOf(suffix string) func(errorfs.Op) bool {
	return func(op errorfs.Op) bool {
		return strings.Contains(op.Path, suffix) &&
			(op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSyncTo)
	}
}

// wantDead checks what is promised once writing has ended.
func wantDead(t *testing.T, x *Index, mem *vfs.MemFS) {
	t.Helper()
	before, _ := mem.List("index")
	if err := writeRound(x, 9); !errors.Is(err, ErrDead) || !errors.Is(err, syscall.EIO) {
		t.Errorf("a commit afterwards says %v", err)
	}
	for what, err := range map[string]error{
		"flush": x.Flush(), "compact": x.Compact(context.Background()), "backup": x.Backup("copy"), "err": x.Err(),
	} {
		if !errors.Is(err, ErrDead) {
			t.Errorf("%s afterwards says %v", what, err)
		}
	}
	rec, ok, err := x.Page(1, 3, 1, nil)
	if !ok || err != nil {
		t.Errorf("reads ended too: %q %v %v", rec, ok, err)
	}
	if err := x.AllPages(func(_, _, _ uint64, _ []byte) error { return nil }); err != nil {
		t.Errorf("reads ended too: %v", err)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	if after, _ := mem.List("index"); len(after) != len(before) {
		t.Errorf("the files went from %v to %v", before, after)
	}
	again := openTest(t, Options{FS: mem})
	if round := wantRound(t, again); round != 1 && round != 2 {
		t.Errorf("round %d after opening it again", round)
	}
}

// A failed sync of the log ends writing in the commit that meets it. Pebble still closes, with nothing left behind.
func TestLogSyncFails(t *testing.T) {
	noLeaks(t)
	mem := vfs.NewMem()
	var on atomic.Bool
	var told []error
	x := openTest(t, Options{FS: failing(mem, &on, syscall.EIO, syncOf(".log")), Fatal: func(err error) { told = append(told, err) }})
	if err := writeRound(x, 1); err != nil {
		t.Fatal(err)
	}
	on.Store(true)
	if err := writeRound(x, 2); !errors.Is(err, ErrDead) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("the commit says %v", err)
	}
	on.Store(false) // the disk recovers; what it lost is lost
	if len(told) != 1 || !errors.Is(told[0], ErrDead) {
		t.Errorf("Fatal got %v", told)
	}
	if x.fuse.isStuck() {
		t.Error("Pebble is stuck after a failure that it can be closed after")
	}
	wantDead(t, x, mem)
}

// A failed sync of the MANIFEST happens in the background. What was committed is in the log and is not lost.
func TestManifestSyncFails(t *testing.T) {
	noLeaks(t)
	mem := vfs.NewMem()
	var on atomic.Bool
	told := make(chan error, 9)
	x := openTest(t, Options{FS: failing(mem, &on, syscall.EIO, syncOf("MANIFEST")), Fatal: func(err error) { told <- err }})
	if err := writeRound(x, 1); err != nil {
		t.Fatal(err)
	}
	on.Store(true)
	if err := x.Flush(); !errors.Is(err, ErrDead) {
		t.Fatalf("the flush says %v", err)
	}
	if err := <-told; !errors.Is(err, syscall.EIO) {
		t.Errorf("Fatal got %v", err)
	}
	on.Store(false)
	wantDead(t, x, mem)
}

// What Pebble calls Fatalf for otherwise are its own violated invariants. Its goroutine must not go on, ours must hear of it,
// and Close must not wait for what will not happen.
func TestFatalf(t *testing.T) {
	for where, call := range map[string]func(x *Index, l *logger) error{
		"on a goroutine of Pebble's": func(x *Index, l *logger) error {
			go l.Fatalf("broken %d", 7)
			<-x.fuse.stuck
			return x.Err()
		},
		"on one of ours": func(x *Index, l *logger) error {
			return x.AllPages(func(_, _, _ uint64, _ []byte) error {
				l.Fatalf("broken %d", 7)
				t.Error("Fatalf returned")
				return nil
			})
		},
	} {
		mem := vfs.NewMem()
		var told []error
		x := openTest(t, Options{FS: mem, Fatal: func(err error) { told = append(told, err) }})
		if err := writeRound(x, 1); err != nil {
			t.Fatal(err)
		}
		if err := call(x, &logger{x}); !errors.Is(err, ErrDead) || !strings.Contains(err.Error(), "broken 7") {
			t.Errorf("%s: the error is %v", where, err)
		}
		if len(told) != 1 {
			t.Errorf("%s: Fatal got %v", where, told)
		}
		wantDead(t, x, mem)
	}
}

// A file system that has no room for tables fails the commits that would have to wait, and only while it lasts.
func TestTablesDoNotFit(t *testing.T) {
	noLeaks(t)
	mem := vfs.NewMem()
	var on atomic.Bool
	fs := failing(mem, &on, syscall.ENOSPC, func(op errorfs.Op) bool {
		return op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, ".sst")
	})
	x := openTest(t, Options{FS: fs, MemTableBytes: 256 << 10, Fatal: func(err error) { t.Errorf("Fatal: %v", err) }})
	on.Store(true)
	write := func(n uint64) error {
		b := x.NewBatch()
		defer b.Close()
		b.SetPage(1, n, 1, make([]byte, 30<<10))
		return b.Commit()
	}
	n := uint64(0)
	var err error
	for start := time.Now(); err == nil; n++ {
		if err = write(n); time.Since(start) > 100*time.Second {
			t.Fatal("no commit was refused")
		}
	}
	if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrDead) {
		t.Errorf("the commit that does not fit says %v", err)
	}
	if err := x.Flush(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a flush says %v", err)
	}
	for page := uint64(0); page < n-1; page++ {
		if _, ok, err := x.Page(1, page, 1, nil); !ok || err != nil {
			t.Fatalf("page %d of %d: %v %v", page, n-1, ok, err)
		}
	}
	on.Store(false)
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if err = write(n); err == nil {
			break
		}
		if time.Since(start) > 100*time.Second {
			t.Fatalf("there is room again, and a commit says %v", err)
		}
	}
	if err := x.Check(); err != nil {
		t.Error(err)
	}
}

// Close does not wait for a flush that cannot succeed, and loses nothing.
func TestCloseWhileFull(t *testing.T) {
	noLeaks(t)
	mem := vfs.NewMem()
	var on atomic.Bool
	x := openTest(t, Options{FS: failing(mem, &on, syscall.ENOSPC, func(op errorfs.Op) bool { return op.Kind == errorfs.OpCreate })})
	if err := writeRound(x, 1); err != nil {
		t.Fatal(err)
	}
	on.Store(true)
	if err := x.Flush(); err == nil {
		t.Fatal("a flush without room succeeded")
	}
	start := time.Now()
	if err := x.Close(); err != nil || time.Since(start) > 60*time.Second {
		t.Errorf("Close took %v and says %v", time.Since(start), err)
	}
	on.Store(false)
	wantRound(t, openTest(t, Options{FS: mem}))
}

// A commit that the file system has no room for is refused before Pebble's log meets the end of the disk.
func TestDiskFull(t *testing.T) {
	noLeaks(t)
	mem := vfs.NewMem()
	x := openTest(t, Options{FS: mem})
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 8 << 20, TotalBytes: 1 << 30})
	if err := writeRound(x, 1); !errors.Is(err, ErrNoRoom) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a commit with 8 MiB left says %v", err)
	}
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 64 << 20, TotalBytes: 1 << 30})
	if err := writeRound(x, 1); err != nil {
		t.Error(err)
	}
	wantRound(t, x)
}

// An index on a full file system is not opened, and says so at once; it is whole when there is space again.
func TestOpenDiskFull(t *testing.T) {
	noLeaks(t)
	mem := vfs.NewMem()
	x := openTest(t, Options{FS: mem})
	if err := writeRound(x, 1); err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 4 << 20, TotalBytes: 1 << 30})
	if x, err := Open(Options{FS: mem, Dir: "index", MergePages: toyMerge}); !errors.Is(err, ErrNoRoom) || !strings.Contains(err.Error(), "4 MiB free") {
		t.Errorf("opening with 4 MiB left says %v, %v", x, err)
	}
	x, err := Open(Options{FS: mem, Dir: "index", MergePages: toyMerge, ReadOnly: true})
	if err != nil {
		t.Fatalf("reading needs no space: %v", err)
	}
	wantRound(t, x)
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 64 << 20, TotalBytes: 1 << 30})
	wantRound(t, openTest(t, Options{FS: mem}))
}

// A panic that is not ours to explain stays a panic.
func TestForeignPanic(t *testing.T) {
	noLeaks(t)
	x := openTest(t, Options{FS: vfs.NewMem()})
	if err := writeRound(x, 1); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if r := recover(); r != "mine" {
			t.Errorf("recovered %v", r)
		}
	}()
	_ = x.AllPages(func(_, _, _ uint64, _ []byte) error { panic("mine") })
}
