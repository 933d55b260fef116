package cow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
)

// PageBlocks is how many blocks of 4 KiB one page maps.
const PageBlocks = 512

// Zero is the location of a block that reads as zeroes, is charged, and has no
// bytes in the log. 0 is "no location": a hole.
const Zero uint64 = 1 << 48

// ErrRecord says that the bytes of a page record make no sense.
var ErrRecord = errors.New("page record is malformed")

const (
	recordFormat = 1

	flagFull  = 1 // replaces what is stored; otherwise a delta over it
	flagHints = 2 // carries the list of older versions that show through

	runHole = 0 // the version has nothing here, whatever its ancestors have
	runZero = 1
	runData = 2
)

// Record is what one version holds of one page, decoded. Set says for which
// blocks it has an entry; an entry is a location (0 is a hole that hides what
// ancestors have) and, for data, the CRC32C of the block.
type Record struct {
	Full    bool
	Applied uint64 // newest log sequence that changed it
	Hints   []VersionID
	Set     Bits
	Loc     [PageBlocks]uint64
	CRC     [PageBlocks]uint32
}

// Bits is a set of blocks of a page.
type Bits [PageBlocks / 64]uint64

// Has says whether block i is in the set.
func (b *Bits) Has(i int) bool { return b[i>>6]&(1<<(i&63)) != 0 }

// Add puts block i into the set.
func (b *Bits) Add(i int) { b[i>>6] |= 1 << (i & 63) }

// Remove takes block i out of the set.
func (b *Bits) Remove(i int) { b[i>>6] &^= 1 << (i & 63) }

