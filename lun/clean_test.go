package lun

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
)

// overwrite writes n of every other block of a LUN by chance, and returns what
// it wrote in order. It may run beside others that write the other blocks.
func overwrite(t *testing.T, p *Pool, lun string, seed, first uint64, half, n int) (wrote []delta) {
	rng := rand.New(rand.NewPCG(seed, 9))
	v, err := p.OpenVolume(lun, "")
	if err != nil {
		t.Error(err)
		return nil
	}
	defer v.Close()
	b := make([]byte, blockSize)
	for i := range n {
		d := delta{lun, rng.IntN(75)*2 + half, first + uint64(i) + 1}
		fill(b, d.stamp)
		if err := v.WriteAt(b, int64(d.block)*blockSize, false); err != nil {
			t.Error(err)
			return wrote
		}
		wrote = append(wrote, d)
	}
	return wrote
}

// The cleaner moves a block that somebody overwrites meanwhile: the overwrite
// must win, whichever of the two comes first to the map.
func TestCleaningUnderOverwrites(t *testing.T) {
	m := scripted(t)
	m.addLUN("b")
	m.put("a", 0, 150)
	m.put("b", 0, 150)
	m.snap("a", "s")
	written := m.p.Status().IndexWrittenBytes
	for round := range 6 {
		m.p.holesFail.Store(true) // it is moves that are tested
		var wg sync.WaitGroup
		wrote := make([][]delta, 4)
		for i := range wrote {
			first := m.next
			m.next += 60
			wg.Go(func() {
				wrote[i] = overwrite(t, m.p, []string{"a", "b"}[i/2], uint64(round*4+i), first, i%2, 60)
			})
		}
		for range 2 {
			if _, err := m.p.Clean(context.Background()); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
		for _, w := range wrote { // writers share no block: any order of theirs will do
			m.pend = append(m.pend, w...)
		}
		if s := m.p.Status(); s.MovedBytes == 0 || s.IndexWrittenBytes == 0 || round == 0 && s.IndexWrittenBytes <= written {
			t.Errorf("round %d: %d bytes moved and %d written by the index, %d before", round, s.MovedBytes, s.IndexWrittenBytes, written)
		}
		if round%2 == 1 {
			m.sync("a")
			m.cut(0)
		}
	}
	m.verify()
}

// Blocks of a frozen version that lie apart in a segment are moved with one
// change of the index for each page, not with one for each block.
func TestCleanWritesOncePerPage(t *testing.T) {
	m := scriptedIn(t, 1<<20)
	for i := range 60 {
		m.put("a", i*7%420, 1)
	}
	m.snap("a", "s")
	m.put("a", 500, 1)
	m.sync("a")
	m.check(m.p.log.Rotate(), "rotate")
	m.check(m.p.Checkpoint(), "checkpoint")
	m.p.cleanMu.Lock()
	moved := int64(0)
	for _, v := range m.p.victims() {
		n, err := m.p.emptySegment(v.number)
		m.check(err, "empty segment %d", v.number)
		moved += n
	}
	m.p.cleanMu.Unlock()
	if moved != 61 {
		t.Errorf("%d blocks moved, want 61", moved)
	}
	l, err := m.p.tree.LUNByName("a")
	m.check(err, "a")
	head := m.p.tree.Version(l.Head)
	if ops := m.p.overlay.get(pageKey{head.Branch, 0}); len(ops) != 1 || ops[0].version != head.Parent || ops[0].kind != opMove {
		t.Errorf("%d changes of the page of %d blocks, want one: %v", len(ops), moved, ops)
	}
	m.check(m.p.Checkpoint(), "checkpoint")
	m.cut(0)
	m.verify()
}

// Two that clean at the same time choose the same victims: the later one finds them gone, which is no damage.
func TestCleaningByTwo(t *testing.T) {
	m := scripted(t)
	for range 6 {
		m.put("a", 0, 300)
		m.sync("a")
	}
	m.put("a", 0, 40)
	m.checkpoint()
	vs := bestVictims(m.p.victims(), 100, true, 1<<30)
	if len(vs) == 0 {
		t.Fatal("there is nothing to clean")
	}
	for range 2 {
		if _, _, err := m.p.cleanSegments(vs); err != nil {
			t.Error(err)
		}
	}
	for _, e := range m.p.Events() {
		if e.Type == "segment-damaged" {
			t.Error(e.Message)
		}
	}
	m.verify()
}
