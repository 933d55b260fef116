package lun

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lunar/store/crashfs"
)

// The simulator: a pool on a file system that is crashed, or fails, at operations
// of that file system. The oracle is a state that is durable (MUST), and the steps
// that were begun since, in order: after a crash the pool holds the state and a
// prefix of the steps (MAY), and nothing else (NEVER). A step is the change of one
// block, or a structural change. Every block carries a stamp that is used once.

var (
	simFor    = flag.Duration("sim.for", 0, "how long the simulator goes on with further seeds; 0: a few fixed ones")
	simRandom = flag.Bool("sim.random", false, "seeds that were never run, not those from 1 on")
	simSeed   = flag.Uint64("sim.seed", 0, "repeat the run of this seed alone")
	simWork   = flag.String("sim.work", "", "repeat this workload alone")
	simAll    = flag.Bool("sim.all", false, "crash and fail at each operation, not at some")
)

const simTick = time.Second

const simBlocks = 24 // of a LUN that the simulator writes; they lie on three pages of the map

// simPlace is where a block is. Eight neighbours share a page.
func simPlace(i int) int64 { return (int64(i/8)*512 + int64(i%8)) * blockSize }

const simSize = (2*512 + 8) * blockSize

// simState is the content of a pool.
type simState map[string]*simLUN

type simLUN struct {
	head  stamps
	snaps map[string]stamps // never changed, and shared by states
}

func (st simState) clone() simState {
	out := make(simState, len(st))
	for name, l := range st {
		out[name] = &simLUN{l.head.clone(), maps.Clone(l.snaps)}
	}
	return out
}

// diff says how two states differ, or nothing.
func (st simState) diff(want simState) string {
	if a, b := slices.Sorted(maps.Keys(st)), slices.Sorted(maps.Keys(want)); !slices.Equal(a, b) {
		return fmt.Sprintf("LUNs are %v, not %v", a, b)
	}
	for name, l := range want {
		got := st[name]
		if a, b := slices.Sorted(maps.Keys(got.snaps)), slices.Sorted(maps.Keys(l.snaps)); !slices.Equal(a, b) {
			return fmt.Sprintf("snapshots of %s are %v, not %v", name, a, b)
		}
		if !slices.Equal(got.head, l.head) {
			return fmt.Sprintf("%s holds\n%v, not\n%v", name, got.head, l.head)
		}
		for s, want := range l.snaps {
			if !slices.Equal(got.snaps[s], want) {
				return fmt.Sprintf("%s@%s holds\n%v, not\n%v", name, s, got.snaps[s], want)
			}
		}
	}
	return ""
}

// simStep is one change. One of a block says which.
type simStep struct {
	what  string
	lun   string
	block int
	stamp uint64
	do    func(simState) // nil for a block
}

func (x simStep) apply(st simState) {
	if x.do != nil {
		x.do(st)
	} else {
		st[x.lun].head[x.block] = x.stamp
	}
}

// sim is one pool under simulation.
type sim struct {
	t    testing.TB
	name string // how to repeat it
	rng  *rand.Rand
	fs   *crashfs.FS
	p    *Pool
	o    Options

	ticks *atomic.Int64 // seconds that have passed
	next  uint64        // stamp
	names int
	trace []string

	mu      sync.Mutex // the hook runs on other goroutines
	durable simState   // never changed, replaced
	steps   []simStep
	cuts    []simCut
	policy  func(crashfs.Op) []crashfs.Loss
	kill    func(crashfs.Op) bool

	depth    int // crashes behind it
	tally    *simTally
	faulty   bool // operations may fail
	reopened bool // since the failure
	dead     *simDead
}

// simDead is a pool that went read-only.
type simDead struct {
	shows simState // which never changes any more
	acked int      // steps that were acknowledged; the others may have been done
	since int      // operations
}

type simTally struct{ points, again, lives, faults atomic.Int64 }

// simCut is what a crash left, and what must be there.
type simCut struct {
	fs      *crashfs.FS
	killed  bool // the process was, and not the power: what was not synced still is not
	at      string
	durable simState
	steps   []simStep
}

