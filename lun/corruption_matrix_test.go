package lun

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"lunar/store/segment"
)

// damages are the ways in which a disk returns another block than was written:
// what becomes of the block at off, given all of the file, and another block of it.
var damages = []struct {
	name string
	do   func(block, other, stale []byte)
}{
	{"flip", func(block, _, _ []byte) { block[1001] ^= 0x10 }},
	{"zero", func(block, _, _ []byte) { clear(block) }},
	{"swap", func(block, other, _ []byte) { copy(block, other) }}, // another write landed here
	{"stale", func(block, _, stale []byte) { copy(block, stale) }},
}

// segmentBlock reads a block of a segment's file.
func (m *model) segmentBlock(number uint64, block int64) []byte {
	m.t.Helper()
	b := make([]byte, blockSize)
	path := m.fs.PathJoin(m.o.Dir, segmentDir, segment.Name(number))
	m.check(m.fs.Damage(path, block*blockSize, blockSize, func(have []byte) { copy(b, have) }), "read")
	return b
}

func (m *model) setSegmentBlock(number uint64, block int64, to []byte) {
	m.t.Helper()
	path := m.fs.PathJoin(m.o.Dir, segmentDir, segment.Name(number))
	m.check(m.fs.Damage(path, block*blockSize, blockSize, func(have []byte) { copy(have, to) }), "write")
}

// locate says where a block of a LUN lies.
func (m *model) locate(lun string, block int) (number uint64, at int64) {
	m.t.Helper()
	m.volume(lun, func(v *Volume) error {
		var e entries
		err := v.lookup(uint64(block/512), block%512, 1, &e)
		number, at = e.loc[block%512]/m.p.space.blocks, int64(e.loc[block%512]%m.p.space.blocks)
		return err
	})
	return number, at
}

// eio lists the blocks of an export that fail, which must be by EIO; all others
// must hold what the model says.
func (m *model) eio(lun, snap string, want stamps) (bad []int) {
	m.t.Helper()
	v, err := m.p.OpenVolume(lun, snap)
	m.check(err, "open %s@%s", lun, snap)
	defer v.Close()
	b := make([]byte, blockSize)
	for i := range want {
		err := v.ReadAt(b, int64(i)*blockSize)
		switch {
		case err == nil && stampOf(m.t, b) != want[i]:
			m.t.Fatalf("%s@%s block %d holds stamp %d, want %d", lun, snap, i, stampOf(m.t, b), want[i])
		case err != nil && !errors.Is(err, syscall.EIO):
			m.t.Fatalf("%s@%s block %d: %v is not EIO", lun, snap, i, err)
		case err != nil:
			bad = append(bad, i)
		}
	}
	return bad
}

func (m *model) scrub() ScrubReport {
	m.t.Helper()
	rep, err := m.p.Scrub(context.Background(), ScrubOptions{Restart: true}, nil)
	m.check(err, "scrub")
	return rep
}

// layered is a pool with a block 7 that a, a@s, a@s2 and the clone c show, and d
// does not, since it was replaced there.
func layered(t *testing.T) *model {
	m := scripted(t)
	m.put("a", 0, 40)
	m.snap("a", "s")
	m.put("a", 20, 5)
	m.snap("a", "s2")
	m.cloneOf("a", "s", "c")
	m.cloneOf("a", "s", "d")
	m.put("d", 7, 1)
	m.put("a", 30, 2)
	m.checkpoint()
	m.check(m.p.log.Rotate(), "rotate")
	m.checkpoint()
	return m
}

