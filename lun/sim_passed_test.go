package lun

import (
	"errors"
	"testing"
	"time"

	"lunar/cow"
	"lunar/store/crashfs"
	"lunar/store/segment"
)

// What is rare enough that the simulator's workloads, one operation after the other, never meet it: writers, a merge and the
// cleaner that come between the two halves of something else. Each is brought about here, and then the power is cut.

// passed runs during between the choice of a checkpoint's position and its commit, and leaves what a power cut right behind that leaves.
func (m *model) passed(during func()) *crashfs.FS {
	m.t.Helper()
	m.p.ckptMu.Lock()
	defer m.p.ckptMu.Unlock()
	pend := m.p.beginCheckpoint()
	during()
	m.check(m.p.endCheckpoint(pend), "checkpoint")
	return m.fs.Image(crashfs.LoseAll())
}

// TestReusedBehindThePosition: segments that are written and overwritten while a checkpoint runs are dead when it ends, and lie
// behind its position: replay follows the log through them, so they may not be used again.
func TestReusedBehindThePosition(t *testing.T) {
	m := scripted(t)
	m.put("a", 0, 4)
	m.checkpoint()
	m.passed(func() {
		for range 3 {
			m.put("a", 0, 40)
		}
		m.check(m.p.log.Rotate(), "rotate")
	})
	m.put("a", 200, 90) // into whatever was given back
	m.sync("a")
	m.cut(0)
}

// TestCrashAfterMergePassedACheckpoint: a snapshot is taken, what it holds is trimmed, and it is deleted while a checkpoint runs.
// If its pages were joined before that checkpoint is done, the index would have the trim without its trace, and replay would bring back
// what was trimmed.
func TestCrashAfterMergePassedACheckpoint(t *testing.T) {
	m := scripted(t)
	merged := make(chan error, 1)
	cut := m.passed(func() {
		m.put("a", 0, 4)
		m.snap("a", "s")
		m.volume("a", func(v *Volume) error { return v.Trim(0, 2*blockSize, false) })
		for i := range 2 {
			m.pend = append(m.pend, delta{"a", i, 0})
		}
		m.put("a", 5, 1)
		m.sync("a")
		go func() {
			_, err := m.p.DeleteSnapshots(bg, []SnapshotRef{{"a", "s"}}, DeleteOptions{})
			merged <- errors.Join(err, m.p.Reclaim())
		}()
		// It waits for the checkpoint. If it does not, it has joined the pages by then.
		time.Sleep(300 * time.Millisecond)
	})
	m.check(<-merged, "merge")
	delete(m.snaps["a"], "s")
	m.verify()
	m.p.Abandon()
	m.fs = cut
	m.open() // the snapshot may be there
	m.prefix(map[string]stamps{"a": m.read("a", "")})
	m.consistent()
}

// TestCrashAfterACopyWasOvertaken: a block is overwritten between the cleaner's look at it and its copy in the log, which therefore
// comes later there. The copy is not what the block holds.
func TestCrashAfterACopyWasOvertaken(t *testing.T) {
	m := scripted(t)
	m.put("a", 0, 4)
	m.checkpoint()
	old := make([]byte, 4*blockSize)
	m.volume("a", func(v *Volume) error { return v.ReadAt(old, 0) })
	m.p.adminMu.Lock()
	defer m.p.adminMu.Unlock()
	live, err := m.p.living(0, m.places("a", 4), nil)
	m.check(err, "living")
	if len(live) != 4 {
		t.Fatalf("%d blocks are living, want 4", len(live))
	}
	moved, err := m.p.moveLiving(0, live, func([]living) []byte {
		m.put("a", 1, 2)
		return old
	})
	m.check(err, "move")
	if moved != 2 {
		t.Errorf("%d blocks were moved, want 2", moved)
	}
	m.sync("a")
	m.cut(0)
}

// places is where the first n blocks of a LUN lie.
func (m *model) places(lun string, n int) (out []placed) {
	l, err := m.p.tree.LUNByName(lun)
	m.check(err, "LUN")
	pg, err := m.p.heads[l.ID].get(0)
	m.check(err, "page")
	defer pg.unpin()
	m.check(pg.lock(), "page")
	defer pg.mu.Unlock()
	for i := range n {
		e := pg.At(i)
		out = append(out, placed{cow.VersionID(e.Owner), uint64(i), e.Loc, e.CRC, 0})
	}
	return out
}

// TestCrashAfterASegmentCameBack: a segment file that was missing at one start is back at the next one, as from lost+found or a
// copy. Its records have the numbers of those that were written since, and are of an older epoch.
func TestCrashAfterASegmentCameBack(t *testing.T) {
	m := scripted(t)
	m.put("a", 0, 4)
	m.checkpoint()
	for range 12 {
		m.put("a", 0, 4)
	}
	m.check(m.p.log.Rotate(), "rotate")
	m.checkpoint() // the first segments are free now, and known: their numbers are not given out anew
	var last recordAt
	for n := 0; last.number != 1; n++ {
		if n == 100 {
			t.Fatal("segment 1 is not used again")
		}
		m.put("a", 0, 4)
		m.check(m.p.log.Mark(), "mark")
		last = recordAt{}
		for _, h := range m.headers() {
			if h.first > last.first {
				last = h
			}
		}
	}
	m.p.Abandon()
	path := m.fs.PathJoin(m.o.Dir, segmentDir, segment.Name(last.number))
	stale, err := readFile(m.fs, path)
	m.check(err, "read")
	m.check(m.fs.Remove(path), "remove")
	m.open()
	m.prefix(m.compare())
	for range 3 {
		m.put("a", 0, 4)
		m.sync("a")
	}
	m.p.Abandon()
	if _, err := m.fs.Stat(path); err == nil {
		t.Fatal("the number of the file that was missing was given out again: nothing can come back")
	}
	m.check(writeFile(m.fs, path, stale), "put it back")
	m.open()
	m.verify()
	m.consistent()
}

// TestDamagedLogUndoesNothing: a block is overwritten twice while a checkpoint runs, which commits the second write, behind its
// position. Then the second record is unreadable. Replay meets the first write only, which the index has overtaken: it must not come back.
func TestDamagedLogUndoesNothing(t *testing.T) {
	m := scripted(t)
	m.put("a", 0, 2)
	m.checkpoint()
	last := recordAt{}
	cut := m.passed(func() {
		m.put("a", 0, 2)
		m.sync("a")
		m.put("a", 0, 2)
		m.sync("a")
		for _, h := range m.headers() {
			if h.last > last.last {
				last = h
			}
		}
		m.put("a", 8, 2)
		m.sync("a")
	})
	m.settle()
	m.p.Abandon()
	m.fs = cut
	m.damage(last.number, last.at+3, 1)
	m.open()
	if st := m.p.Status(); st.State != "read-only" {
		t.Fatalf("nothing was damaged: %+v", st)
	}
	m.verify()
	m.p.Abandon()
	o := m.o
	o.FS = m.fs
	_, err := Repair(bg, o, RepairOptions{AcceptLoss: true})
	m.check(err, "repair")
	m.open()
	m.verify()
	m.put("a", 0, 10)
	m.sync("a")
	m.cut(0)
}
