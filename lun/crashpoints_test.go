package lun

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"lunar/store/crashfs"
)

// crashWork is a few operations that are crashed at every write and sync of
// every file that they touch.
type crashWork struct {
	name  string
	setup string // lines of a story; then a clean stop
	ops   string // each line is one operation: before or after, nothing between
}

const crashSetup = `
	create vol 9
	create db 6
	write vol 0+6 a
	write db 0+3 a
	snapshot vol@a
	write vol 1+4 b
	snapshot vol@b
	write vol 2+2 c
	snapshot vol@c
	write vol 3+1 d
	trim vol 5+1
`

var crashWorks = []crashWork{
	{"group snapshot", crashSetup, `
		write vol 0+1 x
		snapshot vol@g db@g
		write db 0+1 y
		snapshot db@h vol@h ttl=1h protect`},
	{"rollback", crashSetup, `
		rollback vol@a
		write vol 6+1 x
		rollback vol@before-rollback-20261122T000000Z
		checkpoint
		write vol 7+1 y`},
	{"rollback discard", crashSetup, `
		write vol 6+1 x
		rollback vol@b discard
		write vol 6+1 y
		reclaim
		rollback vol@c discard
		reclaim`},
	{"clone", crashSetup, `
		clone vol@b one
		write one 0+1 x
		clone one@none two
		clone vol two thick
		write two 1+1 y
		write vol 1+1 z`},
	{"delete and merge", crashSetup, `
		delete vol@b
		write vol 0+1 x
		reclaim
		delete vol@a vol@c
		publish
		write vol 1+1 y
		reclaim`},
	{"delete a LUN with clones", crashSetup + `
		clone vol@b one
		clone vol@c two
		write one 0+1 o`, `
		delete-lun vol force
		write two 0+1 x
		reclaim
		delete-lun one
		reclaim
		snapshot two@s
		reclaim`},
	{"resize", crashSetup, `
		resize vol 12
		write vol 11+1 x
		resize vol 3 force
		write vol 0+1 y
		resize vol 9
		rollback vol@c
		reclaim`},
	{"edits", crashSetup, `
		rename vol@b other
		protect vol@a 1h
		ttl vol@c 1h
		rename db log
		sleep 2h
		unprotect vol@a
		reclaim`},
	{"checkpoints and the cleaner", crashSetup, `
		checkpoint
		write vol 0+1 x
		delete vol@a vol@b vol@c
		reclaim
		checkpoint
		clean
		write vol 1+1 y
		clean`},
	{"defragmentation", crashSetup + `
		clone vol@b one
		write one 0+3 o`, `
		write vol 3+1 x
		defragment
		checkpoint
		write vol 6+1 y
		defragment
		snapshot vol@s
		delete vol@a
		defragment
		reclaim
		checkpoint`},
}

// TestCrashAtEveryOperation cuts the power before each operation that changes or syncs
// any file, the log's and the index's, with all of what was not synced lost, with all of
// it kept, and twice with some of it. The pool must open by itself and be as before or as after the
// operation that ran, in content and, when space has been given back, in every account.
// Some of the pools are crashed again at each operation of their recovery.
func TestCrashAtEveryOperation(t *testing.T) {
	for _, w := range crashWorks {
		t.Run(strings.ReplaceAll(w.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			w.run(t)
		})
	}
}

func (w crashWork) run(t *testing.T) {
	base := crashStory(t, crashfs.New())
	base.open()
	base.lines(w.setup)
	if _, err := base.reopen(nil); err != nil {
		t.Fatal(err)
	}
	if err := base.p.Close(); err != nil {
		t.Fatal(err)
	}
	var ops []string
	for line := range strings.Lines(strings.TrimSpace(w.ops)) {
		ops = append(ops, strings.TrimSpace(line))
	}
	states := make([]string, len(ops)+1) // after so many operations
	for i := range states {
		s := crashStory(t, base.fs.Image(crashfs.KeepAll()))
		s.open()
		s.lines(strings.Join(ops[:i], "\n"))
		states[i] = s.settled()
		s.p.Abandon()
	}
	power := &powerCutter{all: true, some: 2}
	s := crashStory(t, base.fs.Image(crashfs.KeepAll()))
	s.open()
	tested, again := 0, 0
	for i, op := range ops {
		power.arm(s.fs)
		s.lines(op)
		for _, c := range power.disarm() {
			tested++
			if raceEnabled && tested%24 != 0 {
				continue
			}
			where := fmt.Sprintf("%q, crashed before %s", op, c.at)
			again += w.recover(t, c.fs, where, !raceEnabled && tested%29 == 0, states[i], states[i+1])
		}
	}
	s.p.Abandon()
	if tested < 2*len(ops) {
		t.Errorf("only %d crashes in %d operations: nothing was tested", tested, len(ops))
	}
	t.Logf("%d operations, %d crashes, %d more during recovery", len(ops), tested, again)
}