func TestDamagedPayload(t *testing.T) {
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			m := layered(t)
			n, at := m.locate("a", 7)
			on, oat := m.locate("a", 9)
			block, other := m.segmentBlock(n, at), m.segmentBlock(on, oat)
			stale := make([]byte, blockSize)
			fill(stale, 4711)
			d.do(block, other, stale)
			m.setSegmentBlock(n, at, block)
			for _, x := range [][2]string{{"a", ""}, {"a", "s"}, {"a", "s2"}, {"c", ""}} {
				want := m.heads[x[0]]
				if x[1] != "" {
					want = m.snaps[x[0]][x[1]]
				}
				if bad := m.eio(x[0], x[1], want); !slices.Equal(bad, []int{7}) {
					t.Errorf("%s@%s: blocks %v fail, want 7", x[0], x[1], bad)
				}
			}
			if bad := m.eio("d", "", m.heads["d"]); bad != nil {
				t.Errorf("d: blocks %v fail", bad)
			}
			rep := m.scrub()
			if len(rep.Damaged) != 1 || len(rep.Problems) != 1 || rep.OK {
				t.Fatalf("scrub: %+v", rep)
			}
			if g := rep.Damaged[0]; g.Offset != 7*blockSize || g.Length != blockSize || !slices.Equal(g.SeenBy, []string{"a@s", "a@s2", "a", "c"}) {
				t.Errorf("scrub: %+v", g)
			}
			m.consistent() // the maps are right
			for _, l := range []string{"a", "c"} {
				m.put(l, 7, 1)
				m.sync(l)
				if bad := m.eio(l, "", m.heads[l]); bad != nil {
					t.Errorf("%s after the block was overwritten: %v", l, bad)
				}
			}
			if g := m.scrub().Damaged; len(g) != 1 || !slices.Equal(g[0].SeenBy, []string{"a@s", "a@s2"}) {
				t.Errorf("scrub after the heads were healed: %+v", g)
			}
			m.dropSnap("a", "s")
			m.dropSnap("a", "s2")
			m.check(m.p.Reclaim(), "reclaim")
			if rep := m.scrub(); !rep.OK {
				t.Errorf("scrub after the snapshots went: %+v", rep)
			}
			m.verify()
		})
	}
}

// A header that cannot be read takes no block with it, as long as there is an
// index: it is found by a scrub, and the cleaner leaves the segment alone.
func TestDamagedHeader(t *testing.T) {
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			m := layered(t)
			n, _ := m.locate("a", 7)
			var at, next int64 = -1, -1
			for _, h := range m.headers() {
				switch {
				case h.number == n && at < 0 && h.at > 0:
					at = h.at / blockSize
				case h.number != n && next < 0:
					next = int64(h.number)
				}
			}
			if at < 0 || next < 0 {
				t.Fatalf("segment %d has no second header", n)
			}
			block, other := m.segmentBlock(n, at), m.segmentBlock(uint64(next), 0)
			d.do(block, other, m.segmentBlock(n, 0)) // stale: the header of another record
			m.setSegmentBlock(n, at, block)
			m.verify()
			rep := m.scrub()
			if rep.OK || len(rep.Damaged) != 0 || len(rep.Problems) != 1 || !strings.Contains(rep.Problems[0].Where, segment.Name(n)) || !strings.Contains(rep.Problems[0].What, fmt.Sprintf("byte %d ", at*blockSize)) {
				t.Fatalf("scrub: %+v", rep)
			}
			if _, err := m.p.Clean(context.Background()); err != nil {
				t.Errorf("clean: %v", err)
			}
			m.settle()
			m.verify()
			m.cut(0)
		})
	}
}

