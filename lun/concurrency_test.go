package lun

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	chaosSlots  = 64
	chaosBlocks = 70 * 512 // more pages a LUN than the cache holds
	chaosStride = 547      // blocks between slots: each on a page of its own
)

// writer owns slots of one LUN and writes stamps that only grow, so that what
// any reader or snapshot may see lies between two numbers.
type writer struct {
	lun    string
	slots  []int // block numbers
	n      uint64
	acked  []atomic.Uint64 // by slot; durable only after a flush
	issued []atomic.Uint64
	kept   []uint64 // acked before the last flush began
}

func newWriter(lun string, first int) *writer {
	w := &writer{lun: lun, acked: make([]atomic.Uint64, chaosSlots), issued: make([]atomic.Uint64, chaosSlots), kept: make([]uint64, chaosSlots)}
	for i := range chaosSlots {
		w.slots = append(w.slots, (first+i*chaosStride)%(chaosBlocks-1))
	}
	return w
}

// readStamp returns the stamp of a block, or an error if it is torn.
func readStamp(v *Volume, block int) (uint64, error) {
	b := make([]byte, blockSize)
	if err := v.ReadAt(b, int64(block)*blockSize); err != nil {
		return 0, err
	}
	s := binary.LittleEndian.Uint64(b)
	want := make([]byte, blockSize)
	fill(want, s)
	if string(b) != string(want) {
		return 0, fmt.Errorf("block %d is torn: it begins with stamp %d", block, s)
	}
	return s, nil
}

// step writes one slot, and now and then reads, flushes, or writes a part.
func (w *writer) step(v *Volume, rng *rand.Rand) error {
	i := int(w.n) % len(w.slots)
	w.n++
	off := int64(w.slots[i]) * blockSize
	b := v.Buffer(blockSize)[:blockSize]
	fill(b, w.n)
	w.issued[i].Store(w.n)
	if err := v.WriteOwned(b, off, w.n%31 == 0); err != nil {
		return fmt.Errorf("%s block %d: %w", w.lun, w.slots[i], err)
	}
	w.acked[i].Store(w.n)
	switch rng.IntN(12) {
	case 0:
		j := rng.IntN(len(w.slots))
		got, err := readStamp(v, w.slots[j])
		if err != nil || got != w.acked[j].Load() {
			return fmt.Errorf("%s block %d holds %d, want %d (%w)", w.lun, w.slots[j], got, w.acked[j].Load(), err)
		}
	case 1:
		j := rng.IntN(len(w.slots)) // the same bytes again, through read-modify-write
		full := make([]byte, blockSize)
		fill(full, w.acked[j].Load())
		return v.WriteAt(full[100:3000], int64(w.slots[j])*blockSize+100, false)
	case 2:
		kept := make([]uint64, len(w.slots))
		for j := range kept {
			kept[j] = w.acked[j].Load()
		}
		if err := v.Flush(); err != nil {
			return err
		}
		w.kept = kept
	}
	return nil
}

// within checks that a view of the LUN lies between the bounds.
func (w *writer) within(v *Volume, low, high []uint64) error {
	for i, block := range w.slots {
		s, err := readStamp(v, block)
		if err != nil {
			return err
		}
		if s < low[i] || s > high[i] {
			return fmt.Errorf("%s block %d holds stamp %d, want %d to %d", v.name, block, s, low[i], high[i])
		}
	}
	return nil
}

func loadAll(a []atomic.Uint64) []uint64 {
	out := make([]uint64, len(a))
	for i := range a {
		out[i] = a[i].Load()
	}
	return out
}

// chaos is a pool with everything going on at once.
type chaos struct {
	p       *Pool
	writers []*writer
	stop    atomic.Bool
	snaps   map[string][][]uint64 // what each kept snapshot showed, by writer
}

func (c *chaos) open(lun, snap string, fn func(v *Volume) error) error {
	v, err := c.p.OpenVolume(lun, snap)
	if err != nil {
		return err
	}
	return errors.Join(fn(v), v.Close())
}

func (c *chaos) write(w *writer, seed uint64) error {
	return c.open(w.lun, "", func(v *Volume) error {
		rng := rand.New(rand.NewPCG(seed, 3))
		for !c.stop.Load() {
			if err := w.step(v, rng); err != nil {
				return err
			}
		}
		return nil
	})
}

