package segment

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func sampleHeader() Header {
	return Header{
		Format: Format, PoolID: 0x1122334455667788, Epoch: 3, First: 0x0102, Synced: 0x0101, At: 0x4005, Payload: 4,
		Entries: []Entry{
			{Kind: Data, Version: 7, Block: 0x10, Count: 2, CRCs: []uint32{0xaabbccdd, 0x11223344}},
			{Kind: Trim, Version: 7, Block: 0x20, Count: 1 << 40},
			{Kind: Moved, Version: 8, Block: 0x30, Count: 1, Birth: 0x99, CRCs: []uint32{5}},
			{Kind: Struct, Version: 1, Block: 100, Count: 1, CRCs: []uint32{6}},
			{Kind: Mark},
		},
	}
}

// TestHeaderGolden holds the format: if these bytes change, it is another one.
func TestHeaderGolden(t *testing.T) {
	const want = `
4c534547 0100 0000 8877665544332211 0300000000000000 0201000000000000 0101000000000000 0540000000000000 05000000 04000000 90000000 f37b101f
0102000000000000 0700000000000000 1000000000000000 ddccbbaa 44332211
0300000000000100 0700000000000000 2000000000000000
0501000000000000 0800000000000000 3000000000000000 9900000000000000 05000000
0401000000000000 0100000000000000 6400000000000000 06000000
0600000000000000 0000000000000000 0000000000000000`
	b := bytes.Repeat([]byte{0xff}, BlockSize)
	h := sampleHeader()
	if err := h.Marshal(b); err != nil {
		t.Fatal(err)
	}
	used := headerFixed + 0x90
	got := hex.EncodeToString(b[:used])
	if plain := strings.NewReplacer(" ", "", "\n", "").Replace(want); got != plain {
		t.Fatalf("header is\n%s\nwant\n%s", got, plain)
	}
	if !bytes.Equal(b[used:], make([]byte, BlockSize-used)) {
		t.Fatal("the rest of the header is not zero")
	}
	var back Header
	if err := back.Unmarshal(b); err != nil {
		t.Fatal(err)
	}
	back.crcs = nil
	if !reflect.DeepEqual(back, h) {
		t.Fatalf("read back\n%+v\nwrote\n%+v", back, h)
	}
	if back.Last() != 0x106 || back.Blocks() != 5 {
		t.Fatalf("last %d, blocks %d", back.Last(), back.Blocks())
	}
}

func TestHeaderEveryBitCounts(t *testing.T) {
	b := make([]byte, BlockSize)
	h := sampleHeader()
	if err := h.Marshal(b); err != nil {
		t.Fatal(err)
	}
	var back Header
	for bit := range BlockSize * 8 {
		b[bit/8] ^= 1 << (bit % 8)
		if back.Unmarshal(b) == nil {
			t.Fatalf("a header with bit %d flipped is read", bit)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	if err := back.Unmarshal(make([]byte, BlockSize)); !errors.Is(err, ErrEnd) {
		t.Fatalf("zeros: %v", err)
	}
	if err := back.Unmarshal(b[:100]); !errors.Is(err, ErrHeader) {
		t.Fatalf("100 bytes: %v", err)
	}
}

// TestHeaderRules writes headers with intact checksums that break a rule.
func TestHeaderRules(t *testing.T) {
	for name, spoil := range map[string]func(h *Header, b []byte) (entries, size int){
		"newer format":     func(h *Header, _ []byte) (int, int) { h.Format = 2; return 5, 0x90 },
		"flags":            func(h *Header, _ []byte) (int, int) { h.Flags = 1; return 5, 0x90 },
		"no entries":       func(h *Header, _ []byte) (int, int) { h.Payload = 0; return 0, 0 },
		"too many entries": func(h *Header, _ []byte) (int, int) { return MaxEntries + 1, 0x90 },
		"fewer entries":    func(h *Header, _ []byte) (int, int) { return 4, 0x90 },
		"more entries":     func(h *Header, _ []byte) (int, int) { return 6, 0x90 },
		"size cut":         func(h *Header, _ []byte) (int, int) { return 5, 0x8c },
		"payload":          func(h *Header, _ []byte) (int, int) { h.Payload = 5; return 5, 0x90 },
		"first 0":          func(h *Header, _ []byte) (int, int) { h.First, h.Synced = 0, 0; return 5, 0x90 },
		"synced itself":    func(h *Header, _ []byte) (int, int) { h.Synced = h.First; return 5, 0x90 },
		"location":         func(h *Header, _ []byte) (int, int) { h.At = 1 << 48; return 5, 0x90 },
		"kind":             func(_ *Header, b []byte) (int, int) { b[headerFixed] = 7; return 5, 0x90 },
		"huge count":       func(_ *Header, b []byte) (int, int) { b[headerFixed+7] = 0xff; return 5, 0x90 },
		"struct length":    func(_ *Header, b []byte) (int, int) { b[headerFixed+32+24+36+17] = 0xff; return 5, 0x90 },
	} {
		b := make([]byte, BlockSize)
		h := sampleHeader()
		if err := h.Marshal(b); err != nil {
			t.Fatal(err)
		}
		entries, size := spoil(&h, b)
		h.seal(b, entries, size)
		var back Header
		err := back.Unmarshal(b)
		if err == nil {
			t.Errorf("%s: is read as %+v", name, back)
		}
		if isFormat(err) != (name == "newer format" || name == "flags") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNames(t *testing.T) {
	for _, n := range []uint64{1, 255, 1<<48 - 1} {
		if got, ok := ParseName(Name(n)); !ok || got != n {
			t.Errorf("%s is parsed as %d, %v", Name(n), got, ok)
		}
	}
	if Name(255) != "0000000000ff.seg" {
		t.Errorf("name is %s", Name(255))
	}
	for _, name := range []string{"", "1.seg", "0000000000ff", "0000000000FF.seg", "0000000000ff.seg2", "-000000000ff.seg", "MANIFEST-000001"} {
		if n, ok := ParseName(name); ok {
			t.Errorf("%q is parsed as %d", name, n)
		}
	}
}

func TestBuffers(t *testing.T) {
	b := NewBuffers(1 << 20)
	for _, n := range []int{1, 4096, 4097, 65536, 1 << 20, 32 << 20} {
		p := b.Get(n)
		if len(p) != n || &p[0] != &alignedOf(p)[0] {
			t.Fatalf("%d bytes: got %d, aligned %v", n, len(p), &p[0] == &alignedOf(p)[0])
		}
		b.Put(p)
	}
	first := b.Get(5000)
	b.Put(first[:10])
	if again := b.Get(8000); &again[0] != &first[0] {
		t.Error("a buffer was not used again")
	}
	b.Put(make([]byte, 100)) // none of ours
	b.Put(first[4096:])
	if b.retained > 1<<20 {
		t.Errorf("%d bytes are kept", b.retained)
	}
}
