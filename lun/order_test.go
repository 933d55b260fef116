package lun

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lunar/store/crashfs"
)

// chain writes a number to A, then B, then C, then the next number: whoever
// looks at one instant sees a >= b >= c >= a-1.
func (c *chaos) chain(block int, done *atomic.Uint64) error {
	luns := []string{"A", "B", "C"}
	var vs []*Volume
	for _, name := range luns {
		v, err := c.p.OpenVolume(name, "")
		if err != nil {
			return err
		}
		defer v.Close()
		vs = append(vs, v)
	}
	b := make([]byte, blockSize)
	for n := uint64(1); !c.stop.Load(); n++ {
		fill(b, n)
		for _, v := range vs {
			if err := v.WriteAt(b, int64(block)*blockSize, false); err != nil {
				return err
			}
		}
		done.Store(n)
	}
	return nil
}

// ordered checks one instant: that of a group snapshot, or of the heads.
func (c *chaos) ordered(snap string, blocks []int) error {
	for _, block := range blocks {
		var got []uint64
		for _, lun := range []string{"A", "B", "C"} {
			err := c.open(lun, snap, func(v *Volume) error {
				s, err := readStamp(v, block)
				got = append(got, s)
				return err
			})
			if err != nil {
				return err
			}
		}
		if got[0] < got[1] || got[1] < got[2] || got[0] > got[2]+1 {
			return fmt.Errorf("%q block %d: A, B, C hold %v: a later write without an earlier one", snap, block, got)
		}
	}
	return nil
}

func TestGroupSnapshotsKeepTheOrderOfWrites(t *testing.T) {
	mem := crashfs.New()
	o := Options{Dir: "pool", FS: mem, Capacity: 1 << 30, SegmentBytes: 128 << 10, RecordBlocks: 8}
	p, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	c := &chaos{p: p}
	defer func() { c.p.Abandon() }()
	for _, name := range []string{"A", "B", "C"} {
		if _, err := p.CreateLUN(context.Background(), CreateLUN{Name: name, SizeBytes: 1024 * blockSize}); err != nil {
			t.Fatal(err)
		}
	}
	blocks := []int{0, 5, 600, 1023}
	done := make([]atomic.Uint64, len(blocks))
	var names []string
	fns := []func() error{func() error {
		for n := 0; !c.stop.Load() && n < 60; n++ {
			name := fmt.Sprintf("s%d", n)
			if _, err := p.CreateSnapshots(context.Background(), []SnapshotRequest{{"C", name}, {"A", name}, {"B", name}}, SnapshotOptions{}); err != nil {
				return err
			}
			names = append(names, name)
			if err := c.ordered(name, blocks); err != nil {
				return err
			}
		}
		return nil
	}, func() error {
		for !c.stop.Load() {
			if err := p.Checkpoint(); err != nil {
				return err
			}
		}
		return nil
	}}
	for i, block := range blocks {
		fns = append(fns, func() error { return c.chain(block, &done[i]) })
	}
	c.all(t, 2*time.Second, fns...)
	for _, loss := range []crashfs.Loss{crashfs.KeepAll(), crashfs.LoseAll(), crashfs.KeepSome(1)} {
		o.FS = mem.Image(loss)
		c.p.Abandon()
		if p, err = Open(context.Background(), o); err != nil {
			t.Fatal(err)
		}
		c.p = p
		for _, name := range append(names, "") {
			if err := c.ordered(name, blocks); err != nil {
				t.Errorf("after a crash: %v", err)
			}
		}
		checkPool(t, c.p)
	}
	if len(names) == 0 || done[0].Load() < 2 {
		t.Errorf("%d snapshots and %d writes prove nothing", len(names), done[0].Load())
	}
}

// prefixOf checks what a writer of numbers round the slots left: every slot
// holds the largest number of its own that is not above the largest of all.
func prefixOf(got []uint64) error {
	top := uint64(0)
	for _, s := range got {
		top = max(top, s)
	}
	for i, s := range got {
		want := uint64(0)
		for n := top; n > 0 && n+uint64(len(got)) > top; n-- {
			if int(n-1)%len(got) == i {
				want = n
			}
		}
		if s != want {
			return fmt.Errorf("slot %d holds write %d, want %d: write %d of the same client is there", i, s, want, top)
		}
	}
	return nil
}

