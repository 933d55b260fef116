package lun

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// sparseFS writes segments as they are, but for the payload of their records while sparse is set: so a pool of any size is
// made in little space, with real headers, maps and index.
// Nothing is synced: the process may die of this, not the machine.
type sparseFS struct {
	vfs.FS
	sparse bool
}

// GetDiskUsage says that there is room, as hardly any is taken.
func (s *sparseFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: 1 << 50, TotalBytes: 1 << 50}, nil
}

func (s *sparseFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := s.FS.OpenReadWrite(name, category, opts...)
	if err != nil || !strings.HasSuffix(name, ".seg") {
		return f, err
	}
	return &sparseFile{f, s, name}, nil
}

type sparseFile struct {
	vfs.File
	fs   *sparseFS
	name string
}

func (f *sparseFile) Fd() uintptr                  { return vfs.InvalidFd }
func (f *sparseFile) Preallocate(_, n int64) error { return f.Truncate(n) }
func (f *sparseFile) Truncate(n int64) error       { return os.Truncate(f.name, n) }
func (f *sparseFile) PunchHole(int64, int64) error { return nil }
func (f *sparseFile) DropCache() error             { return nil }
func (f *sparseFile) Sync() error                  { return nil }
func (f *sparseFile) SyncData() error              { return nil }
func (f *sparseFile) Pwritev(bufs [][]byte, off int64) (n int, err error) {
	for i, b := range bufs {
		if i == 0 || !f.fs.sparse { // a record begins with its header
			if _, err := f.WriteAt(b, off+int64(n)); err != nil {
				return n, err
			}
		}
		n += len(b)
	}
	return n, nil
}

// syncAll makes the files of a folder durable, as they are by the time that a process is killed.
func syncAll(t *testing.T, dir string) {
	names, err := os.ReadDir(dir)
	must(t, err)
	for _, n := range names {
		f, err := os.OpenFile(filepath.Join(dir, n.Name()), os.O_RDWR, 0)
		must(t, err)
		must(t, f.Sync())
		must(t, f.Close())
	}
}

// TestOpenAfterKill: a pool in which so much was written (LUNAR_BIG GiB, default 4, 64 in the long form) and that ends as kill -9
// leaves it, with as much behind the last checkpoint as there can be, opens in under 2 s: what is read is the headers
// behind the checkpoint, at most 2 GiB of log or 1 Mi entries, and the index's own log, whatever the size.
func TestOpenAfterKill(t *testing.T) {
	size, tail := int64(4)<<30, 20_000
	if os.Getenv("LUNAR_LONG") != "" {
		size, tail = 64<<30, 400_000
	}
	if n, err := strconv.ParseInt(os.Getenv("LUNAR_BIG"), 10, 64); err == nil {
		size, tail = n<<30, 400_000
	}
	if raceEnabled {
		size, tail = 1<<30, 5_000
	}
	each := os.Getenv("LUNAR_BIG_EACH") != "" // a flush behind each write, so that each has a header of its own
	if each {
		tail = 256 << 10
	}
	fs := &sparseFS{FS: vfs.Default, sparse: true}
	o := Options{FS: fs, Dir: filepath.Join(t.TempDir(), "pool"), Capacity: 2*size + 16<<30, SegmentBytes: 64 << 20, Manual: true}
	p, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateLUN(t.Context(), CreateLUN{Name: "d", SizeBytes: size}); err != nil {
		t.Fatal(err)
	}
	v, err := p.OpenVolume("d", "")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	write := func(off int64, n int, stamp uint64) {
		b := v.Buffer(n)[:n]
		fill(b[:blockSize], stamp)
		if err := v.WriteOwned(b, off, false); err != nil {
			t.Fatal(err)
		}
	}
	const piece = 1 << 20
	for off := int64(0); off < size; off += piece {
		write(off, piece, uint64(off))
		if off%(1<<30) == 0 {
			if err := p.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := p.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	fs.sparse = false
	random, last := rand.New(rand.NewPCG(1, 9)), int64(0)
	for i := range tail {
		last = random.Int64N(size/blockSize) * blockSize
		write(last, blockSize, uint64(i))
		if each {
			if err := v.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	built, segments := time.Since(began), p.Status().Segments
	v.Close()
	p.Abandon()
	syncAll(t, filepath.Join(o.Dir, segmentDir))

	o.FS, o.Manual = nil, false
	began = time.Now()
	if p, err = Open(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	defer p.Close()
	t.Logf("%d GiB in %d segments (made in %v), %d writes of 4 KiB behind the last checkpoint: opened in %v", size>>30, segments,
		built.Round(time.Second), tail, took.Round(time.Millisecond))
	if os.Getenv("LUNAR_LONG")+os.Getenv("LUNAR_BIG") != "" && took > 2*time.Second {
		t.Errorf("the open took %v", took)
	}
	if v, err = p.OpenVolume("d", ""); err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	got, want := make([]byte, blockSize), make([]byte, blockSize)
	fill(want, uint64(tail-1))
	if err := v.ReadAt(got, last); err != nil || string(got) != string(want) {
		t.Errorf("the last write is not there (%v)", err)
	}
}
