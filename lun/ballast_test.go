package lun

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
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
