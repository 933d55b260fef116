package cow

import (
	"slices"
	"testing"
)

func dataRecord(v int, blocks ...int) *Record {
	r := &Record{Full: true}
	for _, i := range blocks {
		r.Set.Add(i)
		r.Loc[i], r.CRC[i] = uint64(v*1000+i), uint32(v)
	}
	return r
}

func newPage(head VersionID) *Page {
	p := &Page{}
	p.Reset(head)
	return p
}

func TestPageFillNewestFirst(t *testing.T) {
	p := newPage(9)
	if !p.Empty() {
		t.Fatal("a new page is not empty")
	}
	hole := dataRecord(5, 3)
	hole.Loc[3] = 0
	for _, x := range []struct {
		v     VersionID
		r     *Record
		added bool
	}{{7, dataRecord(7, 1, 2), true}, {5, hole, true}, {4, dataRecord(4, 1, 2, 3), false}, {3, dataRecord(3, 2, 4), true}} {
		if got := p.Fill(x.v, x.r); got != x.added {
			t.Errorf("Fill of %d added: %v, want %v", x.v, got, x.added)
		}
	}
	for i, want := range []Entry{{}, {7001, 7, 7}, {7002, 7, 7}, {0, 5, 5}, {3004, 3, 3}} {
		if got := p.At(i); got != want {
			t.Errorf("block %d is %v, want %v", i, got, want)
		}
	}
	if p.Empty() || p.Dirty || p.Has {
		t.Errorf("empty %v dirty %v has %v", p.Empty(), p.Dirty, p.Has)
	}
}

func TestPageSetAndEncode(t *testing.T) {
	p := newPage(9)
	p.Fill(3, dataRecord(3, 0, 1, 2))
	if old := p.Set(1, 50, 51); old != (Entry{3001, 3, 3}) {
		t.Fatalf("Set gave %v", old)
	}
	p.Set(2, 0, 0) // a tombstone
	p.Applied = 12
	var r Record
	p.Encode(&r)
	want := &Record{Full: true, Applied: 12, Hints: []VersionID{3}}
	want.Set.Add(1)
	want.Set.Add(2)
	want.Loc[1], want.CRC[1] = 50, 51
	if !same(&r, want) || p.Dirty {
		t.Fatalf("first record: %+v", r.Set)
	}
	p.Set(0, 60, 61) // nothing of 3 shows through any more: a delta need not say so
	p.Encode(&r)
	if r.Full || !r.Set.Has(0) || r.Set.Has(1) || len(r.Hints) != 0 {
		t.Fatalf("second record: full %v set %x hints %v", r.Full, r.Set, r.Hints)
	}
	for i := range PageBlocks/4 + 1 {
		p.Set(i, uint64(100+i), 1)
	}
	p.Encode(&r)
	if !r.Full || len(r.Hints) != 0 || !r.Set.Has(PageBlocks/4) {
		t.Fatalf("a big change is full %v with hints %v", r.Full, r.Hints)
	}
	full := 0
	for n := range 2 * maxDeltas {
		p.Set(n, uint64(9000+n), 2)
		p.Encode(&r)
		if r.Full {
			full++
		}
	}
	if full < 1 || full > 3 {
		t.Errorf("%d full records in %d changes", full, 2*maxDeltas)
	}
}

// TestPageAdvance: a new version starts with nothing of its own and sees all.
func TestPageAdvance(t *testing.T) {
	p := newPage(3)
	p.Set(1, 10, 11)
	var r Record
	p.Encode(&r)
	p.Advance(3)
	if !p.Has {
		t.Fatal("advancing to the same version forgot its record")
	}
	p.Advance(4)
	if p.Head != 4 || p.Has || p.Applied != 0 || p.At(1) != (Entry{10, 11, 3}) {
		t.Fatalf("head %d has %v applied %d block %v", p.Head, p.Has, p.Applied, p.At(1))
	}
	p.Set(2, 20, 21)
	p.Encode(&r)
	if !r.Full || r.Set.Has(1) || !r.Set.Has(2) || !slices.Equal(r.Hints, []VersionID{3}) {
		t.Fatalf("the first record of a version: full %v set %x hints %v", r.Full, r.Set, r.Hints)
	}
}

