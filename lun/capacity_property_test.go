package lun

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"lunar/cow"
	"lunar/reservation"
)

// crowded is a pool without room to spare that anything may happen to.
type crowded struct {
	t     *testing.T
	rng   *rand.Rand
	fs    *vfs.MemFS
	o     Options
	p     *Pool
	names int
	trace []string

	refused, thickWrites int
}

func (c *crowded) logf(format string, args ...any) {
	c.trace = append(c.trace, fmt.Sprintf(format, args...))
}

func (c *crowded) open() {
	c.o.FS = c.fs
	p, err := Open(context.Background(), c.o)
	if err != nil {
		c.t.Fatal(err)
	}
	c.p = p
}

func (c *crowded) pick() (l *cow.LUN) {
	luns := c.p.tree.LUNs()
	if len(luns) == 0 {
		return nil
	}
	return luns[c.rng.IntN(len(luns))]
}

// may says that an operation may be refused for want of space, and for nothing else.
func (c *crowded) may(what string, err error) {
	c.t.Helper()
	if err != nil && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, ErrRefused) {
		c.t.Fatalf("%s: %v", what, err)
	}
	if err != nil {
		c.refused++
	}
}

func (c *crowded) write() {
	l := c.pick()
	if l == nil {
		return
	}
	blocks := int(l.Size / blockSize)
	n := 1 + c.rng.IntN(48)
	at := c.rng.IntN(blocks - n)
	before := c.p.reserved(l.ID)
	c.logf("write %s %d+%d", l.Name, at, n)
	v, err := c.p.OpenVolume(l.Name, "")
	if err != nil {
		c.t.Fatal(err)
	}
	defer v.Close()
	fua := c.rng.IntN(3) == 0
	err = v.WriteAt(make([]byte, n*blockSize), int64(at)*blockSize, fua)
	if err != nil && l.Thick {
		// What the index takes changes by itself while Pebble works, and with it what
		// the pool can lend: only a refusal that lasts is held against the promises.
		err = v.WriteAt(make([]byte, n*blockSize), int64(at)*blockSize, fua)
	}
	c.may("write", err)
	after := c.p.reserved(l.ID)
	if after.Limit >= 0 && after.Area > max(after.Limit, before.Area) {
		c.t.Fatalf("a write took the area of %s from %d to %d, its limit is %d", l.Name, before.Area, after.Area, after.Limit)
	}
	if !l.Thick {
		return
	}
	c.thickWrites++
	if err == nil {
		return
	}
	// A thick LUN may only be refused for its own area: frozen, or nothing in it that may go.
	if strings.Contains(err.Error(), "pool") {
		c.t.Fatalf("a thick LUN was refused pool space: %v", err)
	}
	c.p.adminMu.Lock()
	defer c.p.adminMu.Unlock()
	_, frees, planErr := c.p.oldestFreeing(l, 1<<40, reservation.NoLimit)
	if planErr != nil {
		c.t.Fatal(planErr)
	}
	d := c.p.ledger.Admit(uint64(l.ID), 0, int64(n)) // the most that it can have asked for
	if d.Verdict == reservation.Admit {
		c.p.ledger.Settle(uint64(l.ID), 0, int64(n), 0, 0)
	}
	need := max(d.Need, int64(n))
	if l.OnFull == OnFullRecycle && frees >= need {
		c.t.Fatalf("a write of %d blocks to %s, which is recycled, was refused (%v), and snapshots with %d blocks could go", n, l.Name, err, frees)
	}
	if a := c.p.reserved(l.ID); a.Area+int64(n) <= a.Reserve {
		c.t.Fatalf("a write of %d blocks to %s was refused with %d of a reserve of %d used: %v", n, l.Name, a.Area, a.Reserve, err)
	}
}

func (c *crowded) create() {
	if len(c.p.tree.LUNs()) >= 4 {
		return
	}
	c.names++
	r := CreateLUN{Name: fmt.Sprintf("l%d", c.names), SizeBytes: int64(256+c.rng.IntN(512)) * blockSize, Thick: c.rng.IntN(2) == 0}
	reserve := Amount{Percent: c.rng.IntN(40)}
	limit := Amount{None: c.rng.IntN(3) == 0, Percent: 40 + c.rng.IntN(80)}
	if limit.None {
		limit.Percent = 0
	}
	r.Reserve, r.Limit, r.OnFull = &reserve, &limit, []string{OnFullRecycle, OnFullRecycle, OnFullFreeze}[c.rng.IntN(3)]
	c.logf("create %+v", r)
	_, err := c.p.CreateLUN(context.Background(), r)
	c.may("create", err)
}