// The tables of the index hold maps and catalogue. Whatever block of them is
// another one: nothing wrong is ever served, and the repair brings all of it back.
func TestDamagedIndexTables(t *testing.T) {
	base := layered(t)
	for l := range 2 { // maps of more than one block of a table
		lun := fmt.Sprintf("e%d", l)
		base.addLUN(lun)
		for i := range 300 {
			base.put(lun, i*337%modelBlocks, 1)
		}
	}
	base.backUp(2)
	base.put("a", 3, 2)
	base.snap("a", "last")
	base.sync("a")
	base.check(base.p.Checkpoint(), "checkpoint")
	base.check(base.p.index.Flush(), "flush")
	base.check(base.p.Close(), "close")
	base.settle()
	var tables []string
	base.each(indexDir, ".sst", func(path string) { tables = append(tables, path) })
	tried, refused := 0, 0
	for _, path := range tables {
		info, err := base.fs.Stat(path)
		base.check(err, "stat")
		const unit = 256 // such a table is small
		for off := int64(0); off < info.Size(); off += 11 * unit {
			for _, d := range damages {
				m := base.fork(t)
				n := int(min(unit, info.Size()-off))
				changed := false
				m.check(m.fs.Damage(path, 0, int(info.Size()), func(all []byte) {
					before := slices.Clone(all[off : off+int64(n)])
					whole := make([]byte, blockSize)
					copy(whole, before)
					d.do(whole, slices.Repeat(all[:min(n, len(all))], blockSize/n+1), slices.Repeat([]byte{0xa5, 0}, blockSize))
					copy(all[off:off+int64(n)], whole)
					if d.name == "flip" {
						all[off] ^= 0x10
					}
					changed = !slices.Equal(before, all[off:off+int64(n)])
				}), "damage")
				if !changed {
					continue
				}
				tried++
				if !m.servesNothingWrong() {
					refused++
				}
				if tried%10 == 1 { // each takes a while
					_, err := m.repair(RepairOptions{})
					m.check(err, "repair after %s at %d of %s", d.name, off, path)
					m.open()
					m.verify()
					m.p.Abandon()
				}
			}
		}
	}
	t.Logf("%d damages, the pool did not open after %d", tried, refused)
	if tried < 10 {
		t.Errorf("only %d damages were tried", tried)
	}
}

// fork is the same pool, closed, on a file system of its own.
func (m *model) fork(t *testing.T) *model {
	c := *m
	c.t, c.fs = t, m.fs.Fork()
	return &c
}

// servesNothingWrong opens the pool, if it opens, and reads everything: right or EIO.
func (m *model) servesNothingWrong() (opened bool) {
	o := m.o
	o.FS = m.fs
	p, err := Open(context.Background(), o)
	if err != nil {
		return false
	}
	m.p = p
	defer p.Abandon()
	for lun, want := range m.heads {
		if _, err := p.LUN(lun); err != nil {
			m.t.Fatalf("LUN %s is gone without a word: %v", lun, err)
		}
		m.eio(lun, "", want)
		for snap, want := range m.snaps[lun] {
			m.eio(lun, snap, want)
		}
	}
	return true
}

// coldLUNs makes LUNs l0, l1, ... with some blocks each, in segments that the log has left and a checkpoint covers.
func (m *model) coldLUNs(n, blocks int) {
	for i := range n {
		m.addLUN(fmt.Sprintf("l%d", i))
		m.put(fmt.Sprintf("l%d", i), 0, blocks)
	}
	m.checkpoint()
	m.check(m.p.log.Rotate(), "rotate")
	m.checkpoint()
}

// A scrub that is interrupted goes on where it was, over a restart, and finds
// the same as one that is not.
func TestScrubGoesOn(t *testing.T) {
	m := scripted(t)
	m.coldLUNs(60, 10)
	for _, i := range []int{2, 30, 57} {
		m.damageBlock(fmt.Sprintf("l%d", i), 4)
	}
	whole := m.scrub()
	if len(whole.Damaged) != 3 {
		t.Fatalf("scrub: %+v", whole)
	}
	runs := 0
	for restart := true; ; restart = false {
		ctx, cancel := context.WithCancel(context.Background())
		n := 0
		rep, err := m.p.Scrub(ctx, ScrubOptions{Restart: restart}, func(_, _ int64) {
			if n++; n == 40 {
				cancel()
			}
		})
		cancel()
		if runs++; err == nil {
			if !slices.EqualFunc(rep.Damaged, whole.Damaged, func(a, b Damage) bool { return slices.Equal(a.SeenBy, b.SeenBy) && a.Offset == b.Offset }) || rep.Bytes != whole.Bytes {
				t.Errorf("in parts %+v\nat once %+v", rep, whole)
			}
			break
		}
		if !errors.Is(err, context.Canceled) || runs > 10 {
			t.Fatalf("scrub %d: %v", runs, err)
		}
		m.check(m.p.Close(), "close")
		m.settle()
		m.open()
	}
	if runs < 2 {
		t.Error("it was not interrupted")
	}
}
