package segment

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestPunchAndMissingFiles(t *testing.T) {
	opts := memOptions(vfs.Default)
	opts.Dir = t.TempDir()
	l := mustOpen(t, opts, 1, nil, 0)
	out := putBlocks(t, l, 1, 0, 6, 1)
	if err := l.Punch(1, Run{1, 2}); !errors.Is(err, ErrInvalid) {
		t.Errorf("punched the open segment: %v", err)
	}
	if err := l.Rotate(); err != nil {
		t.Fatal(err)
	}
	err := l.Punch(1, Run{1, 2})
	if errors.Is(err, ErrNoPunch) {
		t.Skip("this file system cannot punch")
	}
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 6*BlockSize)
	if err := l.Read(p, out[0].Loc); err != nil {
		t.Fatal(err)
	}
	want := pattern(1, 0, 6, 1)
	clear(want[:2*BlockSize])
	if string(p) != string(want) {
		t.Error("other blocks than those asked for were punched")
	}
	info, err := os.Stat(filepath.Join(opts.Dir, Name(1)))
	if err != nil || info.Size() != opts.SegmentBytes || info.Sys().(*syscall.Stat_t).Blocks*512 > opts.SegmentBytes-2*BlockSize {
		t.Errorf("the file has %d bytes in %d sectors: %v", info.Size(), info.Sys().(*syscall.Stat_t).Blocks, err)
	}
	for i, err := range []error{
		l.Punch(77, Run{1, 1}), l.Punch(1, Run{15, 2}), l.Punch(1, Run{-1, 2}), l.Release(77, false), l.Read(p, l.opts.loc(77, 1)),
		l.Scan(77, func(*Header, int64) error { return nil }),
	} {
		if err == nil {
			t.Errorf("what is not there was used: %d", i)
		}
	}
	if _, err := os.Stat(filepath.Join(opts.Dir, Name(77))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file was made: %v", err)
	}
}

func TestPunchInMemory(t *testing.T) {
	l := mustOpen(t, memOptions(crashable(t)), 1, nil, 0)
	putBlocks(t, l, 1, 0, 6, 1)
	if err := l.Rotate(); err != nil {
		t.Fatal(err)
	}
	if err := l.Punch(1, Run{1, 2}); !errors.Is(err, ErrNoPunch) || !errors.Is(err, syscall.ENOTSUP) {
		t.Errorf("got %v", err)
	}
}

// TestScanDamage: a segment of this log whose header went bad is not taken
// for one that ends early.
func TestScanDamage(t *testing.T) {
	opts := memOptions(crashable(t))
	l := mustOpen(t, opts, 1, nil, 0)
	putBlocks(t, l, 1, 0, 2, 1)
	writeNow(t, l)
	putBlocks(t, l, 1, 9, 2, 1)
	if err := l.Rotate(); err != nil {
		t.Fatal(err)
	}
	b, err := opts.FS.(*vfs.MemFS).UnsafeGetFileDataBuffer(opts.path(1))
	if err != nil {
		t.Fatal(err)
	}
	b[3*BlockSize+20]++
	var damage *CorruptError
	n := 0
	err = l.Scan(1, func(*Header, int64) error { n++; return nil })
	if !errors.As(err, &damage) || damage.From != 2 || damage.To != 2 || n != 1 {
		t.Errorf("%d headers, %v", n, err)
	}
	if err := ScanFile(opts, 1, func(*Header, int64) error { n++; return nil }); err != nil || n != 2 {
		t.Errorf("%d headers, %v", n, err)
	}
}

// TestOpenRead: a log that is only read from makes and changes nothing.
func TestOpenRead(t *testing.T) {
	opts := memOptions(crashable(t))
	l := mustOpen(t, opts, 1, nil, 0)
	out := putBlocks(t, l, 1, 0, 3, 1)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := Segments(opts)
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenRead(opts)
	if err != nil {
		t.Fatal(err)
	}
	wantBlocks(t, r, out, pattern(1, 0, 3, 1))
	n := 0
	if err := r.Scan(1, func(*Header, int64) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d headers: %v", n, err)
	}
	wantFailed(t, "admit", r.Admit(testContext(t), 1, 1))
	if err := r.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if after, err := Segments(opts); err != nil || !slices.Equal(before, after) {
		t.Errorf("files %v became %v: %v", before, after, err)
	}
}

func TestDropSpares(t *testing.T) {
	opts := memOptions(crashable(t))
	l := mustOpen(t, opts, 1, nil, 0)
	for range 40 {
		putBlocks(t, l, 1, 0, 1, 1)
	}
	if err := l.Rotate(); err != nil {
		t.Fatal(err)
	}
	for n := uint64(1); n <= 2; n++ {
		if err := l.Release(n, false); err != nil {
			t.Fatal(err)
		}
	}
	for _, keep := range []int{2, 1} {
		if err := l.DropSpares(keep); err != nil || !slices.Contains(l.Free(), 2) || l.Stats().Free != keep {
			t.Errorf("%d kept: %v are free, %d spares: %v", keep, l.Free(), l.Stats().Free, err)
		}
	}
	if err := l.DropSpares(0); err != nil {
		t.Fatal(err)
	}
	for n := uint64(1); n <= 2; n++ {
		if there, _ := Segments(opts); slices.Contains(there, n) && !slices.Contains(l.Free(), n) {
			t.Errorf("segment %d is there, and not free", n)
		}
	}
	if s := l.Stats(); s.Free != 0 {
		t.Errorf("%d spares are left", s.Free)
	}
}

// TestErrorsSayWhatToDo holds the texts that an administrator sees.
func TestErrorsSayWhatToDo(t *testing.T) {
	for err, want := range map[error]string{
		&CorruptError{Segment: 3, Offset: 8192, From: 5, To: 7, Why: "a record is missing"}: "segment 000000000003.seg at byte 8192 (a record is missing): entries 5 to 7",
		&failure{"syncing segment 000000000003.seg", syscall.ENOSPC}:                        "reopen the pool",
		&noRoom{os.ErrDeadlineExceeded, nil}:                                                "delete snapshots or LUNs, or raise the capacity",
		&noRoom{os.ErrDeadlineExceeded, syscall.ENOSPC}:                                     "no space left on device",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	for k := Data; k <= Mark+1; k++ {
		if k.String() == "" || strings.HasPrefix(k.String(), "kind(") != (k > Mark) {
			t.Errorf("kind %d is %q", k, k)
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	for name, spoil := range map[string]func(o *Options){
		"no folder":           func(o *Options) { o.Dir = "" },
		"odd segment size":    func(o *Options) { o.SegmentBytes = 100_000 },
		"tiny segments":       func(o *Options) { o.SegmentBytes = 15 * BlockSize },
		"tiny records":        func(o *Options) { o.RecordBlocks = 3 },
		"records of a header": func(o *Options) { o.RecordBlocks = MaxRecordBlocks + 1 },
		"negative delay":      func(o *Options) { o.WriteDelay = -1 },
		"no memory":           func(o *Options) { o.MemoryBytes = 1 },
		"one unsynced":        func(o *Options) { o.MaxUnsynced = 1 },
		"negative open files": func(o *Options) { o.MaxOpen = -1 },
	} {
		o := memOptions(vfs.NewMem())
		spoil(&o)
		if _, err := Open(o, 1, nil, 0); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: opened with %v", name, err)
		}
		if _, err := Recover(o, 1, noneSealed, false, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: recovered with %v", name, err)
		}
	}
}
