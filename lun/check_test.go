package lun

import (
	"context"
	"testing"
)

// Two intervals of dead log are at most a quarter of the data, or 128 MiB.
func TestBackupAfter(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct{ capacity, live, want int64 }{
		{16 << 30, 1 << 30, 128 * mib},
		{16 << 30, 15 << 30, 1 << 30},
		{16 << 30, 0, 64 * mib},
		{1 << 20, 1 << 20, 64 * mib},
		{1 << 40, 1 << 39, 8 << 30},
	} {
		if got := backupAfter(c.capacity, c.live); got != c.want {
			t.Errorf("capacity %d, live %d: %d, want %d", c.capacity, c.live, got, c.want)
		}
	}
}

// A check of a pool that is served holds neither checkpoints nor structural
// changes back, and finds what is wrong as of its begin.
func TestCheckHoldsNobodyUp(t *testing.T) {
	m := scripted(t)
	m.put("a", 0, 600)
	m.snap("a", "s")
	m.put("a", 100, 50)
	m.check(m.p.Close(), "close")
	m.o.Manual, m.o.BackUpEvery, m.o.ScrubEvery = false, -1, -1
	m.open()
	m.settle()
	rep, err := m.p.Check(context.Background(), nil)
	m.check(err, "check")
	if !rep.OK {
		t.Fatalf("%+v", rep)
	}
	c, err := m.p.freezeForCheck("frozen")
	m.check(err, "freeze")
	m.snap("a", "during")
	m.put("a", 0, 10)
	m.check(m.p.Checkpoint(), "checkpoint")
	m.settle()
	m.dropSnap("a", "s")
	m.check(m.p.Reclaim(), "reclaim")
	rep, err = m.p.checkFrozen(context.Background(), c, "frozen", nil)
	m.check(err, "check")
	if !rep.OK {
		t.Fatalf("%+v", rep)
	}
	// A counter that is wrong is found.
	m.p.adminMu.Lock()
	id := m.p.tree.LUNs()[0].Head
	m.p.adminMu.Unlock()
	m.p.overlay.mu.Lock()
	m.p.overlay.countLocked(id, counts{owned: 3})
	m.p.overlay.mu.Unlock()
	if rep, err = m.p.Check(context.Background(), nil); err != nil || rep.OK {
		t.Errorf("a wrong counter was not found: %+v %v", rep, err)
	}
}
