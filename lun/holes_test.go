package lun

import (
	"bytes"
	"slices"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"lunar/store/segment"
)

func TestLongRuns(t *testing.T) {
	set := make([]uint64, 4)
	for _, r := range [][2]int{{0, 1}, {3, 5}, {60, 70}, {100, 102}, {120, 256}} {
		for i := r[0]; i < r[1]; i++ {
			set[i/64] |= 1 << (i % 64)
		}
	}
	for least, want := range map[int][]segment.Run{
		1:   {{From: 0, Blocks: 1}, {From: 3, Blocks: 2}, {From: 60, Blocks: 10}, {From: 100, Blocks: 2}, {From: 120, Blocks: 136}},
		3:   {{From: 60, Blocks: 10}, {From: 120, Blocks: 136}},
		137: nil,
	} {
		if got := longRuns(set, least); !slices.Equal(got, want) {
			t.Errorf("at least %d: %v, want %v", least, got, want)
		}
	}
	if got := longRuns(make([]uint64, 3), 1); got != nil {
		t.Errorf("of none: %v", got)
	}
}

func TestHolesDue(t *testing.T) {
	all := []victim{
		{number: 1, live: 50, blocks: 100},  // cheap to move
		{number: 2, live: 51, blocks: 100},  // due
		{number: 3, live: 99, blocks: 100},  // too little
		{number: 4, live: 80, blocks: 100},  // looked at, and nothing died since
		{number: 5, live: 70, blocks: 100},  // looked at, and much died since
		{number: 6, live: 1, blocks: 1},     // full
		{number: 7, live: 900, blocks: 999}, // due, and gives most
	}
	var got []uint64
	for _, v := range holesDue(all, map[uint64]int64{4: 82, 5: 91}) {
		got = append(got, v.number)
	}
	if want := []uint64{7, 2, 5}; !slices.Equal(got, want) {
		t.Errorf("%v are looked at, want %v", got, want)
	}
}

// spoilt makes a pool with segments of which a quarter lies in runs of eight blocks
// of LUN b between those of LUN a, the last one of a fuller segment aside.
func spoilt(t *testing.T) *model {
	m := scriptedIn(t, 512<<10) // a hole is four blocks there
	m.o.RecordBlocks = 32
	m.reopen()
	m.addLUN("b")
	for i := range 16 {
		m.put("a", i*24, 24)
		m.put("b", i*8, 8)
		m.sync("a")
	}
	m.check(m.p.log.Rotate(), "rotate")
	m.checkpoint()
	return m
}

func (m *model) trim(lun string, at, n int) {
	m.t.Helper()
	m.volume(lun, func(v *Volume) error { return v.Trim(int64(at)*blockSize, int64(n)*blockSize, true) })
	for i := range n {
		m.pend = append(m.pend, delta{lun, at + i, 0})
	}
	m.settle()
}

// Dead runs of segments that are mostly live become holes: nothing is moved, the
// space is the log's again, and content and accounts are as before, also after
// a power cut.
func TestHoles(t *testing.T) {
	m := spoilt(t)
	before := m.p.log.Stats()
	m.trim("b", 0, 128)
	m.backUp(2)
	dead := m.p.Status().DeadBytes
	for range 2 {
		m.check(m.p.idleHoles(), "holes")
	}
	if st := m.p.Status(); st.HoleBytes != 0 || st.PinnedBytes == 0 {
		t.Errorf("%d bytes are holes that the copies of the index name; %d wait for these", st.HoleBytes, st.PinnedBytes)
	}
	m.backUp(2)
	before = m.p.log.Stats()
	m.check(m.p.idleHoles(), "holes")
	st, after := m.p.Status(), m.p.log.Stats()
	if least := int64(12 * 8 * blockSize); st.HoleBytes < least || st.HoleBytes > 16*8*blockSize || st.MovedBytes != 0 || st.DeadBytes != dead-st.HoleBytes {
		t.Errorf("%d bytes are holes, want %d or more; %d were moved; %d are dead, %d before", st.HoleBytes, least, st.MovedBytes, st.DeadBytes, dead)
	}
	if want := before.Limit + int(st.HoleBytes/m.o.SegmentBytes); after.Limit != want || after.Files != before.Files {
		t.Errorf("%d segments of at most %d, want %d of %d", after.Files, after.Limit, before.Files, want)
	}
	m.verify()
	m.cut(0)
	if got := m.p.Status().HoleBytes; got != st.HoleBytes {
		t.Errorf("%d bytes of holes after a power cut, %d before", got, st.HoleBytes)
	}
	m.verify()
}