func TestPageAbsorb(t *testing.T) {
	into := func(id VersionID) VersionID {
		if id == 5 || id == 6 {
			return 9
		}
		return id
	}
	p := newPage(9)
	p.Fill(6, dataRecord(6, 1, 2))
	p.Fill(3, dataRecord(3, 4))
	p.Absorb(into)
	if !slices.Equal(p.Absorbed, []VersionID{6}) || p.At(1).Owner != 9 || p.At(2).Owner != 9 || p.At(4).Owner != 3 {
		t.Fatalf("absorbed %v, owners %d %d %d", p.Absorbed, p.At(1).Owner, p.At(2).Owner, p.At(4).Owner)
	}
	p.Set(2, 77, 7)
	var r Record
	p.Encode(&r)
	if !r.Full || !r.Set.Has(1) || r.Loc[1] != 6001 || r.Loc[2] != 77 || !slices.Equal(r.Hints, []VersionID{3}) {
		t.Fatalf("after absorbing: full %v set %x hints %v", r.Full, r.Set, r.Hints)
	}
	// Also if nothing is changed then, the page must be taken before it moves on:
	// else the next version's record would come with the removal of 6.
	idle := newPage(9)
	idle.Fill(6, dataRecord(6, 1))
	idle.Absorb(into)
	if !idle.Dirty || !idle.Has {
		t.Fatal("a page that absorbed is clean")
	}
	// Where two show, the newer one may hide blocks of the older one, which only
	// a merge gives back.
	two := newPage(9)
	two.Fill(6, dataRecord(6, 1))
	two.Fill(5, dataRecord(5, 1, 2))
	two.Absorb(into)
	if len(two.Absorbed) != 0 || two.At(1).Owner != 6 || two.At(2).Owner != 5 {
		t.Fatalf("absorbed %v where two show", two.Absorbed)
	}
	// With a record of its own, what is merged stays: part of it may be garbage.
	q := newPage(9)
	q.Loaded(true, 1)
	q.Fill(9, dataRecord(9, 1))
	q.Fill(6, dataRecord(6, 1, 2))
	q.Absorb(into)
	if len(q.Absorbed) != 0 || q.At(2).Owner != 6 {
		t.Fatalf("absorbed %v beside an own record", q.Absorbed)
	}
	q.Rename(6, 9)
	if q.At(2).Owner != 9 {
		t.Fatalf("owner %d after Rename", q.At(2).Owner)
	}
	q.Reset(4)
	if !q.Empty() || q.Head != 4 || q.Has || len(q.Absorbed) != 0 {
		t.Fatal("Reset leaves something behind")
	}
}

// TestPageMove: moving changes no content and takes nothing from an overwrite.
func TestPageMove(t *testing.T) {
	p := newPage(9)
	p.Fill(9, dataRecord(9, 1))
	p.Loaded(true, 1)
	if p.Move(1, 5, 6) || p.Move(2, 5, 6) || !p.Move(1, 9001, 70) {
		t.Fatal("Move moved the wrong one, or not the right one")
	}
	if p.At(1) != (Entry{70, 9, 9}) || p.Dirty {
		t.Fatalf("moved to %v, dirty %v", p.At(1), p.Dirty)
	}
	p.Touched(1)
	var r Record
	p.Encode(&r)
	if r.Full || !r.Set.Has(1) || r.Loc[1] != 70 || r.CRC[1] != 9 {
		t.Fatalf("a moved block is stored as %x at %d", r.Set, r.Loc[1])
	}
	var own Record
	p.Owns(9, &own)
	p.Owns(8, &own)
	if want := dataRecord(9, 1).Set; own.Set != want {
		t.Fatalf("owns %x", own.Set)
	}
}

// TestPageManyOwners: a page whose blocks were written by more versions than it
// has blocks, over its life, keeps every block's owner right.
func TestPageManyOwners(t *testing.T) {
	p := newPage(1)
	var want [PageBlocks]VersionID
	var r Record
	for v := VersionID(1); v <= 3*PageBlocks; v++ {
		p.Advance(v)
		i := int(v*7) % PageBlocks
		p.Set(i, uint64(v), uint32(v))
		want[i] = v
		p.Encode(&r)
		if !r.Full || r.Loc[i] != uint64(v) {
			t.Fatalf("record of version %d", v)
		}
		for _, h := range r.Hints {
			if h >= v || !slices.Contains(want[:], h) {
				t.Fatalf("version %d hints at %d, which shows nowhere", v, h)
			}
		}
	}
	for i := range PageBlocks {
		if e := p.At(i); e.Owner != want[i] || e.Loc != uint64(want[i]) {
			t.Fatalf("block %d is %v, want owner %d", i, e, want[i])
		}
	}
	if n := len(p.owners); n > 2*PageBlocks {
		t.Errorf("%d owners kept", n)
	}
}
