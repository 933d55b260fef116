package lun

import (
	"context"
	"testing"
)

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