var simBegin = time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)

func newSim(t testing.TB, name string, seed uint64, tally *simTally) *sim {
	rng := rand.New(rand.NewPCG(seed, 11))
	s := &sim{t: t, name: name, rng: rng, fs: crashfs.New(), ticks: &atomic.Int64{}, durable: simState{}, tally: tally}
	s.o = Options{
		Dir: "pool", Capacity: 1 << 30, Manual: true, Now: s.now,
		SegmentBytes: []int64{64 << 10, 64 << 10, 128 << 10}[rng.IntN(3)], RecordBlocks: []int{4, 8}[rng.IntN(2)],
		IndexCache: 1, PlainWrites: rng.IntN(4) == 0,
	}
	return s
}

// now is a clock that stands still while an operation runs, so that names by time are foreseen.
func (s *sim) now() time.Time { return simBegin.Add(time.Duration(s.ticks.Load()) * simTick) }

func (s *sim) fatalf(format string, args ...any) {
	s.t.Helper()
	from := max(0, len(s.trace)-40)
	s.t.Fatalf("%s\nrepeat: %s\nsegments of %d, records of %d blocks; last operations:\n  %s",
		fmt.Sprintf(format, args...), s.name, s.o.SegmentBytes, s.o.RecordBlocks, strings.Join(s.trace[from:], "\n  "))
}

func (s *sim) open() error {
	s.o.FS = s.fs
	p, err := Open(bg, s.o)
	if err == nil {
		s.p = p
	}
	return err
}

func (s *sim) mustOpen(where string) {
	s.t.Helper()
	if err := s.open(); err != nil {
		s.fatalf("%s: open: %v", where, err)
	}
	if st := s.p.Status(); st.State != "ok" {
		s.fatalf("%s: the pool is %s: %v", where, st.State, *st.Reason)
	}
}

// read is what the pool holds.
func (s *sim) read(where string) simState {
	s.t.Helper()
	out := simState{}
	for _, l := range s.p.LUNs() {
		x := &simLUN{s.content(where, l.Name, ""), map[string]stamps{}}
		list, err := s.p.Snapshots(l.Name)
		if err != nil {
			s.fatalf("%s: %v", where, err)
		}
		for _, n := range list {
			x.snaps[n.Name] = s.content(where, l.Name, n.Name)
		}
		out[l.Name] = x
	}
	return out
}

func (s *sim) content(where, lun, snap string) stamps {
	s.t.Helper()
	v, err := s.p.OpenVolume(lun, snap)
	if err != nil {
		s.fatalf("%s: %v", where, err)
	}
	defer v.Close()
	out := make(stamps, simBlocks)
	var b [8 * blockSize]byte
	var want [blockSize]byte
	for i := range out {
		if i%8 == 0 {
			if err := v.ReadAt(b[:], simPlace(i)); err != nil {
				s.fatalf("%s: reading block %d of %s@%s: %v", where, i, lun, snap, err)
			}
		}
		one := b[i%8*blockSize:][:blockSize]
		out[i] = firstStamp(one)
		if fill(want[:], out[i]); string(one) != string(want[:]) {
			s.fatalf("%s: block %d of %s@%s is torn: it begins with stamp %d", where, i, lun, snap, out[i])
		}
	}
	return out
}

func (s *sim) check(where string) {
	s.t.Helper()
	rep, err := s.p.Check(bg, nil)
	if err != nil || !rep.OK {
		s.fatalf("%s: pool check: %v %+v", where, err, rep.Problems)
	}
}

// begin notes the steps of an operation, so that a crash in it may have done them.
func (s *sim) begin(what string, steps []simStep) {
	s.ticks.Add(1)
	s.trace = append(s.trace, what)
	s.mu.Lock()
	s.steps = append(s.steps, steps...)
	s.mu.Unlock()
}

// settle: all that was begun is durable.
func (s *sim) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.durable, s.steps = s.latest(), nil
}

// latest is the state with all steps done.
func (s *sim) latest() simState {
	st := s.durable.clone()
	for _, x := range s.steps {
		x.apply(st)
	}
	return st
}

