package lun

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// smallPool opens a pool on the operating system's file system, with background
// work.
func smallPool(t *testing.T, o Options) *Pool {
	t.Helper()
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "pool")
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 1 << 20
	}
	p, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// diskBytes is what the files under dir occupy.
func diskBytes(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return nil // removed meanwhile
			}
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			n += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// hammer overwrites random blocks of a LUN with its number of the write as
// content, and remembers the last one of each block.
type hammer struct {
	lun    string
	blocks int
	last   []uint64
	next   uint64
}

// run makes n writes of count blocks by chance; each is durable if fua.
func (h *hammer) run(p *Pool, rng *rand.Rand, n, count int, fua bool) error {
	v, err := p.OpenVolume(h.lun, "")
	if err != nil {
		return err
	}
	defer v.Close()
	for range n {
		at := rng.IntN(h.blocks - count + 1)
		if err := h.write(v, at, count, fua); err != nil {
			return err
		}
	}
	return v.Flush()
}

func (h *hammer) write(v *Volume, at, count int, fua bool) error {
	b := v.Buffer(count * blockSize)[:count*blockSize]
	for i := range count {
		h.next++
		fill(b[i*blockSize:(i+1)*blockSize], h.next)
		h.last[at+i] = h.next
	}
	if err := v.WriteOwned(b, int64(at)*blockSize, fua); err != nil {
		return fmt.Errorf("write %d of %s: %w", h.next, h.lun, err)
	}
	return nil
}

// fill writes every block once.
func (h *hammer) fill(p *Pool) error {
	v, err := p.OpenVolume(h.lun, "")
	if err != nil {
		return err
	}
	defer v.Close()
	for at := 0; at < h.blocks; {
		n := min(64, h.blocks-at)
		if err := h.write(v, at, n, false); err != nil {
			return err
		}
		at += n
	}
	return v.Flush()
}

func (h *hammer) verify(t *testing.T, p *Pool) {
	t.Helper()
	v, err := p.OpenVolume(h.lun, "")
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	b := make([]byte, 64*blockSize)
	for at := 0; at < h.blocks; at += 64 {
		n := min(64, h.blocks-at)
		if err := v.ReadAt(b[:n*blockSize], int64(at)*blockSize); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if s := stampOf(t, b[i*blockSize:(i+1)*blockSize]); s != h.last[at+i] {
				t.Fatalf("%s block %d holds %d, want %d", h.lun, at+i, s, h.last[at+i])
			}
		}
	}
}

func newHammer(t *testing.T, p *Pool, r CreateLUN) *hammer {
	t.Helper()
	if _, err := p.CreateLUN(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	n := int(r.SizeBytes / blockSize)
	return &hammer{lun: r.Name, blocks: n, last: make([]uint64, n)}
}

// A thick LUN of nine tenths of what the pool offered is overwritten at random
// several times over, in the worst way: 4 KiB at a time, each synced, so that
// every block costs a header. It never fails, and the pool keeps to its capacity.
func TestThickLUNIsOverwrittenForEver(t *testing.T) {
	capacity, times := int64(32<<20), 0.5
	if os.Getenv("LUNAR_LONG") != "" {
		capacity, times = 256<<20, 6
	}
	p := smallPool(t, Options{Capacity: capacity, SegmentBytes: 256 << 10, SpaceWait: 10 * time.Second})
	size := p.Status().FreeBytes / 10 * 9 / blockSize * blockSize
	h := newHammer(t, p, CreateLUN{Name: "thick", SizeBytes: size, Thick: true, Reserve: &Amount{}})
	if err := h.fill(p); err != nil {
		t.Fatal(err)
	}
	stop, most := make(chan struct{}), int64(0)
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				most = max(most, diskBytes(t, p.opts.Dir))
			}
		}
	})
	began := time.Now()
	err := h.run(p, rand.New(rand.NewPCG(1, 1)), int(times*float64(h.blocks)), 1, true)
	close(stop)
	watch.Wait()
	if err != nil {
		t.Errorf("after %s: %v; %+v", time.Since(began), err, p.Status())
	}
	t.Logf("LUN of %s, %d writes in %s, at most %s on disk, amplification %.1f", human(size), int(times*float64(h.blocks)), time.Since(began), human(most), p.amplification())
	if most > capacity {
		t.Errorf("the pool took %s of the disk, its capacity is %s", human(most), human(capacity))
	}
	if p.moved.Load() == 0 {
		t.Error("nothing was cleaned: the test is too short to show anything")
	}
	h.verify(t, p)
}
