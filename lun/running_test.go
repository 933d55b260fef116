package lun

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"testing"
	"time"

	"lunar/store/crashfs"
)

// What a pool that runs does by itself, or has done to it.

// until waits for something that a pool does by itself.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in a minute", what)
		}
	}
}

// A scrub that is due starts by itself, and goes on after a restart.
func TestScheduledScrub(t *testing.T) {
	m := scripted(t)
	m.coldLUNs(12, 8)
	m.damageBlock("l0", 3)
	m.damageBlock("l11", 5)
	whole := m.scrub()
	m.check(m.p.Close(), "close")
	m.check(m.fs.Remove(m.p.path(scrubFile)), "remove")

	now := m.p.now().Add(31 * 24 * time.Hour)
	m.o.Manual, m.o.BackUpEvery, m.o.Now = false, -1, func() time.Time { return now }
	m.o.ScrubPace = 1 // the first page, and then a wait of hours
	m.open()
	until(t, "the scrub starts", func() bool { return hasEvent(m.p, "corrupt-block", "l0, offset") })
	m.check(m.p.Close(), "close")
	began := m.p.readScrub()
	if !began.Scheduled || !began.Started.Equal(now) || !began.Finished.IsZero() || len(began.Damaged) != 1 || began.Blocks*blockSize >= whole.Bytes {
		t.Fatalf("interrupted: %+v", began)
	}

	now = now.Add(time.Hour)
	m.o.ScrubPace = -1
	m.open()
	until(t, "the scrub ends", func() bool { return hasEvent(m.p, "scrub", "scrub finished") })
	m.check(m.p.Close(), "close")
	s := m.p.readScrub()
	if !s.Started.Equal(began.Started) || !s.Finished.Equal(now) || len(s.Damaged) != 2 || s.Blocks*blockSize != whole.Bytes {
		t.Errorf("it did not go on: %+v, want %d bytes", s, whole.Bytes)
	}
	if hasEvent(m.p, "corrupt-block", "l0, offset") {
		t.Error("it began anew")
	}
}

// Where segments are short, the copies of the index are given up for those that only they need: no write fails for want of space
// that is there. Later they are made again, and are of use.
func TestCopiesGivenUp(t *testing.T) {
	m := scripted(t)
	m.check(m.p.Close(), "close")
	m.fs, m.o.Capacity = crashfs.New(), 24<<20
	m.heads, m.snaps = map[string]stamps{}, map[string]map[string]stamps{}
	m.open()
	m.addLUN("a")
	m.put("a", 0, modelBlocks)
	m.checkpoint()
	m.backUp(2)
	most := 0
	for i := 0; len(m.p.Backups()) > 0; i++ {
		if i == 2000 {
			t.Fatalf("the copies are still there: %+v", m.p.Status())
		}
		m.put("a", i*64%(modelBlocks-64), 64)
		m.sync("a")
		m.settle()
		if i%8 == 0 {
			m.checkpoint()
		}
		_, err := m.p.cleanRound(&burst{}, false)
		m.check(err, "clean")
		most = max(most, m.p.space.pinned())
	}
	if most == 0 || !hasEvent(m.p, "index-backup", "given up: segments are short") {
		t.Errorf("at most %d segments were held by copies; events %v", most, m.p.Events())
	}
	if n := m.p.space.pinned(); n != 0 {
		t.Errorf("%d segments are still held", n)
	}
	m.verify()
	_, err := m.p.Clean(bg)
	m.check(err, "clean")
	m.backUp(2)
	m.put("a", 0, 100)
	m.sync("a")
	m.settle()
	m.check(m.p.Close(), "close")
	m.check(m.fs.RemoveAll(m.fs.PathJoin(m.o.Dir, indexDir)), "remove")
	_, err = m.repair(RepairOptions{})
	m.check(err, "repair")
	m.open()
	m.verify()
}