// do is one operation. durable says that its answer promises everything before it.
func (s *sim) do(what string, durable bool, steps []simStep, fn func() error) {
	s.t.Helper()
	changes := len(steps) > 0
	if s.dead != nil {
		steps = nil // NEVER
	}
	s.begin(what, steps)
	err := fn()
	switch {
	case err != nil && !s.faulty:
		s.fatalf("%s: %v", what, err)
	case err != nil:
		s.refused(what, err, len(steps))
	case s.dead != nil && changes:
		s.fatalf("%s succeeded on a pool that is read-only", what)
	case s.dead != nil && durable:
		all := s.steps
		s.steps = all[:s.dead.acked]
		s.settle()
		s.steps, s.dead.acked = all[s.dead.acked:], 0
	case durable:
		s.settle()
	}
	s.verify()
	if s.dead != nil {
		if s.dead.since++; s.dead.since > 4 {
			panic(simStop{})
		}
	}
}

// hook is called by the file system before each of its operations.
func (s *sim) hook(op crashfs.Op) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.policy != nil {
		for _, l := range s.policy(op) {
			s.cuts = append(s.cuts, simCut{s.fs.Image(l), false, fmt.Sprintf("crash before %s, %s", op, l), s.durable, slices.Clip(s.steps)})
		}
	}
	if s.kill != nil && s.kill(op) {
		s.cuts = append(s.cuts, simCut{s.fs.Fork(), true, fmt.Sprintf("kill -9 before %s", op), s.durable, slices.Clip(s.steps)})
	}
	return nil
}

// arm crashes from now on as the policies say.
func (s *sim) arm(policy func(crashfs.Op) []crashfs.Loss, kill func(crashfs.Op) bool) {
	s.mu.Lock()
	s.policy, s.kill = policy, kill
	s.mu.Unlock()
	s.fs.SetHook(s.hook)
}

