package cow

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
)

// randomRecord makes a record of a few runs of all kinds.
func randomRecord(r *rand.Rand) Record {
	rec := Record{Full: r.IntN(3) == 0, Applied: uint64(r.IntN(1 << 20))}
	if rec.Full || r.IntN(4) == 0 {
		for range r.IntN(6) {
			rec.Hints = append(rec.Hints, VersionID(r.IntN(1000)))
		}
		rec.Hints = sortedHints(rec.Hints)
	}
	for range r.IntN(12) {
		at, n := r.IntN(PageBlocks), 1+r.IntN(40)
		loc := []uint64{0, Zero, 1 + uint64(r.Int64N(1<<40))}[r.IntN(3)]
		for i := at; i < min(at+n, PageBlocks); i++ {
			rec.Set.Add(i)
			rec.Loc[i], rec.CRC[i] = loc, 0
			if Stored(loc) {
				rec.CRC[i] = r.Uint32()
				loc++
			}
		}
	}
	return rec
}

// same compares what records say; entries that are not set say nothing.
func same(a, b *Record) bool {
	if a.Full != b.Full || a.Applied != b.Applied || a.Set != b.Set || !slices.Equal(a.Hints, b.Hints) {
		return false
	}
	for i := range PageBlocks {
		if a.Set.Has(i) && (a.Loc[i] != b.Loc[i] || a.CRC[i] != b.CRC[i]) {
			return false
		}
	}
	return true
}

func TestRecordRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var got Record
	for n := range 5000 {
		want := randomRecord(r)
		b := want.Append(nil)
		if err := got.Decode(b); err != nil {
			t.Fatalf("record %d: %v", n, err)
		}
		if !same(&want, &got) {
			t.Fatalf("record %d changed on its way", n)
		}
		if again := got.Append(nil); !bytes.Equal(again, b) {
			t.Fatalf("record %d: encoded anew as %x, was %x", n, again, b)
		}
		if len(b) > 3 {
			if err := got.Decode(b[:2]); !errors.Is(err, ErrRecord) {
				t.Fatalf("a record of two bytes: %v", err)
			}
		}
	}
}