// Where a copy of the index names what is dead now, it stays: a repair from the
// copy shows no damage. And what a repair from the log alone finds in a hole was not
// there at the end.
func TestHolesAndRepair(t *testing.T) {
	for _, salvage := range []bool{false, true} {
		m := spoilt(t)
		m.backUp(2)
		m.trim("b", 0, 128)
		m.check(m.p.log.Mark(), "mark")
		for range 2 {
			m.check(m.p.idleHoles(), "holes")
		}
		if !salvage { // the copies are from before: with them and the log all is as it was
			m.loseIndex()
			continue
		}
		m.backUp(2)
		m.check(m.p.idleHoles(), "holes")
		if m.p.Status().HoleBytes == 0 {
			t.Fatal("there are no holes")
		}
		trims := m.p.log.Open() // a segment without data, as good as released
		m.p.Abandon()
		for _, dir := range []string{indexDir, backupDir} {
			m.check(m.fs.RemoveAll(m.fs.PathJoin(m.o.Dir, dir)), "remove")
		}
		m.remove(m.fs.PathJoin(m.o.Dir, segmentDir, segment.Name(trims)))
		_, err := m.repair(RepairOptions{Salvage: true})
		m.check(err, "salvage")
		m.open()
		stamps := map[uint64]bool{}
		for _, l := range m.p.LUNs() { // their names are lost
			m.volume(l.Name, func(v *Volume) error {
				b := make([]byte, blockSize)
				for at := int64(0); at+blockSize <= v.Size(); at += blockSize {
					if err := v.ReadAt(b, at); err != nil {
						return err
					}
					stamps[stampOf(t, b)] = true
				}
				return nil
			})
		}
		for i, stamp := range m.heads["a"] {
			if !stamps[stamp] {
				t.Errorf("block %d of LUN a, stamp %d, is nowhere to be read", i, stamp)
			}
		}
	}
}

// On the file system of this machine the space does come back.
func TestHolesOnDisk(t *testing.T) {
	p, err := Open(bg, Options{FS: vfs.Default, Dir: t.TempDir(), Manual: true, SegmentBytes: 4 << 20, Capacity: 1 << 30})
	must(t, err)
	t.Cleanup(p.Abandon)
	var vs []*Volume
	for _, lun := range []string{"a", "b"} {
		newLUNT(t, p, CreateLUN{Name: lun, SizeBytes: 16 << 20})
		vs = append(vs, vol(t, p, lun))
	}
	for i := range int64(16) {
		must(t, vs[0].WriteAt(pat(192, 1), i<<20, false))
		must(t, vs[1].WriteAt(pat(64, 2), i<<18, false))
	}
	must(t, p.log.Rotate())
	must(t, p.Checkpoint())
	must(t, vs[1].Trim(0, 16<<20, true))
	disk := func() (n int64) {
		names, err := p.fs.List(p.path(segmentDir))
		must(t, err)
		for _, name := range names {
			var st syscall.Stat_t
			must(t, syscall.Stat(p.path(segmentDir, name), &st))
			n += st.Blocks * 512
		}
		return n
	}
	before := disk()
	must(t, p.idleHoles())
	if p.holesFail.Load() {
		t.Skip("the file system of the temporary folder cannot make holes")
	}
	made := p.Status().HoleBytes
	if came := before - disk(); made < 2<<20 || came < made*9/10 {
		t.Errorf("%d bytes are holes, and %d came back", made, came)
	}
	b := make([]byte, 192*blockSize)
	for i := range int64(16) {
		must(t, vs[0].ReadAt(b, i<<20))
		if !bytes.Equal(b, pat(192, 1)) {
			t.Errorf("MiB %d is not what was written", i)
		}
	}
	for _, v := range vs {
		v.Close()
	}
	checkT(t, p)
}
