package index

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// writeRound makes round n of a history: pages, their changes and a meta key that names the round, in one batch.
func writeRound(x *Index, n byte) error {
	b := x.NewBatch()
	defer b.Close()
	for page := uint64(0); page < 20; page++ {
		if n%3 == 0 {
			b.SetPage(1, page, 1, []byte{'a', n})
		} else {
			b.MergePage(1, page, 1, []byte{'b', n})
		}
	}
	b.SetMeta("round", []byte{n})
	return b.Commit()
}

// small makes opening cheap, for tests that open some hundred times.
func small(o Options) Options {
	o.CacheBytes, o.MemTableBytes = 1<<20, 256<<10
	return o
}

// wantRound fails unless the index holds exactly one whole round of the history, and returns it.
func wantRound(t *testing.T, x *Index) byte {
	t.Helper()
	if err := x.Check(); err != nil {
		t.Fatal(err)
	}
	meta, ok, err := x.Meta("round")
	if err != nil {
		t.Fatal(err)
	}
	var round byte
	want := ""
	if ok {
		round = meta[0]
		want = string([]byte{'a', round})
		if round%3 != 0 {
			want = string([]byte{'b', round})
			if round >= 3 {
				want = string([]byte{'a', round - round%3}) + want
			}
		}
	}
	for page := uint64(0); page < 20; page++ {
		rec, _, err := x.Page(1, page, 1, nil)
		if err != nil || string(rec) != want {
			t.Fatalf("round %d, page %d: %q %v, want %q", round, page, rec, err, want)
		}
	}
	return round
}

// history runs eight rounds with flushes and compactions between them, and returns the last round that Commit
// acknowledged. Errors end it.
func history(o Options, acked *atomic.Int32) error {
	x, err := Open(o)
	if err != nil {
		return err
	}
	defer x.Close()
	for n := byte(1); n <= 8; n++ {
		if err := writeRound(x, n); err != nil {
			return err
		}
		acked.Store(int32(n))
		switch n {
		case 2, 4, 5, 7:
			err = x.Flush()
		case 6:
			err = x.Compact(context.Background())
		}
		if err != nil {
			return err
		}
	}
	return x.Close()
}

// TestPowerCut cuts the power before each operation that changes the file system: a Commit that was acknowledged is
// there, any other is there wholly or not at all.
func TestPowerCut(t *testing.T) {
	noLeaks(t)
	for _, kept := range []int{0, 100} {
		points := 0
		for k := int64(1); ; k += 1 + int64(kept)/50 {
			mem := vfs.NewCrashableMem()
			var ops atomic.Int64
			var acked, ackedAtCut atomic.Int32
			var clone atomic.Pointer[vfs.MemFS]
			fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && ops.Add(1) == k {
					ackedAtCut.Store(acked.Load())
					clone.Store(mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: kept, RNG: rand.New(rand.NewPCG(1, uint64(k)))}))
				}
				return nil
			}))
			if err := history(small(Options{FS: fs, Dir: "index", MergePages: toyMerge, Deterministic: true}), &acked); err != nil {
				t.Fatal(err)
			}
			if clone.Load() == nil {
				break
			}
			points++
			x := openTest(t, small(Options{FS: clone.Load(), Deterministic: true}))
			if round := wantRound(t, x); int32(round) < ackedAtCut.Load() {
				t.Fatalf("power cut at operation %d: round %d is there, %d was acknowledged", k, round, ackedAtCut.Load())
			}
			if err := errors.Join(writeRound(x, 9), x.Close()); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%d power cuts with %d %% of what was not synced", points, kept)
		if points < 30 {
			t.Errorf("only %d power cuts", points)
		}
	}
}

// TestFailures fails each operation that changes the file system in turn, once or from then on: no panic, no hang, no
// acknowledged round lost, reads go on, and the files open again.
func TestFailures(t *testing.T) {
	for errno, sticky := range map[syscall.Errno]bool{syscall.EIO: false, syscall.ENOSPC: true} {
		t.Run(errno.Error(), func(t *testing.T) {
			noLeaks(t)
			dead := 0
			points := 0
			for k := int64(1); failAt(t, k, errno, sticky, &dead); points++ {
				k++
				if sticky {
					k++
				}
			}
			t.Logf("%d operations failed, %d of them ended writing", points, dead)
			if points < 40 || dead == 0 {
				t.Errorf("%d operations failed, %d of them ended writing: too few to mean anything", points, dead)
			}
		})
	}
}

func failAt(t *testing.T, k int64, errno syscall.Errno, sticky bool, dead *int) (hit bool) {
	t.Helper()
	mem := vfs.NewMem()
	var ops atomic.Int64
	var off atomic.Bool
	var failed atomic.Value
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if off.Load() || op.Kind.ReadOrWrite() == errorfs.OpIsRead || op.Kind == errorfs.OpFileClose {
			return nil
		}
		if n := ops.Add(1); n < k || n > k && !sticky {
			return nil
		}
		failed.CompareAndSwap(nil, fmt.Sprint(op.Kind, " ", op.Path))
		return errno
	}))
	var acked, fatals atomic.Int32
	o := small(Options{FS: fs, Dir: "index", MergePages: toyMerge, Deterministic: true, Fatal: func(err error) {
		fatals.Add(1)
		if !errors.Is(err, ErrDead) {
			t.Errorf("Fatal got %v", err)
		}
	}})
	done := make(chan error, 1)
	go func() { done <- history(o, &acked) }()
	var err error
	select {
	case err = <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("operation %d (%v) hangs", k, failed.Load())
	}
	if failed.Load() == nil {
		return false
	}
	// A disk that stays broken may end writing in the background, after another failure was returned.
	if n := fatals.Load(); n > 1 || (n == 1) != errors.Is(err, ErrDead) && (n == 0 || !sticky) {
		t.Fatalf("operation %d (%v): Fatal was called %d times, the error is %v", k, failed.Load(), n, err)
	}
	*dead += int(fatals.Load())
	off.Store(true)
	x := openTest(t, small(Options{FS: mem}))
	if round := wantRound(t, x); int32(round) < acked.Load() || int32(round) > acked.Load()+1 {
		t.Fatalf("operation %d (%v): round %d is there, %d was acknowledged", k, failed.Load(), round, acked.Load())
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	return true
}

// failing returns a file system that fails what pick picks while on is set.
func failing(mem vfs.FS, on *atomic.Bool, err error, pick func(op errorfs.Op) bool) vfs.FS {
	return errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if on.Load() && pick(op) {
			return err
		}
		return nil
	}))
}
