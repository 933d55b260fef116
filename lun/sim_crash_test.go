package lun

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"lunar/store/crashfs"
)

// everywhere crashes at each stride-th operation: keeping all, keeping some in two
// ways, and losing all once for each sync.
func everywhere(seed uint64, stride int) func(op crashfs.Op) []crashfs.Loss {
	synced := true
	return func(op crashfs.Op) (out []crashfs.Loss) {
		if synced && (stride == 1 || op.N%stride == 0) {
			out = append(out, crashfs.LoseAll())
		}
		synced = op.Syncs() || synced && len(out) == 0
		if op.N%stride == 0 {
			at := seed<<20 + uint64(op.N)*2
			out = append(out, crashfs.KeepAll(), crashfs.KeepSome(at), crashfs.KeepSome(at+1))
		}
		return out
	}
}

// TestSimulatedCrashes crashes small workloads at their operations: at each with
// -sim.all. Then it goes on with random ones, one after the other, for -sim.for.
func TestSimulatedCrashes(t *testing.T) {
	var tally simTally
	began, used := time.Now(), cpuTime()
	t.Run("works", func(t *testing.T) {
		for _, w := range simWorks {
			if *simWork != "" && *simWork != w.name || *simWork == "" && *simSeed != 0 {
				continue
			}
			t.Run(w.name, func(t *testing.T) {
				t.Parallel()
				crashWorkload(t, w.name, w.run, &tally)
			})
		}
	})
	seeds := 0
	if *simWork == "" && !t.Failed() {
		seeds = crashRandomly(t, &tally, began)
	}
	took, cpu := time.Since(began), cpuTime()-used
	points := tally.points.Load() + tally.again.Load()
	t.Logf("%d crash points, of them %d in a second recovery, %d second lives, %d random seeds, in %s: %.0f points/s, %.0f for each second of CPU",
		points, tally.again.Load(), tally.lives.Load(), seeds, took.Round(time.Millisecond), float64(points)/took.Seconds(), float64(points)/cpu.Seconds())
	if *simSeed == 0 && *simWork == "" && points < 100 {
		t.Errorf("%d crash points are no test", points)
	}
}

// cpuTime is what the process used so far.
func cpuTime() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func crashWorkload(t *testing.T, name string, run func(*sim), tally *simTally) {
	seed := max(*simSeed, 1)
	s := newSim(t, fmt.Sprintf("-run TestSimulatedCrashes -sim.work %s -sim.seed %d", name, seed), seed, tally)
	stride := 7
	switch {
	case *simAll || *simFor > 0:
		stride = 1
	case raceEnabled:
		stride = 151
	}
	s.arm(everywhere(seed, stride), func(op crashfs.Op) bool { return op.N%(3*stride) == 0 })
	s.mustOpen("making the pool")
	s.verify()
	run(s)
	s.disarm()
	s.check("the end")
	if why := s.read("the end").diff(s.latest()); why != "" {
		s.fatalf("at the end %s", why)
	}
	s.p.Abandon()
}

// crashRandomly runs seeds until the time is up, and returns how many.
func crashRandomly(t *testing.T, tally *simTally, began time.Time) (n int) {
	first, fixed := uint64(1), 6
	switch {
	case *simSeed != 0:
		first, fixed = *simSeed, 1
	case *simFor > 0:
		fixed = 1 << 60
		if *simRandom {
			first = uint64(time.Now().UnixNano()) >> 10 & 0xffffffff
		}
		t.Logf("seeds from %d on", first)
	case raceEnabled:
		fixed = 1
	}
	for ; n < fixed && (*simFor == 0 || time.Since(began) < *simFor); n++ {
		if !t.Run(fmt.Sprintf("seed=%d", first+uint64(n)), func(t *testing.T) { crashSeed(t, first+uint64(n), tally) }) {
			return n
		}
	}
	return n
}

// crashSeed does random operations, crashes them at random operations of the file
// system, and goes on with what one crash or another left.
func crashSeed(t *testing.T, seed uint64, tally *simTally) {
	s := newSim(t, fmt.Sprintf("-run TestSimulatedCrashes -sim.seed %d", seed), seed, tally)
	policy := func(s *sim) func(op crashfs.Op) []crashfs.Loss {
		r := rand.New(rand.NewPCG(s.rng.Uint64(), 13))
		return func(op crashfs.Op) []crashfs.Loss {
			if r.IntN(12) > 0 {
				return nil
			}
			return []crashfs.Loss{[]crashfs.Loss{crashfs.LoseAll(), crashfs.KeepAll(), crashfs.KeepSome(r.Uint64()), crashfs.KeepSome(r.Uint64())}[r.IntN(4)]}
		}
	}
	kill := func(op crashfs.Op) bool { return op.N%97 == 0 }
	s.mustOpen("making the pool")
	s.arm(policy(s), kill)
	for range 6 {
		for range 10 {
			s.step()
		}
		loss := []crashfs.Loss{crashfs.LoseAll(), crashfs.KeepAll(), crashfs.KeepSome(s.rng.Uint64())}[s.rng.IntN(3)]
		at := fmt.Sprintf("crash, %s", loss)
		c := simCut{s.fs.Image(loss), false, at, s.durable, s.steps}
		s.disarm()
		s.p.Abandon()
		s.fs = c.fs
		s.trace = append(s.trace, at)
		s.mustOpen(at)
		got := s.read(at)
		if why := c.prefix(got); why != "" {
			s.fatalf("%s: %s", at, why)
		}
		s.durable, s.steps = got, nil
		s.arm(policy(s), kill)
	}
	s.disarm()
	s.check("the end")
	s.p.Abandon()
}
