package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
)

// FuzzHeader decodes foreign bytes, as they are and with a good checksum: no
// panic, no memory above a bound, and what is accepted encodes to the same bytes.
func FuzzHeader(f *testing.F) {
	b := make([]byte, BlockSize)
	h := sampleHeader()
	if err := h.Marshal(b); err != nil {
		f.Fatal(err)
	}
	f.Add(b[:400], true)
	f.Add(make([]byte, BlockSize), false)
	f.Add(b[:headerFixed], true)
	full := Header{Format: Format, First: 1, Payload: MaxRecordBlocks, Entries: []Entry{{Kind: Moved, Birth: 1, Count: MaxRecordBlocks, CRCs: make([]uint32, MaxRecordBlocks)}}}
	if err := full.Marshal(b); err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.Clone(b), false)
	f.Fuzz(func(t *testing.T, in []byte, repair bool) {
		b := make([]byte, BlockSize)
		copy(b, in)
		if repair {
			binary.LittleEndian.PutUint32(b[offCRC:], headerCRC(b))
		}
		var h Header
		err := h.Unmarshal(b)
		if cap(h.Entries) > 2*MaxEntries || cap(h.crcs) > entryRoom/crcBytes {
			t.Fatalf("%d entries and %d checksums were allocated", cap(h.Entries), cap(h.crcs))
		}
		if err != nil {
			if !isBadHeader(err) && !isFormat(err) {
				t.Fatalf("unknown error %v", err)
			}
			return
		}
		again := bytes.Repeat([]byte{0xee}, BlockSize)
		if err := h.Marshal(again); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%+v encodes to other bytes (%v)", h, err)
		}
	})
}

// fuzzDisk is made once: the disk of the recovery tests, and what is on it.
var fuzzDisk struct {
	once  sync.Once
	files map[uint64][]byte
	all   map[Seq]replayed
}

// FuzzRecover damages a small log at some places, each given by three bytes of
// address and one to be xored, and replays it: nothing that was not written may be
// reported, no entry twice, and none out of order; what was durable is there,
// or an error says what is not.
func FuzzRecover(f *testing.F) {
	f.Add([]byte{0, 0x30, 5, 1}, false, uint8(0))
	f.Add([]byte{0, 0x30, 5, 1, 1, 0x70, 0, 0xff}, true, uint8(1))
	f.Add([]byte{1, 0x50, 20, 9, 0, 0x60, 1, 2}, true, uint8(3))
	f.Fuzz(func(t *testing.T, damage []byte, accept bool, from uint8) {
		d := loadFuzzDisk(t)
		for ; len(damage) >= 4; damage = damage[4:] {
			at := int(damage[0])<<16 | int(damage[1])<<8 | int(damage[2])
			at %= 2 * 16 * BlockSize
			d.files[uint64(1+at/(16*BlockSize))][at%(16*BlockSize)] ^= damage[3]
		}
		all, got, err := recoverAll(d.options(), Seq(from%12), accept)
		last := Seq(0)
		for _, r := range all {
			w, ok := fuzzDisk.all[r.Seq]
			if !ok || r.Seq <= last || r.Kind != w.Kind || r.Loc != w.Loc || r.Block != w.Block || !bytes.Equal(r.Payload, w.Payload) {
				t.Fatalf("replayed %v, written was %v", r, w)
			}
			last = r.Seq
		}
		var corrupt *CorruptError
		switch {
		case errors.As(err, &corrupt):
			if accept || corrupt.From > corrupt.To || corrupt.From < Seq(from%12) {
				t.Fatalf("accept %v: %v", accept, err)
			}
		case err != nil:
			if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
		default:
			checkInfos(t, got)
			if got.Next <= last {
				t.Fatalf("next is %d after %d", got.Next, last)
			}
		}
	})
}

func loadFuzzDisk(t *testing.T) *disk {
	fuzzDisk.once.Do(func() {
		d := newDisk(t)
		fuzzDisk.files, fuzzDisk.all = d.files, map[Seq]replayed{}
		all, _ := mustRecover(t, d.options(), 1)
		for _, r := range all {
			fuzzDisk.all[r.Seq] = r
		}
	})
	d := &disk{t, map[uint64][]byte{}}
	for n, b := range fuzzDisk.files {
		d.files[n] = bytes.Clone(b)
	}
	return d
}