func (s *sim) disarm() []simCut {
	s.fs.SetHook(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	cuts := s.cuts
	s.cuts = nil
	return cuts
}

// verify recovers what the crashes since the last time left.
func (s *sim) verify() {
	s.t.Helper()
	s.mu.Lock()
	cuts := s.cuts
	s.cuts = nil
	s.mu.Unlock()
	for _, c := range cuts {
		s.recover(c)
	}
}

// after is the simulation that goes on with what a crash left.
func (s *sim) after(c simCut) *sim {
	r := &sim{
		t: s.t, name: s.name, rng: rand.New(rand.NewPCG(s.rng.Uint64(), 5)), fs: c.fs, o: s.o, ticks: s.ticks, next: s.next + 1000, names: s.names + 100,
		trace: append(slices.Clip(s.trace), c.at), durable: c.durable, steps: c.steps, depth: s.depth + 1, tally: s.tally,
	}
	return r
}

// prefix finds the state among those that a crash may leave.
func (c *simCut) prefix(got simState) string {
	st := c.durable.clone()
	why := got.diff(st)
	for _, x := range c.steps {
		if why == "" {
			return ""
		}
		x.apply(st)
		why = got.diff(st)
	}
	if why == "" {
		return ""
	}
	return fmt.Sprintf("no prefix of the %d steps since the last flush: with none of them %s\nwith all of them %s", len(c.steps), got.diff(c.durable), why)
}

// recover opens what a crash left. Of some, each operation of the recovery is
// crashed too; some go on, and are crashed again.
func (s *sim) recover(c simCut) {
	s.t.Helper()
	n := s.tally.points.Add(1)
	r := s.after(c)
	again := s.depth == 0 && (n%23 == 0 || *simAll && n%5 == 0)
	if again {
		r.arm(func(op crashfs.Op) []crashfs.Loss {
			return []crashfs.Loss{crashfs.LoseAll(), crashfs.KeepSome(uint64(n)*1000 + uint64(op.N))}
		}, nil)
	}
	r.mustOpen(c.at)
	cuts := r.disarm()
	got := r.read(c.at)
	if why := c.prefix(got); why != "" {
		r.fatalf("%s: %s", c.at, why)
	}
	r.durable, r.steps = got, nil
	for _, second := range cuts {
		s.tally.again.Add(1)
		second.at = c.at + ", then " + second.at
		if !c.killed { // all of it was on disk: each recovery finds the same
			second.durable, second.steps = got, nil
		}
		x := r.after(second)
		x.mustOpen(second.at)
		if why := second.prefix(x.read(second.at)); why != "" {
			x.fatalf("%s: %s", second.at, why)
		}
		x.check(second.at)
		x.p.Abandon()
	}
	if c.killed {
		r.flushed(c.at)
	}
	r.check(c.at)
	if s.depth == 0 && n%4 == 0 {
		s.tally.lives.Add(1)
		r.life()
	}
	r.p.Abandon()
}

// flushed: what a restart shows, a FLUSH makes durable, whoever wrote it out.
func (s *sim) flushed(where string) {
	s.t.Helper()
	for name := range s.durable {
		s.flush(name)
		break
	}
	s.recover(simCut{s.fs.Image(crashfs.LoseAll()), false, where + ", FLUSH, power cut", s.durable, nil})
}

// life goes on after a crash: records as long as those before it, new ids, space
// given back; and then it is crashed again.
func (s *sim) life() {
	s.t.Helper()
	names := slices.Sorted(maps.Keys(s.durable))
	if len(names) == 0 {
		s.create("again", false)
		names = []string{"again"}
	}
	lun := names[s.rng.IntN(len(names))]
	s.write(lun, 0, 1+s.rng.IntN(4), s.rng.IntN(2) == 0)
	switch s.rng.IntN(6) {
	case 0:
		s.snapshot(lun)
	case 1:
		s.checkpoint()
	case 2:
		s.reclaim()
	case 3:
		s.clean()
	case 4:
		s.write(lun, s.rng.IntN(20), 4, false)
	}
	loss := []crashfs.Loss{crashfs.LoseAll(), crashfs.KeepAll(), crashfs.KeepSome(s.rng.Uint64())}[s.rng.IntN(3)]
	s.recover(simCut{s.fs.Image(loss), false, fmt.Sprintf("second crash, %s", loss), s.durable, s.steps})
}

// refused deals with an operation that an injected failure, or the read-only
// pool that it left, made fail. What it did in part is looked up: reads go on.
func (s *sim) refused(what string, err error, steps int) {
	s.t.Helper()
	text := strings.ReplaceAll(err.Error(), "\n", " ")
	s.trace = append(s.trace, "  fails: "+text[:min(len(text), 150)])
	var errno syscall.Errno
	if !errors.As(err, &errno) || errno != syscall.EIO && errno != syscall.ENOSPC && errno != syscall.EPERM {
		s.fatalf("%s: %v: errno %d", what, err, errno)
	}
	got := s.read(what + " failed")
	if s.dead != nil {
		if why := got.diff(s.dead.shows); why != "" {
			s.fatalf("%s was refused, and yet %s", what, why)
		}
		return
	}
	acked := len(s.steps) - steps
	mine := slices.Clone(s.steps[acked:])
	if s.p.Status().State != "ok" {
		s.dead = &simDead{got, acked, 0} // what of it is durable is open
	}
	s.steps = s.steps[:acked:acked]
	want := s.latest()
	var did []simStep
	for _, x := range mine {
		with := want.clone()
		if x.apply(with); x.do == nil && got[x.lun].head[x.block] == x.stamp || x.do != nil && got.diff(with) == "" {
			want, did = with, append(did, x)
		}
	}
	if why := got.diff(want); why != "" {
		s.fatalf("after %s failed: %s", what, why)
	}
	if s.dead != nil {
		did = mine
	}
	s.steps = append(s.steps, did...)
}

// needs ends a workload that cannot go on, since what made the LUN or snapshot failed.
func (s *sim) needs(lun, snap string) {
	st := s.latest()
	if s.dead != nil {
		st = s.dead.shows
	}
	l := st[lun]
	if s.faulty && (l == nil || snap != "" && l.snaps[snap] == nil) {
		panic(simStop{})
	}
}
