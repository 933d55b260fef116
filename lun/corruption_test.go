package lun

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"

	"lunar/store/crashfs"
)

// damageBlock flips a byte of where the LUN's block lies.
func (m *model) damageBlock(lun string, block int) {
	m.t.Helper()
	m.volume(lun, func(v *Volume) error {
		var e entries
		if err := v.lookup(uint64(block/512), block%512, 1, &e); err != nil {
			return err
		}
		loc := e.loc[block%512]
		m.damage(loc/m.p.space.blocks, int64(loc%m.p.space.blocks)*blockSize+77, 1)
		return nil
	})
}

func hasEvent(p *Pool, kind, text string) bool {
	for _, e := range p.Events() {
		if e.Type == kind && strings.Contains(e.Message, text) {
			return true
		}
	}
	return false
}

func TestDamagedBlockIsTheOnlyOneLost(t *testing.T) {
	m := scripted(t)
	m.put("a", 0, 40)
	m.snap("a", "s")
	m.put("a", 20, 5)
	m.checkpoint()
	m.check(m.p.log.Rotate(), "rotate")
	m.checkpoint()
	m.damageBlock("a", 7)
	for _, snap := range []string{"", "s"} {
		v, err := m.p.OpenVolume("a", snap)
		m.check(err, "open")
		b := make([]byte, blockSize)
		for i := range 40 {
			err := v.ReadAt(b, int64(i)*blockSize)
			if want := i == 7; (err != nil) != want {
				t.Errorf("%q block %d: %v", snap, i, err)
			}
			var errno syscall.Errno
			if err != nil && (!errors.As(err, &errno) || errno != syscall.EIO) {
				t.Errorf("%q block %d: %v is errno %d, want EIO", snap, i, err, errno)
			}
			if got := m.heads["a"]; err == nil && snap == "" && stampOf(t, b) != got[i] {
				t.Errorf("block %d holds stamp %d, want %d", i, stampOf(t, b), got[i])
			}
		}
		m.check(v.Close(), "close")
	}
	if !hasEvent(m.p, "corrupt-block", "offset 28672") {
		t.Errorf("no event names the block: %+v", m.p.Events())
	}
	rep, err := m.p.Scrub(context.Background(), ScrubOptions{}, nil)
	m.check(err, "scrub")
	if rep.OK || len(rep.Problems) != 1 || !strings.Contains(rep.Problems[0].Where, "a@s, offset 28672, 4096 bytes, seen by 1 more: a") {
		t.Fatalf("scrub: %+v", rep)
	}
	if _, err := m.p.Clean(context.Background()); err != nil {
		t.Errorf("cleaning beside a damaged block: %v", err)
	}
	m.put("a", 7, 1)
	m.sync("a")
	m.volume("a", func(v *Volume) error { return v.ReadAt(make([]byte, 40*blockSize), 0) })
	m.check(deleteSnap(m.p, "a", "s"), "delete")
	delete(m.snaps["a"], "s")
	m.check(m.p.Reclaim(), "reclaim")
	m.verify()
	if rep, err = m.p.Scrub(context.Background(), ScrubOptions{}, nil); err != nil || !rep.OK {
		t.Errorf("scrub after the repair: %+v %v", rep, err)
	}
	m.cut(0)
}

func deleteSnap(p *Pool, lun, name string) error {
	_, err := p.DeleteSnapshots(context.Background(), []SnapshotRef{{lun, name}}, DeleteOptions{})
	return err
}

// A read-modify-write over a damaged block must not make its bytes look right.
func TestPartialWriteOverADamagedBlockFails(t *testing.T) {
	m := scripted(t)
	m.put("a", 0, 4)
	m.checkpoint()
	m.check(m.p.log.Rotate(), "rotate")
	m.damageBlock("a", 2)
	v, err := m.p.OpenVolume("a", "")
	m.check(err, "open")
	defer v.Close()
	if err := v.WriteAt([]byte("x"), 2*blockSize+5, false); !errors.Is(err, syscall.EIO) {
		t.Errorf("partial write: %v, want EIO", err)
	}
	m.check(v.WriteAt([]byte("x"), 3*blockSize+5, false), "write beside it")
	m.consistent()
}

// damagedLog makes a pool whose second of three flushed records is unreadable,
// crashed, and returns what the LUN held before each.
func damagedLog(t *testing.T) (m *model, was stamps) {
	m = scripted(t)
	m.put("a", 0, 10)
	m.checkpoint()
	was = m.heads["a"].clone()
	m.put("a", 0, 2)
	m.sync("a")
	first := m.heads["a"].clone()
	m.put("a", 4, 2)
	m.sync("a")
	hs := m.headers()
	last := hs[0]
	for _, h := range hs {
		if h.last > last.last {
			last = h
		}
	}
	m.put("a", 8, 2)
	m.sync("a")
	fs := m.fs.Image(crashfs.LoseAll())
	m.p.Abandon()
	m.fs = fs
	m.damage(last.number, last.at+3, 1)
	_ = first
	return m, was
}

func TestDamagedLogOpensReadOnly(t *testing.T) {
	m, was := damagedLog(t)
	m.open()
	st := m.p.Status()
	if st.State != "read-only" || st.Reason == nil || !strings.Contains(*st.Reason, "entries ") || !strings.Contains(*st.Reason, "accept-loss") {
		t.Fatalf("status %+v", st)
	}
	if !hasEvent(m.p, "pool-read-only", "entries ") {
		t.Error("no event says so")
	}
	v, err := m.p.OpenVolume("a", "")
	m.check(err, "open volume")
	if err := v.WriteAt(make([]byte, blockSize), 0, false); err == nil {
		t.Error("a write was taken")
	}
	if err := v.Flush(); err == nil {
		t.Error("a flush was answered")
	}
	b := make([]byte, blockSize)
	m.check(v.ReadAt(b, 9*blockSize), "read")
	if s := stampOf(t, b); s != was[9] && s != m.heads["a"][9] {
		t.Errorf("block 9 holds stamp %d, never written there", s)
	}
	m.check(v.Close(), "close")
	m.check(m.p.Close(), "close")
	m.open() // nothing was changed by looking
	if m.p.Status().State != "read-only" {
		t.Error("opening it twice made the damage go")
	}
}

func TestAcceptedLossGoesOn(t *testing.T) {
	m, was := damagedLog(t)
	lines, err := Repair(context.Background(), func() Options { o := m.o; o.FS = m.fs; return o }(), RepairOptions{AcceptLoss: true})
	m.check(err, "repair")
	if len(lines) < 2 || !strings.Contains(lines[0], "are lost") {
		t.Errorf("repair says %q", lines)
	}
	m.open()
	m.heads["a"][4], m.heads["a"][5] = was[4], was[5]
	m.verify()
	m.put("a", 0, 10)
	m.sync("a")
	m.cut(0)
}
