package lun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

func firstStamp(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// The operations of the simulator: each says what it will have changed.

func (s *sim) on(lun string, fn func(v *Volume) error) error {
	v, err := s.p.OpenVolume(lun, "")
	if err != nil {
		return err
	}
	defer v.Close()
	return fn(v)
}

// runs calls fn for the parts of a range of blocks that lie together.
func runs(at, n int, fn func(at, n int) error) error {
	for end := at + n; at < end; {
		k := min(8-at%8, end-at)
		if err := fn(at, k); err != nil {
			return err
		}
		at += k
	}
	return nil
}

func (s *sim) write(lun string, at, n int, fua bool) {
	s.t.Helper()
	s.needs(lun, "")
	n = min(n, simBlocks-at)
	var steps []simStep
	b := make([]byte, n*blockSize)
	for i := range n {
		s.next++
		fill(b[i*blockSize:][:blockSize], s.next)
		steps = append(steps, simStep{lun: lun, block: at + i, stamp: s.next})
	}
	s.do(fmt.Sprintf("write %s %d+%d fua %v, stamps to %d", lun, at, n, fua, s.next), fua, steps, func() error {
		return s.on(lun, func(v *Volume) error {
			done := 0
			return runs(at, n, func(at, n int) error {
				part := b[done*blockSize:][:n*blockSize]
				done += n
				return v.WriteAt(part, simPlace(at), fua)
			})
		})
	})
}

// erase trims, or writes zeroes where kind is "zero" or "charged".
func (s *sim) erase(kind, lun string, at, n int) {
	s.t.Helper()
	s.needs(lun, "")
	n = min(n, simBlocks-at)
	var steps []simStep
	for i := range n {
		steps = append(steps, simStep{lun: lun, block: at + i})
	}
	s.do(fmt.Sprintf("%s %s %d+%d", kind, lun, at, n), false, steps, func() error {
		return s.on(lun, func(v *Volume) error {
			return runs(at, n, func(at, n int) error {
				if kind == "trim" {
					return v.Trim(simPlace(at), int64(n)*blockSize, false)
				}
				return v.Zero(simPlace(at), int64(n)*blockSize, kind == "charged", false)
			})
		})
	})
}

func (s *sim) flush(lun string) {
	s.t.Helper()
	s.needs(lun, "")
	s.do("flush "+lun, true, nil, func() error { return s.on(lun, (*Volume).Flush) })
}

// mark writes out what waits, and syncs nothing.
func (s *sim) mark() {
	s.t.Helper()
	s.do("mark", false, nil, func() error { return s.p.logError(s.p.log.Mark()) })
}

// structural is a change whose answer waits for the log's sync.
func (s *sim) structural(what string, do func(simState), fn func() error) {
	s.t.Helper()
	s.do(what, true, []simStep{{what: what, do: do}}, fn)
}

func (s *sim) create(name string, thick bool) {
	s.t.Helper()
	s.structural("create "+name, func(st simState) {
		st[name] = &simLUN{make(stamps, simBlocks), map[string]stamps{}}
	}, func() error {
		_, err := s.p.CreateLUN(bg, CreateLUN{Name: name, SizeBytes: simSize, Thick: thick})
		return err
	})
}

// snapshot takes one of each LUN, in one change, and returns their name.
func (s *sim) snapshot(luns ...string) string {
	s.t.Helper()
	s.names++
	name := fmt.Sprintf("s%d", s.names)
	var reqs []SnapshotRequest
	for _, l := range luns {
		s.needs(l, "")
		reqs = append(reqs, SnapshotRequest{l, name})
	}
	s.structural(fmt.Sprintf("snapshot %v %s", luns, name), func(st simState) {
		for _, l := range luns {
			st[l].snaps[name] = st[l].head.clone()
		}
	}, func() error {
		_, err := s.p.CreateSnapshots(bg, reqs, SnapshotOptions{})
		return err
	})
	return name
}

func (s *sim) rollback(lun, snap string, discard bool) {
	s.t.Helper()
	s.needs(lun, snap)
	kept := "before-rollback-" + s.now().Add(simTick).UTC().Format("20060102T150405Z")
	s.structural(fmt.Sprintf("rollback %s@%s discard %v", lun, snap, discard), func(st simState) {
		if !discard {
			st[lun].snaps[kept] = st[lun].head
		}
		st[lun].head = st[lun].snaps[snap].clone()
	}, func() error {
		_, err := s.p.Rollback(bg, lun, snap, RollbackOptions{Discard: discard})
		return err
	})
}

func (s *sim) clone(lun, snap, to string, thick bool) {
	s.t.Helper()
	s.needs(lun, snap)
	s.structural(fmt.Sprintf("clone %s@%s %s", lun, snap, to), func(st simState) {
		from := st[lun].head
		if snap != "" {
			from = st[lun].snaps[snap]
		}
		st[to] = &simLUN{from.clone(), map[string]stamps{}}
	}, func() error {
		_, err := s.p.Clone(bg, lun, snap, to, thick)
		return err
	})
}

func (s *sim) delete(refs ...SnapshotRef) {
	s.t.Helper()
	for _, r := range refs {
		s.needs(r.LUN, r.Name)
	}
	s.structural(fmt.Sprintf("delete %v", refs), func(st simState) {
		for _, r := range refs {
			delete(st[r.LUN].snaps, r.Name)
		}
	}, func() error {
		_, err := s.p.DeleteSnapshots(bg, refs, DeleteOptions{})
		return err
	})
}

func (s *sim) deleteLUN(lun string) {
	s.t.Helper()
	s.needs(lun, "")
	s.structural("delete LUN "+lun, func(st simState) { delete(st, lun) }, func() error {
		_, err := s.p.DeleteLUN(bg, lun, true)
		return err
	})
}

func (s *sim) rename(lun, to string) {
	s.t.Helper()
	s.needs(lun, "")
	s.structural("rename "+lun+" "+to, func(st simState) {
		st[to] = st[lun]
		delete(st, lun)
	}, func() error {
		_, err := s.p.RenameLUN(bg, lun, to)
		return err
	})
}

func (s *sim) checkpoint() {
	s.t.Helper()
	s.do("checkpoint", true, nil, s.p.Checkpoint)
}

// reclaim and clean need not sync anything.
func (s *sim) reclaim() {
	s.t.Helper()
	s.do("reclaim", false, nil, s.p.Reclaim)
}

func (s *sim) clean() {
	s.t.Helper()
	s.do("clean", false, nil, func() error { _, err := s.p.Clean(bg); return err })
}

// holes makes holes, and nothing else that cleaning does.
func (s *sim) holes() {
	s.t.Helper()
	s.do("holes", false, nil, func() error {
		if _, _, err := s.p.planHoles(100, 100); err != nil {
			return err
		}
		return s.p.makeHoles()
	})
}

// publish begins the merges that are due and leaves it at that.
func (s *sim) publish() {
	s.t.Helper()
	s.do("publish", false, nil, func() error { _, _, err := s.p.publishReclaim(); return err })
}

func (s *sim) reopen() {
	s.t.Helper()
	s.begin("reopen", nil)
	closing := s.p.Close()
	opening := s.open()
	if s.faulty && opening != nil {
		s.trace = append(s.trace, "  open fails: "+opening.Error())
		for range 30 { // until the failure is over
			if s.open() == nil {
				break
			}
		}
	} else if err := errors.Join(closing, opening); err != nil && !s.faulty {
		s.fatalf("reopen: %v", err)
	}
	if closing != nil || opening != nil || s.dead != nil {
		c := simCut{durable: s.durable, steps: s.steps}
		got := s.read("reopen")
		if why := c.prefix(got); why != "" {
			s.fatalf("reopen: %s", why)
		}
		s.reopened, s.dead, s.durable, s.steps = true, nil, got, nil
	}
	if st := s.p.Status(); st.State != "ok" && !s.faulty {
		s.fatalf("after reopen the pool is %s", st.State)
	}
	s.settle()
	s.verify()
}

// simWorks are crashed, and fail, at their operations one after the other.
var simWorks = []struct {
	name string
	run  func(s *sim)
}{
	{"writes", func(s *sim) {
		s.create("a", false)
		s.write("a", 0, 6, false)
		s.flush("a")
		s.write("a", 0, 4, false)
		s.mark()
		s.write("a", 0, 4, false)
		s.mark()
		s.write("a", 4, 8, true)
		s.checkpoint()
		s.write("a", 0, 20, false)
		s.erase("trim", "a", 2, 4)
		s.erase("zero", "a", 10, 8)
		s.flush("a")
		s.erase("charged", "a", 18, 4)
		s.write("a", 16, 8, false)
		s.flush("a")
		s.write("a", 0, 24, false)
		s.checkpoint()
		s.write("a", 0, 24, false)
		s.write("a", 8, 4, true)
		s.reopen()
		s.write("a", 8, 4, false)
	}},
	{"snapshots", func(s *sim) {
		s.create("a", false)
		s.create("b", true)
		s.write("a", 0, 12, false)
		s.write("b", 4, 4, false)
		one := s.snapshot("a", "b")
		s.write("a", 4, 4, false)
		s.checkpoint()
		two := s.snapshot("a")
		s.write("a", 8, 10, false)
		s.rollback("a", one, false)
		s.write("a", 0, 2, true)
		s.erase("trim", "b", 4, 3)
		s.rollback("b", one, true)
		s.write("b", 5, 1, false)
		s.rollback("a", two, true)
		s.snapshot("b", "a")
		s.rename("b", "c")
		s.write("c", 20, 4, true)
	}},
	{"clones", func(s *sim) {
		s.create("a", false)
		s.write("a", 0, 16, false)
		one := s.snapshot("a")
		s.clone("a", one, "b", false)
		s.write("b", 2, 4, false)
		s.write("a", 2, 6, true)
		s.checkpoint()
		s.clone("b", "", "c", true)
		s.delete(SnapshotRef{"a", one})
		s.write("c", 0, 3, false)
		s.reclaim()
		s.deleteLUN("a")
		s.write("b", 10, 4, false)
		s.reclaim()
		s.checkpoint()
		s.deleteLUN("c")
		s.reclaim()
		s.write("b", 0, 8, true)
		s.clean()
	}},
	{"merges", func(s *sim) {
		s.create("a", false)
		var names []string
		for i := range 5 {
			s.write("a", i*4, 6, i == 2)
			names = append(names, s.snapshot("a"))
		}
		s.checkpoint()
		s.delete(SnapshotRef{"a", names[1]}, SnapshotRef{"a", names[2]})
		s.publish()
		s.write("a", 3, 8, false)
		s.erase("zero", "a", 0, 3)
		s.reclaim()
		s.delete(SnapshotRef{"a", names[0]})
		s.write("a", 5, 2, true)
		s.reclaim()
		s.rollback("a", names[3], true)
		s.write("a", 0, 4, false)
		s.delete(SnapshotRef{"a", names[3]}, SnapshotRef{"a", names[4]})
		s.reclaim()
		s.checkpoint()
	}},
	{"cleaner", func(s *sim) {
		s.p.holesFail.Store(true) // it moves
		s.create("a", false)
		s.write("a", 0, 24, false)
		one := s.snapshot("a")
		s.write("a", 0, 24, true)
		s.write("a", 1, 3, false)
		s.checkpoint()
		s.clean()
		s.write("a", 1, 7, false)
		s.delete(SnapshotRef{"a", one})
		s.clean()
		s.write("a", 0, 8, false)
		s.mark()
		s.write("a", 8, 8, false)
		s.checkpoint()
		s.write("a", 0, 16, true)
		s.clean()
		s.write("a", 2, 2, true)
	}},
	{"holes", func(s *sim) {
		s.create("a", false)
		s.create("b", true)
		for at := 0; at < 24; at += 3 {
			s.write("a", at, 3, false)
			s.write("b", at/3, 1, true)
		}
		one := s.snapshot("b")
		s.erase("trim", "b", 0, 4)
		s.write("b", 4, 4, true)
		s.clean() // the snapshot holds them
		s.delete(SnapshotRef{"b", one})
		s.reclaim()
		s.holes()
		s.write("a", 3, 4, false)
		s.holes()
		s.write("a", 6, 3, true)
		s.holes()
		s.checkpoint()
		s.write("b", 0, 8, false)
		s.holes()
		s.reopen()
		s.write("a", 10, 2, true)
		s.clean()
		s.write("b", 2, 2, true)
	}},
}

// step is one random operation.
func (s *sim) step() {
	st := s.latest()
	luns := slices.Sorted(maps.Keys(st))
	if len(luns) == 0 {
		s.names++
		s.create(fmt.Sprintf("l%d", s.names), s.rng.IntN(3) == 0)
		return
	}
	lun := luns[s.rng.IntN(len(luns))]
	snaps := slices.Sorted(maps.Keys(st[lun].snaps))
	snap := ""
	if len(snaps) > 0 {
		snap = snaps[s.rng.IntN(len(snaps))]
	}
	at, n := s.rng.IntN(simBlocks), 1+s.rng.IntN(10)
	switch k := s.rng.IntN(100); {
	case k < 40:
		s.write(lun, at, n, s.rng.IntN(4) == 0)
	case k < 48:
		s.erase([]string{"trim", "zero", "charged"}[s.rng.IntN(3)], lun, at, n)
	case k < 56:
		s.flush(lun)
	case k < 58:
		s.mark()
	case k < 66 && len(snaps) < 5:
		s.snapshot(luns[:1+s.rng.IntN(len(luns))]...)
	case k < 70 && snap != "" && len(snaps) < 8:
		s.rollback(lun, snap, s.rng.IntN(2) == 0)
	case k < 74 && len(luns) < 4:
		s.names++
		s.clone(lun, snap, fmt.Sprintf("l%d", s.names), s.rng.IntN(4) == 0)
	case k < 79 && snap != "":
		s.delete(SnapshotRef{lun, snap})
	case k < 81 && len(luns) > 1:
		s.deleteLUN(lun)
	case k < 82:
		s.names++
		s.rename(lun, fmt.Sprintf("l%d", s.names))
	case k < 87:
		s.checkpoint()
	case k < 92:
		s.reclaim()
	case k < 94:
		s.clean()
	case k < 96:
		s.holes()
	case k < 97:
		s.publish()
	case k < 98:
		s.reopen()
	default:
		s.create(strings.Repeat("x", 1+s.rng.IntN(3))+fmt.Sprint(s.names), false)
		s.names++
	}
}
