package lun

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"lunar/store/segment"
)

func openDir(t *testing.T, o Options) *Pool {
	t.Helper()
	p, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Abandon)
	return p
}

// With preallocate the capacity is taken at once, no more of it however much is written, and given back when it is not wanted any more.
func TestBallast(t *testing.T) {
	const capacity = 48 << 20
	o := Options{Dir: filepath.Join(t.TempDir(), "pool"), Capacity: capacity, SegmentBytes: 512 << 10, Preallocate: true, Manual: true}
	p := openDir(t, o)
	kept := func(what string) {
		t.Helper()
		for range 3 {
			p.keepBallast()
		}
		// The index's part is left free as far as it may want it at once.
		if n := diskBytes(t, o.Dir); n > capacity || n < capacity-6<<20 {
			t.Errorf("%s: %s on disk, the capacity is %s", what, human(n), human(capacity))
		}
	}
	kept("an empty pool")
	files := p.ballast.count()
	h := newHammer(t, p, CreateLUN{Name: "d", SizeBytes: 20 << 20})
	if err := h.fill(p); err != nil {
		t.Fatal(err)
	}
	kept("half full")
	if now := p.ballast.count(); now >= files {
		t.Errorf("%d files of ballast, %d before 20 MiB were written: segments were not made of them", now, files)
	}
	if err := h.run(p, rand.New(rand.NewPCG(3, 3)), 4000, 4, false); err != nil {
		t.Fatal(err)
	}
	kept("overwritten")
	if _, err := p.Clean(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept("cleaned")
	h.verify(t, p)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = openDir(t, o)
	if p.ballast.count() == 0 {
		t.Error("the ballast was not found again")
	}
	kept("opened again")
	h.verify(t, p)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	o.Preallocate = false
	p = openDir(t, o)
	if files, _ := os.ReadDir(filepath.Join(o.Dir, ballastDir)); len(files) > 0 {
		t.Errorf("%d files of ballast are left", len(files))
	}
	h.verify(t, p)
}

// The capacity shrinks and grows while a thick LUN is overwritten, and the disk follows.
func TestResizeUnderLoad(t *testing.T) {
	p := smallPool(t, Options{Capacity: 64 << 20, SegmentBytes: 512 << 10, SpaceWait: 10 * time.Second})
	h := newHammer(t, p, CreateLUN{Name: "d", SizeBytes: 16 << 20, Thick: true, Reserve: &Amount{}})
	if err := h.fill(p); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- h.run(p, rand.New(rand.NewPCG(5, 5)), 6000, 4, false) }()
	for _, n := range []int64{40 << 20, 96 << 20, 32 << 20} {
		if err := p.SetCapacity(t.Context(), n); err != nil {
			t.Error(err)
		}
		time.Sleep(150 * time.Millisecond)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := p.SetCapacity(t.Context(), 16<<20); err == nil {
		t.Error("the capacity could be made smaller than what is promised")
	}
	if _, err := p.Clean(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := diskBytes(t, p.opts.Dir); n > 32<<20 {
		t.Errorf("%s on disk, the capacity is 32 MiB", human(n))
	}
	h.verify(t, p)
}

// fullFolder is a file system on which a folder cannot grow for one more name until a file was removed; freed says how many were.
type fullFolder struct {
	vfs.FS
	full  bool
	freed int
}

func (f *fullFolder) Rename(from, to string) error {
	if f.full && f.freed == 0 {
		return syscall.ENOSPC
	}
	return f.FS.Rename(from, to)
}

func (f *fullFolder) Remove(name string) error {
	f.freed++
	return f.FS.Remove(name)
}

// A segment gets its file from the ballast where its folder has to grow for the name and there is no block left for that: one
// file gives its space, and none is lost. The last ones are the index's.
func TestBallastTake(t *testing.T) {
	fs := &fullFolder{FS: vfs.Default}
	p := openDir(t, Options{FS: fs, Dir: filepath.Join(t.TempDir(), "pool"), Capacity: 48 << 20, SegmentBytes: 512 << 10, Preallocate: true, Manual: true})
	p.keepBallast()
	b := p.ballast
	before := b.count()
	fs.full, fs.freed = true, 0
	if !b.Take(p.path(segmentDir, "00000000ffff.seg")) {
		t.Error("no file was to be had while the folder could not grow")
	}
	if n := b.count(); n != before-2 || fs.freed != 1 {
		t.Errorf("%d files of ballast after one was taken and one removed (%d removed), %d before", n, fs.freed, before)
	}
	fs.full, before = false, b.count()
	if b.Take(p.path("nowhere", "00000000fffe.seg")) || b.count() != before {
		t.Errorf("%d files of ballast after a rename that failed, %d before", b.count(), before)
	}
	for n := range uint64(1000) {
		if !b.Take(p.path(segmentDir, segment.Name(0xf0000+n))) {
			break
		}
	}
	if n := b.count(); n != b.kept || n < 2 {
		t.Errorf("segments left %d files of ballast, %d are the index's", n, b.kept)
	}
}

// "preallocated" is said once, however often a file is made or given while the pool fills; and again for another capacity.
func TestBallastEvents(t *testing.T) {
	p := openDir(t, Options{Dir: filepath.Join(t.TempDir(), "pool"), Capacity: 48 << 20, SegmentBytes: 512 << 10, Preallocate: true, Manual: true})
	said := func() (n int) {
		p.keepBallast()
		for _, e := range p.Events() {
			if e.Type == "preallocate" {
				n++
			}
		}
		return n
	}
	for range 3 {
		said()
		p.ballast.yield(1)
	}
	if n := said(); n != 1 {
		t.Errorf("%d events of preallocation, want 1", n)
	}
	if err := p.SetCapacity(t.Context(), 64<<20); err != nil {
		t.Fatal(err)
	}
	if n := said(); n != 2 {
		t.Errorf("%d events of preallocation after the capacity has grown, want 2", n)
	}
}

// A capacity that was changed stays: for what the log may take, and through checkpoints and starts.
func TestCapacityStays(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "pool"), Capacity: 48 << 20, SegmentBytes: 512 << 10, Manual: true}
	p := openDir(t, o)
	before := p.maxSegments()
	if err := p.SetCapacity(t.Context(), 96<<20); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Checkpoint(); err != nil {
			t.Fatal(err)
		}
	}
	if n := p.maxSegments(); n < before*3/2 {
		t.Errorf("the log may take %d segments of twice the capacity, %d before", n, before)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	o.Capacity = 0
	p = openDir(t, o)
	if n := p.Status().CapacityBytes; n != 96<<20 {
		t.Errorf("after a restart the capacity is %s, 96 MiB were set", human(n))
	}
}