// TestRecordGolden pins the bytes: a pool written by one lunar is read by the next.
func TestRecordGolden(t *testing.T) {
	full := Record{Full: true, Applied: 300, Hints: []VersionID{9, 7, 2}}
	for i := range 3 {
		full.Set.Add(4 + i)
		full.Loc[4+i], full.CRC[4+i] = uint64(0x4001+i), uint32(0x11111111*(i+1))
	}
	full.Set.Add(7)
	full.Loc[7] = Zero
	full.Set.Add(511)
	delta := Record{Applied: 1}
	delta.Set.Add(0)
	delta.Loc[0], delta.CRC[0] = 1, 0xdeadbeef
	for _, c := range []struct {
		name, want string
		rec        Record
	}{
		{"full", "0103" + "ac02" + "03090205" + "040e" + "818001" + "111111112222222233333333" + "0005" + "f70304", full},
		{"delta", "0100" + "01" + "0006" + "01" + "efbeadde", delta},
		{"nothing", "0103" + "00" + "00", Record{Full: true}},
	} {
		if got := hex.EncodeToString(c.rec.Append(nil)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestRecordMalformed(t *testing.T) {
	for name, h := range map[string]string{
		"empty":                         "",
		"format 2":                      "020001",
		"no applied":                    "0100",
		"applied cut":                   "010080",
		"more hints than bytes":         "01020005",
		"hints ascending":               "0102000205ff01",
		"hint twice":                    "010200020500",
		"gap beyond the page":           "01000081040400",
		"run of no blocks":              "0100000001",
		"run beyond the page":           "010000ff0309",
		"kind 3":                        "0100000007",
		"data at location 0":            "0100000006" + "00" + "00000000",
		"data at Zero":                  "0100000006" + "80808080808040" + "00000000",
		"data at a location that wraps": "010000000a" + "ffffffffffffffffff01" + "0000000000000000",
		"data without checksums":        "010000000a" + "01" + "00000000",
		"run without its length":        "01000000",
		"second run cut short":          "0100000005" + "00",
		"location cut":                  "0100000006" + "ff",
		"count that overflows":          "010000" + "00" + "ffffffffffffffffff01",
		"gap and count too large":       "010000" + "8004" + "05",
	} {
		b, err := hex.DecodeString(h)
		if err != nil {
			t.Fatal(err)
		}
		var r Record
		if err := r.Decode(b); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v, want ErrRecord", name, err)
		}
		if _, err := MergeRecords(b, Record{Full: true}.encoded()); !errors.Is(err, ErrRecord) {
			t.Errorf("%s as the newer of a merge: %v, want ErrRecord", name, err)
		}
		if _, err := MergeRecords(Record{}.encoded(), b); !errors.Is(err, ErrRecord) {
			t.Errorf("%s as the older of a merge: %v, want ErrRecord", name, err)
		}
	}
}

func (r Record) encoded() []byte { return r.Append(nil) }

// TestMergeAssociative: Pebble joins operands in any grouping.
func TestMergeAssociative(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	merge := func(newer, older []byte) []byte {
		out, err := MergeRecords(newer, older)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for n := range 3000 {
		ra, rb, rc := randomRecord(r), randomRecord(r), randomRecord(r)
		a, b, c := ra.Append(nil), rb.Append(nil), rc.Append(nil)
		left, right := merge(merge(a, b), c), merge(a, merge(b, c))
		if !bytes.Equal(left, right) {
			t.Fatalf("%d: (a over b) over c differs from a over (b over c):\na %x\nb %x\nc %x\n%x\n%x", n, a, b, c, left, right)
		}
		var got Record
		if err := got.Decode(left); err != nil {
			t.Fatal(err)
		}
		for i := range PageBlocks { // the newest that has a block wins, down to a full one
			for _, x := range []*Record{&ra, &rb, &rc} {
				if x.Set.Has(i) {
					if !got.Set.Has(i) || got.Loc[i] != x.Loc[i] {
						t.Fatalf("%d: block %d is at %x, want %x", n, i, got.Loc[i], x.Loc[i])
					}
					break
				}
				if x.Full {
					break
				}
			}
		}
	}
}

// TestMergeKeepsHints: a delta must not take away a hint of what it lies over.
func TestMergeKeepsHints(t *testing.T) {
	older := Record{Full: true, Applied: 7, Hints: []VersionID{9, 3}}
	newer := Record{Applied: 4, Hints: []VersionID{5, 3}}
	b, err := MergeRecords(newer.Append(nil), older.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	var got Record
	if err := got.Decode(b); err != nil {
		t.Fatal(err)
	}
	if !got.Full || got.Applied != 7 || !slices.Equal(got.Hints, []VersionID{9, 5, 3}) {
		t.Fatalf("merged to full %v applied %d hints %v", got.Full, got.Applied, got.Hints)
	}
}

func TestDropHoles(t *testing.T) {
	r := Record{Full: true}
	for i, loc := range []uint64{0, Zero, 77} {
		r.Set.Add(i)
		r.Loc[i] = loc
	}
	r.DropHoles()
	if r.Set.Has(0) || !r.Set.Has(1) || !r.Set.Has(2) {
		t.Fatalf("left %x", r.Set)
	}
}

func FuzzRecord(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 3))
	for range 8 {
		f.Add(randomRecord(r).encoded(), randomRecord(r).encoded())
	}
	f.Add([]byte{1, 3, 0, 1, 0, 5}, []byte{1, 0, 0, 0, 5})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var ra, again Record
		if err := ra.Decode(a); err != nil {
			if !errors.Is(err, ErrRecord) {
				t.Fatalf("not ErrRecord: %v", err)
			}
			return
		}
		enc := ra.Append(nil)
		if err := again.Decode(enc); err != nil {
			t.Fatalf("what was decoded from %x is encoded as %x: %v", a, enc, err)
		}
		if !same(&ra, &again) {
			t.Fatalf("%x: decode(encode) is not the same", a)
		}
		if m, err := MergeRecords(a, b); err == nil {
			if err := again.Decode(m); err != nil {
				t.Fatalf("%x over %x gives %x: %v", a, b, m, err)
			}
		}
	})
}

// sortedHints is the order of a record: newest first, each once.
func sortedHints(h []VersionID) []VersionID {
	slices.SortFunc(h, func(x, y VersionID) int { return cmp.Compare(y, x) })
	return slices.Compact(h)
}

// TestUnionHints compares with sorting, and leaves both lists as they were.
func TestUnionHints(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	list := func() (h []VersionID) {
		for range r.IntN(20) {
			h = append(h, VersionID(1+r.IntN(30)))
		}
		return sortedHints(h)
	}
	for range 2000 {
		a, b := list(), list()
		a1, b1 := slices.Clone(a), slices.Clone(b)
		got, want := unionHints(a, b), sortedHints(append(slices.Clone(a), b...))
		if !slices.Equal(got, want) || !slices.Equal(a, a1) || !slices.Equal(b, b1) {
			t.Fatalf("%v and %v make %v, want %v", a1, b1, got, want)
		}
	}
}
