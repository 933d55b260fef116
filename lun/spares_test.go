package lun

import "testing"

// TestIdleSpares: what a burst of overwrites left free is used again by the next
// one, and given back to the disk when nothing was appended in between.
func TestIdleSpares(t *testing.T) {
	m := scripted(t)
	for range 12 {
		m.put("a", 0, modelBlocks)
		m.settle()
	}
	m.check(m.p.Checkpoint(), "checkpoint")
	m.check(m.p.Checkpoint(), "checkpoint")
	before := m.p.log.Stats()
	if before.Free <= m.p.idleSpares()+2 {
		t.Fatalf("only %d spares, %d may stay", before.Free, m.p.idleSpares())
	}
	seen := m.p.dropIdleSpares(0)
	m.put("a", 0, 1)
	seen = m.p.dropIdleSpares(seen)
	if s := m.p.log.Stats(); s.Free < before.Free-2 {
		t.Errorf("spares went while something was written: %d of %d are left", s.Free, before.Free)
	}
	m.p.dropIdleSpares(seen)
	if s := m.p.log.Stats(); s.Free > m.p.idleSpares() || s.Files >= before.Files {
		t.Errorf("%d spares are left of %d, %d files of %d", s.Free, before.Free, s.Files, before.Files)
	}
	m.put("a", 0, modelBlocks) // new files are made again
	m.settle()
	m.check(m.p.Checkpoint(), "checkpoint")
}