// Tables of the index are damaged below a pool that runs: what can be read is right, the rest is EIO, whatever is written meanwhile
// and acknowledged is there after the repair, and so is all else.
func TestIndexDamagedWhileRunning(t *testing.T) {
	base := layered(t)
	for l := range 2 {
		lun := fmt.Sprintf("e%d", l)
		base.addLUN(lun)
		for i := range 300 {
			base.put(lun, i*337%modelBlocks, 1)
		}
	}
	base.backUp(2)
	base.put("a", 3, 2)
	base.sync("a")
	base.check(base.p.Checkpoint(), "checkpoint")
	base.check(base.p.index.Flush(), "flush")
	base.check(base.p.Close(), "close")
	base.settle()
	var tables []string
	base.each(indexDir, ".sst", func(path string) { tables = append(tables, path) })
	failed := 0
	for _, path := range tables {
		for part := range 4 {
			failed += base.fork(t).damagedWhileRunning(path, part)
		}
	}
	t.Logf("%d tables: %d reads or writes failed", len(tables), failed)
	if failed == 0 {
		t.Error("nothing was damaged")
	}
}

// damagedWhileRunning flips a bit in every 64 bytes of a quarter of a table, and says how many pages could not be read or blocks written.
func (m *model) damagedWhileRunning(path string, part int) (failed int) {
	heads := map[string]stamps{}
	for lun, s := range m.heads {
		heads[lun] = s.clone()
	}
	m.heads = heads
	m.open()
	defer func() { m.p.Abandon() }()
	info, err := m.fs.Stat(path)
	m.check(err, "stat")
	quarter := int(info.Size() / 4)
	m.check(m.fs.Damage(path, int64(part*quarter), quarter, func(b []byte) {
		for i := 0; i < len(b); i += 64 {
			b[i] ^= 0x10
		}
	}), "damage")
	for round := range 2 {
		for lun, want := range m.heads {
			failed += m.pages(lun, "", want)
			for snap, want := range m.snaps[lun] {
				failed += m.pages(lun, snap, want)
			}
		}
		if round == 0 {
			failed += m.writesSome()
			_ = m.p.Checkpoint() // it may fail; that the pool says so is enough
			_ = m.p.Status()
		}
	}
	m.p.Abandon()
	_, err = m.repair(RepairOptions{})
	m.check(err, "repair after damage of quarter %d of %s", part, path)
	m.open()
	m.verify()
	return failed
}

// pages reads an export page by page, and says how many fail, which must be by EIO; the others must hold what the model says.
func (m *model) pages(lun, snap string, want stamps) (failed int) {
	v, err := m.p.OpenVolume(lun, snap)
	m.check(err, "open %s@%s", lun, snap)
	defer v.Close()
	for at := 0; at < len(want); at += 512 {
		b := make([]byte, min(512, len(want)-at)*blockSize)
		if err := v.ReadAt(b, int64(at)*blockSize); err != nil {
			if failed++; !errors.Is(err, syscall.EIO) {
				m.t.Fatalf("%s@%s block %d: %v is not EIO", lun, snap, at, err)
			}
			continue
		}
		for i := 0; i < len(b); i += blockSize {
			if s := stampOf(m.t, b[i:i+blockSize]); s != want[at+i/blockSize] {
				m.t.Fatalf("%s@%s block %d holds stamp %d, want %d", lun, snap, at+i/blockSize, s, want[at+i/blockSize])
			}
		}
	}
	return failed
}

// writesSome writes blocks of each LUN that are not refused, and flushes them.
func (m *model) writesSome() (refused int) {
	b := make([]byte, blockSize)
	for _, lun := range slices.Sorted(maps.Keys(m.heads)) {
		v, err := m.p.OpenVolume(lun, "")
		m.check(err, "open")
		for i := 0; i < modelBlocks; i += 97 {
			m.next++
			fill(b, m.next)
			if err := v.WriteAt(b, int64(i)*blockSize, false); err == nil {
				m.heads[lun][i] = m.next
			} else if refused++; !errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.EPERM) {
				m.t.Fatalf("write: %v", err)
			}
		}
		m.check(v.Flush(), "flush")
		m.check(v.Close(), "close")
	}
	return refused
}