func (c *crowded) snapshots() {
	l := c.pick()
	if l == nil {
		return
	}
	ctx := context.Background()
	snaps := c.p.tree.Snapshots(l.ID)
	var s *cow.Version
	if len(snaps) > 0 {
		s = snaps[c.rng.IntN(len(snaps))]
	}
	var err error
	switch k := c.rng.IntN(12); {
	case k < 6 || s == nil:
		c.names++
		c.logf("snapshot %s", l.Name)
		_, err = c.p.CreateSnapshots(ctx, []SnapshotRequest{{l.Name, fmt.Sprintf("s%d", c.names)}}, SnapshotOptions{Protect: c.rng.IntN(6) == 0})
	case k < 8:
		c.logf("delete %s@%s", l.Name, s.Name)
		_, err = c.p.DeleteSnapshots(ctx, []SnapshotRef{{l.Name, s.Name}}, DeleteOptions{Force: true})
	case k < 10:
		c.logf("rollback %s@%s", l.Name, s.Name)
		_, err = c.p.Rollback(ctx, l.Name, s.Name, RollbackOptions{Discard: c.rng.IntN(2) == 0})
	default:
		if len(c.p.tree.LUNs()) < 4 {
			c.names++
			c.logf("clone %s@%s", l.Name, s.Name)
			_, err = c.p.Clone(ctx, l.Name, s.Name, fmt.Sprintf("c%d", c.names), c.rng.IntN(2) == 0)
		}
	}
	c.may("snapshots", err)
}

func (c *crowded) alter() {
	ctx := context.Background()
	l := c.pick()
	if l == nil {
		return
	}
	var err error
	switch k := c.rng.IntN(10); {
	case k < 4:
		reserve, limit := Amount{Percent: c.rng.IntN(50)}, Amount{Percent: 50 + c.rng.IntN(80)}
		c.logf("set %s %v %v", l.Name, reserve, limit)
		_, _, err = c.p.SetReservation(ctx, l.Name, SetReservation{Reserve: &reserve, Limit: &limit})
	case k < 6:
		size := int64(256+c.rng.IntN(512)) * blockSize
		c.logf("resize %s %d", l.Name, size)
		_, err = c.p.ResizeLUN(ctx, l.Name, size, true)
	case k < 8:
		capacity := int64(14+c.rng.IntN(6)) << 20
		c.logf("capacity %d", capacity)
		err = c.p.SetCapacity(ctx, capacity)
	default:
		c.logf("delete %s", l.Name)
		_, err = c.p.DeleteLUN(ctx, l.Name, true)
	}
	c.may("alter", err)
}

func (c *crowded) step() {
	switch n := c.rng.IntN(100); {
	case n < 70:
		c.write()
	case n < 74:
		c.create()
	case n < 88:
		c.snapshots()
	case n < 93:
		c.alter()
	case n < 95:
		c.p.relieve()
		c.p.takeBackOver()
	case n < 97:
		c.may("reclaim", c.p.Reclaim())
	case n < 98:
		c.logf("restart")
		if err := c.p.Close(); err != nil {
			c.t.Fatal(err)
		}
		c.open()
	default:
		c.logf("crash")
		fs := c.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: c.rng})
		c.p.Abandon()
		c.fs = fs
		c.open()
	}
	if err := c.p.ledger.Check(); err != nil {
		c.t.Fatal(err)
	}
	t := c.p.ledger.Totals()
	if t.Promised+t.Beyond+t.Shared+t.Index+t.Headroom+t.Foreign+t.Free != t.Capacity+t.Over {
		c.t.Fatalf("the totals do not add up: %+v", t)
	}
}

// TestCrowdedPool: whatever happens to a pool without room to spare, its sums are right, no write takes an area above its
// limit, and a thick LUN is refused nothing but what its own area may refuse.
func TestCrowdedPool(t *testing.T) {
	refused, thick, seeds := 0, 0, 6
	if os.Getenv("LUNAR_LONG") != "" {
		seeds = 200
	} else if raceEnabled {
		seeds = 3
	}
	// How much is refused follows what the index takes, which is not the same each time: more seeds, until it was crowded.
	crowdedEnough := func() bool { return refused >= 3*seeds && thick >= 15*seeds }
	for seed := uint64(0); !t.Failed() && seed < uint64(10*seeds) && (seed < uint64(seeds) || !crowdedEnough()); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			c := &crowded{t: t, rng: rand.New(rand.NewPCG(seed, 77)), fs: vfs.NewCrashableMem(), o: Options{
				Dir: "pool", Capacity: 16 << 20, SegmentBytes: 256 << 10, RecordBlocks: 16, IndexCache: 1 << 20, Manual: true, Now: steppingClock(),
			}}
			defer func() {
				if t.Failed() {
					t.Logf("the last of it:\n%s", strings.Join(c.trace[max(0, len(c.trace)-30):], "\n"))
				}
				c.p.Abandon()
			}()
			c.open()
			for step := range 300 {
				c.step()
				if step%60 == 59 {
					if rep, err := c.p.Check(context.Background(), nil); err != nil || !rep.OK {
						t.Fatalf("check: %v %+v", err, rep.Problems)
					}
				}
			}
			refused, thick = refused+c.refused, thick+c.thickWrites
		})
	}
	t.Logf("%d operations refused, %d writes to thick LUNs", refused, thick)
	if !t.Failed() && !crowdedEnough() {
		t.Error("that was not crowded")
	}
}