// Count returns how many blocks are in the set.
func (b *Bits) Count() (n int) {
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// Empty says whether nothing is in the set.
func (b *Bits) Empty() bool { return *b == Bits{} }

// Charged says whether an entry with this location is paid for.
func Charged(loc uint64) bool { return loc != 0 }

// Stored says whether a location is a place in the log.
func Stored(loc uint64) bool { return loc != 0 && loc != Zero }

// DropHoles removes the hole entries, which hide nothing in a version without a
// parent.
func (r *Record) DropHoles() {
	for i := range PageBlocks {
		if r.Set.Has(i) && r.Loc[i] == 0 {
			r.Set.Remove(i)
		}
	}
}

// Append encodes the record behind dst.
//
// Layout: format u8, flags u8, applied uvarint, with flagHints a count and the
// versions in descending order as differences (uvarint each), then runs to the
// end: gap since the last run (uvarint), count*4+kind (uvarint), for data the
// first location (uvarint) and count CRC32C values (4 bytes each, little
// endian). The locations of a data run are consecutive.
func (r *Record) Append(dst []byte) []byte {
	flags := byte(0)
	if r.Full {
		flags |= flagFull
	}
	if r.Full || len(r.Hints) > 0 {
		flags |= flagHints
	}
	dst = append(dst, recordFormat, flags)
	dst = binary.AppendUvarint(dst, r.Applied)
	if flags&flagHints != 0 {
		dst = binary.AppendUvarint(dst, uint64(len(r.Hints)))
		last := VersionID(0)
		for i, h := range r.Hints {
			if i == 0 {
				dst = binary.AppendUvarint(dst, uint64(h))
			} else {
				dst = binary.AppendUvarint(dst, uint64(last-h))
			}
			last = h
		}
	}
	for i, end := 0, 0; i < PageBlocks; {
		if !r.Set.Has(i) {
			i++
			continue
		}
		n := r.run(i)
		dst = r.appendRun(dst, i, n, end)
		i += n
		end = i
	}
	return dst
}

// run returns the length of the run that begins at block i.
func (r *Record) run(i int) int {
	n := 1
	for i+n < PageBlocks && r.Set.Has(i+n) {
		if Stored(r.Loc[i]) {
			if r.Loc[i+n] != r.Loc[i]+uint64(n) {
				break
			}
		} else if r.Loc[i+n] != r.Loc[i] {
			break
		}
		n++
	}
	return n
}

func (r *Record) appendRun(dst []byte, i, n, end int) []byte {
	kind := runData
	switch r.Loc[i] {
	case 0:
		kind = runHole
	case Zero:
		kind = runZero
	}
	dst = binary.AppendUvarint(dst, uint64(i-end))
	dst = binary.AppendUvarint(dst, uint64(n)<<2|uint64(kind))
	if kind == runData {
		dst = binary.AppendUvarint(dst, r.Loc[i])
		for k := i; k < i+n; k++ {
			dst = binary.LittleEndian.AppendUint32(dst, r.CRC[k])
		}
	}
	return dst
}

// Decode replaces r by what b encodes. The hints' memory is reused.
func (r *Record) Decode(b []byte) error {
	r.Hints, r.Set = r.Hints[:0], Bits{}
	if len(b) < 3 || b[0] != recordFormat {
		return fmt.Errorf("%w: no header of format %d", ErrRecord, recordFormat)
	}
	r.Full = b[1]&flagFull != 0
	hints := b[1]&flagHints != 0
	d := decoder{b: b[2:]}
	r.Applied = d.uvarint()
	if hints {
		n := d.uvarint()
		if n > uint64(len(d.b)) {
			return fmt.Errorf("%w: %d hints in %d bytes", ErrRecord, n, len(d.b))
		}
		last := uint64(0)
		for i := uint64(0); i < n; i++ {
			v := d.uvarint()
			if i > 0 {
				if v == 0 || v > last {
					return fmt.Errorf("%w: hints out of order", ErrRecord)
				}
				v = last - v
			}
			r.Hints, last = append(r.Hints, VersionID(v)), v
		}
	}
	for at := 0; len(d.b) > 0 && !d.bad; {
		var err error
		if at, err = r.decodeRun(&d, at); err != nil {
			return err
		}
	}
	if d.bad {
		return fmt.Errorf("%w: cut short", ErrRecord)
	}
	return nil
}

func (r *Record) decodeRun(d *decoder, at int) (int, error) {
	gap, head := d.uvarint(), d.uvarint()
	n, kind := head>>2, int(head&3)
	if d.bad || gap > PageBlocks || n == 0 || n > PageBlocks || at+int(gap)+int(n) > PageBlocks || kind > runData {
		return at, fmt.Errorf("%w: run of %d blocks of kind %d, %d after block %d", ErrRecord, n, kind, gap, at)
	}
	at += int(gap)
	loc := uint64(0)
	switch kind {
	case runZero:
		loc = Zero
	case runData:
		loc = d.uvarint()
		if loc == 0 || loc >= Zero-n || len(d.b) < int(n)*4 {
			return at, fmt.Errorf("%w: data run at location %d", ErrRecord, loc)
		}
	}
	for i := at; i < at+int(n); i++ {
		r.Set.Add(i)
		r.Loc[i], r.CRC[i] = loc, 0
		if kind == runData {
			r.CRC[i] = binary.LittleEndian.Uint32(d.b)
			d.b = d.b[4:]
			loc++
		}
	}
	return at + int(n), nil
}

// Over lays r, the newer one, over older and leaves the result in older. A full
// r replaces it.
func (r *Record) Over(older *Record) {
	if r.Full {
		hints := append(older.Hints[:0], r.Hints...)
		*older = *r
		older.Hints = hints
		return
	}
	older.Applied = max(older.Applied, r.Applied)
	for w, set := range r.Set {
		if set == 0 {
			continue
		}
		for i := w * 64; i < w*64+64; i++ {
			if r.Set.Has(i) {
				older.Set.Add(i)
				older.Loc[i], older.CRC[i] = r.Loc[i], r.CRC[i]
			}
		}
	}
	if len(r.Hints) > 0 {
		older.Hints = unionHints(older.Hints, r.Hints)
	}
}

// unionHints merges two lists, each newest first, into one of its own memory, each
// hint once. Too many hints cost time, too few would lose data: so a union, never a
// replacement. A chain of thousands of versions is joined through here: no sorting.
func unionHints(a, b []VersionID) []VersionID {
	out := make([]VersionID, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0] > b[0]:
			out, a = append(out, a[0]), a[1:]
		case a[0] < b[0]:
			out, b = append(out, b[0]), b[1:]
		default:
			out, a, b = append(out, a[0]), a[1:], b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// Join lays r over the whole record of an older version that is merged with r's,
// keeps the result in r, and returns which entries of the older one stay.
func (r *Record) Join(older *Record) (kept Bits) {
	for w := range older.Set {
		kept[w] = older.Set[w] &^ r.Set[w]
		r.Set[w] |= kept[w]
	}
	for i := range PageBlocks {
		if kept.Has(i) {
			r.Loc[i], r.CRC[i] = older.Loc[i], older.CRC[i]
		}
	}
	r.Hints = unionHints(r.Hints, older.Hints)
	return kept
}

// Hints says which records of a page must be read to see what shows through its
// newest one. What a hinted version had is in the record of the smallest id that
// is not below it: its own, or since a merge that of a newer one, since merges
// move entries only to newer ids and join with all that lies between.
type Hints struct{ ids []VersionID } // descending, not served yet

// HintsOf returns the hints of a record.
func HintsOf(ids []VersionID) Hints { return Hints{ids} }

// Serve says whether the record of version v, with the next older record on the
// path being that of older (0: there is none), serves a hint.
func (h *Hints) Serve(v, older VersionID) bool {
	n := 0
	for n < len(h.ids) && h.ids[n] > older {
		n++
	}
	h.ids = h.ids[n:]
	return n > 0
}

// Next returns the newest version that is hinted and not served, 0 for none.
func (h *Hints) Next() VersionID {
	if len(h.ids) == 0 {
		return 0
	}
	return h.ids[0]
}

// MergeRecords is the associative merge of two encoded records of one version
// and page, newer over older: what store/index calls for its merge operands.
func MergeRecords(newer, older []byte) ([]byte, error) {
	var n, o Record
	if err := n.Decode(newer); err != nil {
		return nil, err
	}
	if n.Full {
		return slices.Clone(newer), nil
	}
	if err := o.Decode(older); err != nil {
		return nil, err
	}
	n.Over(&o)
	return o.Append(nil), nil
}

type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}
