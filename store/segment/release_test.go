package segment

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestPunchAndMissingFiles(t *testing.T) {
	opts := memOptions(vfs.Default)
	opts.Dir = t.TempDir()
	l := mustOpen(t, opts, 1, nil, 0)
	out := putBlocks(t, l, 1, 0, 6, 1)
	if err := l.Punch(1, 1, 2); !errors.Is(err, ErrInvalid) {
		t.Errorf("punched the open segment: %v", err)
	}
	if err := l.Rotate(); err != nil {
		t.Fatal(err)
	}
	err := l.Punch(1, 1, 2)
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
		l.Punch(77, 1, 1), l.Punch(1, 15, 2), l.Punch(1, -1, 2), l.Release(77, false), l.Read(p, l.opts.loc(77, 1)),
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
	if err := l.Punch(1, 1, 2); !errors.Is(err, ErrNoPunch) || !errors.Is(err, syscall.ENOTSUP) {
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