// erase trims and zeroes blocks of a LUN that nobody else writes, and reads them.
func (c *chaos) erase(lun string, first int) error {
	return c.open(lun, "", func(v *Volume) error {
		for n := 0; !c.stop.Load(); n++ {
			at := first + n%40*chaosStride/2
			b := make([]byte, 3*blockSize)
			for i := range 3 {
				fill(b[i*blockSize:(i+1)*blockSize], uint64(n+1))
			}
			err := v.WriteAt(b, int64(at)*blockSize, false)
			if err == nil && n%2 == 0 {
				err = v.Trim(int64(at)*blockSize, 2*blockSize, false)
			} else if err == nil {
				err = v.Zero(int64(at)*blockSize, 2*blockSize, n%4 == 1, n%16 == 1)
			}
			if err != nil {
				return err
			}
			for i, want := range []uint64{0, 0, uint64(n + 1)} {
				if s, err := readStamp(v, at+i); err != nil || s != want {
					return fmt.Errorf("%s block %d holds stamp %d, want %d (%w)", lun, at+i, s, want, err)
				}
			}
		}
		return nil
	})
}

// snapshot takes group snapshots and checks what they show, twice; every third
// stays, the others are deleted.
func (c *chaos) snapshot() error {
	for n := 0; !c.stop.Load(); n++ {
		name := fmt.Sprintf("s%d", n)
		low, high := [][]uint64{}, [][]uint64{}
		for _, w := range c.writers {
			low = append(low, loadAll(w.acked))
		}
		if _, err := c.p.CreateSnapshots(context.Background(), []SnapshotRequest{{"one", name}, {"two", name}}, SnapshotOptions{}); err != nil {
			return err
		}
		for _, w := range c.writers {
			high = append(high, loadAll(w.issued))
		}
		seen := make([][]uint64, len(c.writers))
		for range 2 {
			for i, w := range c.writers {
				err := c.open(w.lun, name, func(v *Volume) error {
					if seen[i] != nil {
						return w.within(v, seen[i], seen[i])
					}
					err := w.within(v, low[i], high[i])
					for _, block := range w.slots {
						s, _ := readStamp(v, block)
						seen[i] = append(seen[i], s)
					}
					return err
				})
				if err != nil {
					return err
				}
			}
		}
		if n%3 == 0 && len(c.snaps) < 6 {
			c.snaps[name] = seen
			continue
		}
		if err := c.clone(name, seen); err != nil {
			return err
		}
		if err := errors.Join(deleteSnap(c.p, "one", name), deleteSnap(c.p, "two", name)); err != nil {
			return err
		}
	}
	return nil
}

// clone makes a clone of a snapshot, compares it, writes on it and deletes it.
func (c *chaos) clone(snap string, seen [][]uint64) error {
	if _, err := c.p.Clone(context.Background(), "one", snap, "clone", false); err != nil {
		return err
	}
	err := c.open("clone", "", func(v *Volume) error {
		if err := c.writers[0].within(v, seen[0], seen[0]); err != nil {
			return fmt.Errorf("clone: %w", err)
		}
		return v.WriteAt(make([]byte, 64*blockSize), 0, false)
	})
	if err != nil {
		return err
	}
	_, err = c.p.DeleteLUN(context.Background(), "clone", true)
	return err
}

// rollback goes back and forth on a LUN of its own.
func (c *chaos) rollback() error {
	for n := 0; !c.stop.Load(); n++ {
		before, after := uint64(2*n+1), uint64(2*n+2)
		put := func(stamp uint64) func(v *Volume) error {
			return func(v *Volume) error {
				b := make([]byte, blockSize)
				fill(b, stamp)
				for i := range 20 {
					if err := v.WriteAt(b, int64(i)*600*blockSize, false); err != nil {
						return err
					}
				}
				return nil
			}
		}
		name := fmt.Sprintf("r%d", n)
		err := c.open("roll", "", put(before))
		if err == nil {
			_, err = c.p.CreateSnapshots(context.Background(), []SnapshotRequest{{"roll", name}}, SnapshotOptions{})
		}
		if err == nil {
			err = c.open("roll", "", put(after))
		}
		if err == nil {
			_, err = c.p.Rollback(context.Background(), "roll", name, RollbackOptions{Discard: true})
		}
		if err == nil {
			err = c.open("roll", "", func(v *Volume) error {
				for i := range 20 {
					if s, err := readStamp(v, i*600); err != nil || s != before {
						return fmt.Errorf("block %d after the rollback holds stamp %d, want %d (%w)", i*600, s, before, err)
					}
				}
				return nil
			})
		}
		if err == nil {
			err = deleteSnap(c.p, "roll", name)
		}
		if err != nil {
			return fmt.Errorf("rollback round %d: %w", n, err)
		}
	}
	return nil
}