// recover opens what a crash left, which must be one of two states. With twice it
// is also crashed at each operation of the recovery.
func (w crashWork) recover(t *testing.T, fs *crashfs.FS, where string, twice bool, before, after string) int {
	t.Helper()
	power := &powerCutter{some: 1}
	if twice {
		power.arm(fs)
	}
	s := crashStory(t, fs)
	s.open()
	more := power.disarm()
	defer func() { s.p.Abandon() }()
	s.checkAt(where)
	if got := s.settled(); got != before && got != after {
		t.Fatalf("%s: after recovery\n%s\nwant\n%s\nor\n%s", where, got, before, after)
	}
	for _, c := range more {
		w.recover(t, c.fs, where+"; recovery crashed before "+c.at, false, before, after)
	}
	return len(more)
}

// crashStory is a story on a file system, without a pool yet; its writes are flushed.
func crashStory(t *testing.T, fs *crashfs.FS) *story {
	s := prepareStory(t)
	s.fs, s.scatter, s.durable = fs, true, true
	s.o.SegmentBytes, s.o.RecordBlocks = 64<<10, 4
	return s
}

// lines runs a script whose refusals are part of it.
func (s *story) lines(script string) {
	for line := range strings.Lines(script) {
		s.line(strings.Fields(line))
	}
}

func (s *story) checkAt(where string) {
	s.t.Helper()
	rep, err := s.p.Check(bg, nil)
	if err != nil || !rep.OK {
		s.t.Fatalf("%s: check: %v %+v", where, err, rep.Problems)
	}
}

// settled is the pool's state when all space has been given back, which must be
// possible, change no content and leave a clean pool.
func (s *story) settled() string {
	s.t.Helper()
	s.at = storyBegin // protection and expiry are drawn as seen from there
	had := fmt.Sprint(s.contents())
	if _, err := s.reclaim(nil); err != nil {
		s.t.Fatal(err)
	}
	s.check()
	if has := fmt.Sprint(s.contents()); has != had {
		s.t.Fatalf("giving space back changed content from\n%s\nto\n%s", had, has)
	}
	return s.view()
}

// powerCutter takes images of a file system as power cuts would leave it before
// each operation, while it is armed. One that loses all is the same until something was synced.
type powerCutter struct {
	all  bool // one that keeps all
	some int  // how many that keep a part

	mu     sync.Mutex
	fs     *crashfs.FS
	synced bool
	cuts   []powerCut
}

type powerCut struct {
	fs *crashfs.FS
	at string
}

func (p *powerCutter) arm(fs *crashfs.FS) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fs, p.synced = fs, true
	fs.SetHook(p.cut)
}

func (p *powerCutter) disarm() []powerCut {
	p.mu.Lock()
	defer p.mu.Unlock()
	cuts := p.cuts
	if p.fs != nil {
		p.fs.SetHook(nil)
	}
	p.fs, p.cuts = nil, nil
	return cuts
}

func (p *powerCutter) cut(op crashfs.Op) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fs == nil {
		return nil
	}
	var losses []crashfs.Loss
	if p.synced {
		losses = append(losses, crashfs.LoseAll())
	}
	if p.all {
		losses = append(losses, crashfs.KeepAll())
	}
	for i := range p.some {
		losses = append(losses, crashfs.KeepSome(uint64(op.N*8+i)))
	}
	for _, l := range losses {
		p.cuts = append(p.cuts, powerCut{p.fs.Image(l), fmt.Sprintf("%s, %s", op, l)})
	}
	p.synced = op.Syncs()
	return nil
}
