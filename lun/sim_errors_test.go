package lun

import (
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lunar/store/crashfs"
)

// simFault is a way in which the n-th operation of its kinds fails.
type simFault struct {
	name  string
	of    func(crashfs.Op) bool
	err   func(crashfs.Op) error
	times int // how many operations in a row
}

func anyOp(crashfs.Op) bool { return true }

// takesSpace is what a full file system refuses.
func takesSpace(op crashfs.Op) bool {
	switch op.Kind {
	case crashfs.OpCreate, crashfs.OpLink, crashfs.OpRename, crashfs.OpMkdir, crashfs.OpWrite, crashfs.OpPreallocate, crashfs.OpTruncate:
		return true
	}
	return false
}

func isWrite(op crashfs.Op) bool { return op.Kind == crashfs.OpWrite }

func always(err error) func(crashfs.Op) error { return func(crashfs.Op) error { return err } }

var simFaults = []simFault{
	{"EIO", anyOp, always(syscall.EIO), 1},
	{"ENOSPC", takesSpace, always(syscall.ENOSPC), 1},
	{"full", takesSpace, always(syscall.ENOSPC), 6},
	{"short", isWrite, func(op crashfs.Op) error { return &crashfs.Short{Bytes: int(op.Length / 2), Err: syscall.ENOSPC} }, 1},
	// A system call may write less and say so by its count alone; the os package goes on by itself, our vectored write has to.
	{"partial", func(op crashfs.Op) bool { return isWrite(op) && strings.HasSuffix(op.Path, ".seg") },
		func(op crashfs.Op) error { return &crashfs.Short{Bytes: int(op.Length / 2)} }, 1},
	{"sync", crashfs.Op.Syncs, always(syscall.EIO), 1},
	{"sync-ENOSPC", crashfs.Op.Syncs, always(syscall.ENOSPC), 1},
}

// injector counts the operations of a fault, and makes the n-th fail.
type injector struct {
	mu sync.Mutex
	f  simFault
	at int // 0: none
	n  int
	op crashfs.Op
	ok bool // it did
}

func (i *injector) hook(op crashfs.Op) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.f.of(op) {
		return nil
	}
	i.n++
	if i.at == 0 || i.n < i.at || i.n >= i.at+i.f.times {
		return nil
	}
	if !i.ok {
		i.op, i.ok = op, true
	}
	return i.f.err(op)
}

func (i *injector) hit() (crashfs.Op, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.op, i.ok
}

// TestSimulatedErrors makes the n-th operation of each workload fail, for some n, or each with -sim.all: nothing acknowledged is
// lost, reads go on, the errno is right, a failed sync leaves a pool that stays read-only, and it opens again: with the page
// cache as it is, after a power cut, and after a power cut that follows the restart.
func TestSimulatedErrors(t *testing.T) {
	var tally simTally
	began := time.Now()
	t.Run("works", func(t *testing.T) {
		for _, w := range simWorks {
			if *simWork != "" && *simWork != w.name {
				continue
			}
			t.Run(w.name, func(t *testing.T) {
				t.Parallel()
				for _, f := range simFaults {
					failWorkload(t, w.name, w.run, f, &tally)
				}
			})
		}
	})
	took := time.Since(began)
	t.Logf("%d faults in %s: %.0f/s", tally.faults.Load(), took.Round(time.Millisecond), float64(tally.faults.Load())/took.Seconds())
}

func failWorkload(t *testing.T, name string, run func(*sim), f simFault, tally *simTally) {
	seed := max(*simSeed, 1)
	seed += uint64(len(f.name)) // other sizes for other faults
	healthy := &injector{f: f}
	failOnce(t, name, run, healthy, seed, tally)
	stride := 1
	if !*simAll {
		stride = max(1, healthy.n/8)
		if raceEnabled {
			stride = max(1, healthy.n)
		}
	}
	for at := 1 + int(seed)%stride; at <= healthy.n; at += stride {
		failOnce(t, name, run, &injector{f: f, at: at}, seed, tally)
	}
}

func failOnce(t *testing.T, name string, run func(*sim), i *injector, seed uint64, tally *simTally) {
	s := newSim(t, fmt.Sprintf("-run TestSimulatedErrors -sim.all -sim.work %s (seed %d, %s of operation %d)", name, seed, i.f.name, i.at), seed, tally)
	s.o.PlainWrites = false
	s.mustOpen("making the pool")
	s.faulty = i.at > 0
	s.fs.SetHook(i.hook)
	func() {
		defer func() { // a workload whose operation failed cannot always go on
			if r := recover(); r != nil {
				if _, stop := r.(simStop); !stop {
					panic(r)
				}
			}
		}()
		run(s)
	}()
	s.fs.SetHook(nil)
	op, hit := i.hit()
	if i.at == 0 {
		s.p.Abandon()
		return
	}
	tally.faults.Add(1)
	where := "after a run without the failure"
	if hit {
		where = fmt.Sprintf("after the %s of %s", i.f.name, op)
	}
	s.trace = append(s.trace, where)
	s.afterFailure(where, op, hit, strings.HasPrefix(i.f.name, "sync"))
}

// simStop ends a workload that cannot go on: what it needs was refused.
type simStop struct{}

// afterFailure: the live pool serves what was acknowledged; and so does one that is opened again.
func (s *sim) afterFailure(where string, op crashfs.Op, hit, synced bool) {
	s.t.Helper()
	inLog := hit && synced && strings.HasSuffix(op.Path, ".seg") && !s.reopened
	ok := s.p.Status().State == "ok"
	for began := time.Now(); inLog && ok && time.Since(began) < 10*time.Second; ok = s.p.Status().State == "ok" {
		time.Sleep(time.Millisecond) // the log's own goroutines are about to say so
	}
	got, want := s.read(where), s.latest()
	if s.dead != nil {
		want = s.dead.shows
	}
	if why := got.diff(want); why != "" {
		s.fatalf("%s: %s", where, why)
	}
	if inLog && ok {
		s.fatalf("%s the pool is still ok", where)
	}
	if !ok && s.dead == nil { // it failed behind the last operation
		s.dead = &simDead{got, len(s.steps), 0}
	}
	for lun := range got {
		if s.dead != nil && s.on(lun, func(v *Volume) error { return v.WriteAt(make([]byte, blockSize), 0, true) }) == nil {
			s.fatalf("%s a write is acknowledged", where)
		}
	}
	power := simCut{s.fs.Image(crashfs.LoseAll()), false, where + ", power cut", s.durable, s.steps}
	s.p.Abandon()
	restart := simCut{s.fs, true, where + ", restart", s.durable, s.steps}
	s.depth = 1
	s.recover(restart) // which flushes and cuts the power then
	s.recover(power)
}