func (c *chaos) maintain() error {
	for n := 0; !c.stop.Load(); n++ {
		var err error
		if n%2 == 0 {
			_, err = c.p.Clean(context.Background())
		} else {
			err = c.p.Checkpoint()
		}
		if err == nil && n%5 == 4 {
			var rep CheckReport
			var scrub ScrubReport
			if scrub, err = c.p.Scrub(context.Background(), ScrubOptions{Restart: true}, nil); err == nil {
				rep = scrub.CheckReport
			}
			if err == nil && !rep.OK {
				err = fmt.Errorf("scrub: %+v", rep.Problems)
			}
		}
		if err != nil {
			return fmt.Errorf("maintenance: %w", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

func (c *chaos) verify(t *testing.T) {
	t.Helper()
	for i, w := range c.writers {
		acked := loadAll(w.acked)
		if err := c.open(w.lun, "", func(v *Volume) error { return w.within(v, acked, acked) }); err != nil {
			t.Error(err)
		}
		for name, seen := range c.snaps {
			if err := c.open(w.lun, name, func(v *Volume) error { return w.within(v, seen[i], seen[i]) }); err != nil {
				t.Error(err)
			}
		}
	}
	checkPool(t, c.p)
}

func checkPool(t *testing.T, p *Pool) {
	t.Helper()
	rep, err := p.Check(context.Background(), nil)
	if err != nil || !rep.OK {
		t.Errorf("pool check: %v, %d problems, first: %+v", err, len(rep.Problems), rep.Problems[:min(5, len(rep.Problems))])
	}
}

// all runs the functions together for a while; the first error ends them all.
func (c *chaos) all(t *testing.T, d time.Duration, fns ...func() error) {
	t.Helper()
	var wg sync.WaitGroup
	for _, fn := range fns {
		wg.Go(func() {
			if err := fn(); err != nil {
				t.Error(err)
				c.stop.Store(true)
			}
		})
	}
	for end := time.Now().Add(d); time.Now().Before(end) && !c.stop.Load(); {
		time.Sleep(10 * time.Millisecond)
	}
	c.stop.Store(true)
	wg.Wait()
}

func TestEverythingAtOnce(t *testing.T) {
	for _, disk := range []string{"memory", "disk"} {
		t.Run(disk, func(t *testing.T) {
			o := Options{Dir: "pool", FS: vfs.NewMem(), Capacity: 1 << 30, SegmentBytes: 256 << 10, RecordBlocks: 16, IndexCache: 1}
			if disk == "disk" {
				o.FS, o.Dir, o.SegmentBytes = nil, filepath.Join(t.TempDir(), "pool"), 1<<20
			}
			p, err := Open(context.Background(), o)
			if err != nil {
				t.Fatal(err)
			}
			c := &chaos{p: p, snaps: map[string][][]uint64{}}
			defer func() { c.p.Abandon() }()
			for _, name := range []string{"one", "two", "roll"} {
				if _, err := p.CreateLUN(context.Background(), CreateLUN{Name: name, SizeBytes: chaosBlocks * blockSize}); err != nil {
					t.Fatal(err)
				}
			}
			c.writers = []*writer{newWriter("one", 0), newWriter("one", 7), newWriter("two", 0)}
			fns := []func() error{c.snapshot, c.rollback, c.maintain, func() error { return c.erase("one", 20) }, func() error { return c.erase("two", 30) }}
			for i, w := range c.writers {
				fns = append(fns, func() error { return c.write(w, uint64(i)) })
			}
			c.all(t, 3*time.Second, fns...)
			c.verify(t)
			t.Logf("writes %d %d %d, snapshots kept %d", c.writers[0].n, c.writers[1].n, c.writers[2].n, len(c.snaps))
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			if p, err = Open(context.Background(), o); err != nil {
				t.Fatal(err)
			}
			c.p = p
			c.verify(t)
		})
	}
}