// TestCheckpointsRacingWritersAndACrash cuts the power at operations of the file system while two clients write and
// flush, and checkpoints and the cleaner run beside them. Of each client a prefix is there, and what it flushed.
func TestCheckpointsRacingWritersAndACrash(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { raceAndCrash(t, seed, 12) })
	}
}

// racedCut is what one power cut left, and what each writer had flushed by then.
type racedCut struct {
	fs    *crashfs.FS
	at    string
	floor []uint64
}

func raceAndCrash(t *testing.T, seed uint64, cuts int) {
	mem := crashfs.New()
	o := Options{Dir: "pool", FS: mem, Capacity: 1 << 30, SegmentBytes: 64 << 10, RecordBlocks: 8, Manual: true, IndexCache: 1}
	p, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	c := &chaos{p: p}
	defer func() { c.p.Abandon() }()
	if _, err := p.CreateLUN(context.Background(), CreateLUN{Name: "a", SizeBytes: chaosBlocks * blockSize}); err != nil {
		t.Fatal(err)
	}
	writers := []*writer{newWriter("a", 0), newWriter("a", 100)}
	durable := make([]atomic.Uint64, len(writers))
	got := cutAtRandom(mem, seed, cuts, durable, &c.stop)
	fns := []func() error{func() error {
		for !c.stop.Load() {
			if _, err := p.Clean(context.Background()); err != nil {
				return err
			}
		}
		return nil
	}}
	for i, w := range writers {
		fns = append(fns, func() error { return c.number(w, &durable[i]) })
	}
	c.all(t, 60*time.Second, fns...)
	mem.SetHook(nil)
	c.p.Abandon()
	if len(got()) < cuts {
		t.Fatalf("too slow: only %d power cuts", len(got()))
	}
	for _, cut := range got() {
		o.FS = cut.fs
		if c.p, err = Open(context.Background(), o); err != nil {
			t.Fatalf("%s: %v", cut.at, err)
		}
		for i, w := range writers {
			if err := c.numbers(w, cut.floor[i]); err != nil {
				t.Errorf("%s: writer %d: %v", cut.at, i, err)
			}
		}
		checkPool(t, c.p)
		c.p.Abandon()
	}
}

// cutAtRandom cuts the power at operations that the seed chooses, and then stops all.
func cutAtRandom(mem *crashfs.FS, seed uint64, cuts int, durable []atomic.Uint64, stop *atomic.Bool) func() []racedCut {
	var mu sync.Mutex
	var out []racedCut
	rng := rand.New(rand.NewPCG(seed, 3))
	left := 20
	mem.SetHook(func(op crashfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if left--; left > 0 || len(out) == cuts {
			return nil
		}
		left = 1 + rng.IntN(60)
		var floor []uint64
		for i := range durable {
			floor = append(floor, durable[i].Load())
		}
		loss := []crashfs.Loss{crashfs.LoseAll(), crashfs.KeepAll(), crashfs.KeepSome(rng.Uint64()), crashfs.KeepSome(rng.Uint64())}[len(out)%4]
		out = append(out, racedCut{mem.Image(loss), fmt.Sprintf("%s, %s", op, loss), floor})
		if len(out) == cuts {
			stop.Store(true)
		}
		return nil
	})
	return func() []racedCut {
		mu.Lock()
		defer mu.Unlock()
		return out
	}
}

// number writes numbers round the slots of a writer, and notes what it flushed.
func (c *chaos) number(w *writer, durable *atomic.Uint64) error {
	return c.open("a", "", func(v *Volume) error {
		b := make([]byte, blockSize)
		for n := uint64(1); !c.stop.Load(); n++ {
			fill(b, n)
			if err := v.WriteAt(b, int64(w.slots[(n-1)%chaosSlots])*blockSize, false); err != nil {
				return err
			}
			if n%50 == 0 {
				if err := v.Flush(); err != nil {
					return err
				}
				durable.Store(n)
			}
		}
		return nil
	})
}

// numbers checks what is left of a writer.
func (c *chaos) numbers(w *writer, floor uint64) error {
	var got []uint64
	err := c.open("a", "", func(v *Volume) error {
		for _, block := range w.slots {
			s, err := readStamp(v, block)
			if err != nil {
				return err
			}
			got = append(got, s)
		}
		return nil
	})
	if err = errors.Join(err, prefixOf(got)); err != nil {
		return err
	}
	if top := slices.Max(got); top < floor {
		return fmt.Errorf("write %d was flushed, the last there is %d", floor, top)
	}
	return nil
}
