package segment

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

const (
	// BlockSize is the unit of location, mapping and checksums.
	BlockSize = 4096
	// Format is the version of the record format that is written.
	Format = 1

	magic       = uint32(0x4745534c) // "LSEG"
	headerFixed = 64                 // bytes of a header before its entries
	entryFixed  = 24                 // bytes of an entry before birth and checksums
	birthBytes  = 8
	crcBytes    = 4
	entryRoom   = BlockSize - headerFixed

	offFormat  = 4
	offFlags   = 6
	offPool    = 8
	offEpoch   = 16
	offFirst   = 24
	offSynced  = 32
	offAt      = 40
	offEntries = 48
	offPayload = 52
	offBytes   = 56
	offCRC     = 60

	// MaxRecordBlocks is the largest payload of a record: one entry whose
	// checksums fill the header.
	MaxRecordBlocks = (entryRoom - entryFixed - birthBytes) / crcBytes
	// MaxEntries is the largest number of entries in a record.
	MaxEntries = entryRoom / entryFixed

	maxCount = 1<<56 - 1
	maxLoc   = 1<<48 - 1
)

// Seq is the sequence number of one entry. Numbers are consecutive; 0 is none.
type Seq uint64

// Loc is a physical block: segment number * blocks per segment + block in the
// segment. 0 is none, since block 0 of a segment is always a header.
type Loc uint64

// Kind says what an entry is. 0 is invalid.
type Kind uint8

// The kinds of entries.
const (
	Data   Kind = 1 // blocks of a version, with payload
	Zero   Kind = 2 // a range that reads as zeros and stays charged; no payload
	Trim   Kind = 3 // a range that reads as zeros and is given back; no payload
	Struct Kind = 4 // a structural change: bytes, padded with zeros to whole blocks
	Moved  Kind = 5 // a copy made by the cleaner: payload, and its birth sequence
	Mark   Kind = 6 // nothing: carries the synced mark of an idle log
)

func (k Kind) String() string {
	switch k {
	case Data:
		return "data"
	case Zero:
		return "zero"
	case Trim:
		return "trim"
	case Struct:
		return "struct"
	case Moved:
		return "moved"
	case Mark:
		return "mark"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// HasPayload says whether entries of this kind own blocks behind the header.
func (k Kind) HasPayload() bool { return k == Data || k == Struct || k == Moved }

// Entry is one change in a record.
type Entry struct {
	Kind    Kind
	Version uint64   // the version it belongs to; free for Struct and Mark
	Block   uint64   // first block; Struct: length of the payload in bytes
	Count   uint64   // blocks, below 1<<56
	Birth   Seq      // Moved only: the sequence the blocks were first written with
	CRCs    []uint32 // one a payload block
}

// castagnoli is CRC32C, which the CPU computes.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC32C of a block.
func Checksum(block []byte) uint32 { return crc32.Checksum(block, castagnoli) }

// PayloadBlocks is how many blocks behind the header belong to the entry.
func (e *Entry) PayloadBlocks() int {
	if e.Kind.HasPayload() {
		return int(e.Count)
	}
	return 0
}

// Size is the number of bytes the entry takes in a header.
func (e *Entry) Size() int {
	n := entryFixed + crcBytes*len(e.CRCs)
	if e.Kind == Moved {
		n += birthBytes
	}
	return n
}

// Validate checks the rules that hold for an entry before it is written and
// after it is read.
func (e *Entry) Validate() error {
	if e.Kind < Data || e.Kind > Mark {
		return fmt.Errorf("%w: unknown kind %d", ErrHeader, e.Kind)
	}
	if e.Count > maxCount {
		return fmt.Errorf("%w: count %d", ErrHeader, e.Count)
	}
	if (e.Kind == Moved) != (e.Birth != 0) {
		return fmt.Errorf("%w: a %s entry with birth %d", ErrHeader, e.Kind, e.Birth)
	}
	if e.Kind.HasPayload() {
		if e.Count == 0 || e.Count > MaxRecordBlocks || len(e.CRCs) != int(e.Count) {
			return fmt.Errorf("%w: a %s entry of %d blocks with %d checksums", ErrHeader, e.Kind, e.Count, len(e.CRCs))
		}
	} else if len(e.CRCs) != 0 {
		return fmt.Errorf("%w: a %s entry with %d checksums", ErrHeader, e.Kind, len(e.CRCs))
	}
	switch e.Kind {
	case Struct:
		if e.Block == 0 || e.Block > e.Count*BlockSize || e.Block <= (e.Count-1)*BlockSize {
			return fmt.Errorf("%w: %d bytes in %d blocks", ErrHeader, e.Block, e.Count)
		}
	case Mark:
		if e.Block != 0 || e.Count != 0 {
			return fmt.Errorf("%w: a mark with a range", ErrHeader)
		}
	default:
		if e.Count == 0 || e.Block > math.MaxUint64-e.Count {
			return fmt.Errorf("%w: a %s entry of %d blocks at %d", ErrHeader, e.Kind, e.Count, e.Block)
		}
	}
	return nil
}

// Marshal writes the entry to the start of b and returns its size. b must have
// room for Size bytes.
func (e *Entry) Marshal(b []byte) int {
	return putEntry(b, e.Kind, e.Version, e.Block, e.Count, e.Birth, e.CRCs)
}

func putEntry(b []byte, kind Kind, version, block, count uint64, birth Seq, crcs []uint32) int {
	binary.LittleEndian.PutUint64(b, uint64(kind)|count<<8)
	binary.LittleEndian.PutUint64(b[8:], version)
	binary.LittleEndian.PutUint64(b[16:], block)
	n := entryFixed
	if kind == Moved {
		binary.LittleEndian.PutUint64(b[n:], uint64(birth))
		n += birthBytes
	}
	for _, c := range crcs {
		binary.LittleEndian.PutUint32(b[n:], c)
		n += crcBytes
	}
	return n
}

// Unmarshal reads an entry from the start of b and returns its size. The
// checksums are appended to crcs, which the entry then refers to. At most
// len(b)/4 of them are read, whatever the count claims.
func (e *Entry) Unmarshal(b []byte, crcs []uint32) (int, []uint32, error) {
	if len(b) < entryFixed {
		return 0, crcs, fmt.Errorf("%w: an entry is cut off", ErrHeader)
	}
	first := binary.LittleEndian.Uint64(b)
	*e = Entry{
		Kind:    Kind(first & 0xff),
		Count:   first >> 8,
		Version: binary.LittleEndian.Uint64(b[8:]),
		Block:   binary.LittleEndian.Uint64(b[16:]),
	}
	n := entryFixed
	if e.Kind == Moved {
		if len(b) < n+birthBytes {
			return 0, crcs, fmt.Errorf("%w: an entry is cut off", ErrHeader)
		}
		e.Birth = Seq(binary.LittleEndian.Uint64(b[n:]))
		n += birthBytes
	}
	if e.Kind.HasPayload() {
		if e.Count > uint64(len(b)-n)/crcBytes {
			return 0, crcs, fmt.Errorf("%w: checksums of %d blocks are cut off", ErrHeader, e.Count)
		}
		from := len(crcs)
		for range e.Count {
			crcs = append(crcs, binary.LittleEndian.Uint32(b[n:]))
			n += crcBytes
		}
		e.CRCs = crcs[from:len(crcs):len(crcs)]
	}
	return n, crcs, e.Validate()
}

// Header is the first block of a record.
type Header struct {
	Format  uint16
	Flags   uint16 // none are defined: 0
	PoolID  uint64
	Epoch   uint64
	First   Seq // of the first entry
	Synced  Seq // all entries up to it were durable when this was written
	At      Loc // where this header lies: a copy elsewhere is no header
	Payload int // blocks behind the header
	Entries []Entry

	crcs []uint32 // the entries' checksums, kept for the next Unmarshal
}

// Last is the sequence number of the record's last entry.
func (h *Header) Last() Seq { return h.First + Seq(len(h.Entries)) - 1 }

// Blocks is the length of the record, header included.
func (h *Header) Blocks() int { return 1 + h.Payload }

// Validate checks the rules that hold before a header is written and after it is read.
func (h *Header) Validate() error {
	if h.Format != Format {
		return fmt.Errorf("%w: format %d, known is %d", ErrFormat, h.Format, Format)
	}
	if h.Flags != 0 {
		return fmt.Errorf("%w: unknown flags %#x", ErrFormat, h.Flags)
	}
	if len(h.Entries) == 0 || len(h.Entries) > MaxEntries {
		return fmt.Errorf("%w: %d entries", ErrHeader, len(h.Entries))
	}
	if h.First == 0 || h.First > math.MaxUint64-MaxEntries || h.Synced >= h.First {
		return fmt.Errorf("%w: first entry %d, synced %d", ErrHeader, h.First, h.Synced)
	}
	if h.At > maxLoc {
		return fmt.Errorf("%w: location %d", ErrHeader, h.At)
	}
	payload, size := 0, 0
	for i := range h.Entries {
		e := &h.Entries[i]
		if err := e.Validate(); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		payload += e.PayloadBlocks()
		size += e.Size()
	}
	if payload != h.Payload || size > entryRoom {
		return fmt.Errorf("%w: entries own %d blocks in %d bytes, payload is %d blocks", ErrHeader, payload, size, h.Payload)
	}
	return nil
}

// Marshal writes the header to b, which must be one block long.
func (h *Header) Marshal(b []byte) error {
	if len(b) != BlockSize {
		return invalid("a header of %d bytes", len(b))
	}
	if err := h.Validate(); err != nil {
		return err
	}
	n := headerFixed
	for i := range h.Entries {
		n += h.Entries[i].Marshal(b[n:])
	}
	h.seal(b, len(h.Entries), n-headerFixed)
	return nil
}

// seal writes the fixed part of a header whose entries are in b already, and its checksum.
func (h *Header) seal(b []byte, entries, entryBytes int) {
	clear(b[headerFixed+entryBytes:])
	binary.LittleEndian.PutUint32(b, magic)
	binary.LittleEndian.PutUint16(b[offFormat:], h.Format)
	binary.LittleEndian.PutUint16(b[offFlags:], h.Flags)
	binary.LittleEndian.PutUint64(b[offPool:], h.PoolID)
	binary.LittleEndian.PutUint64(b[offEpoch:], h.Epoch)
	binary.LittleEndian.PutUint64(b[offFirst:], uint64(h.First))
	binary.LittleEndian.PutUint64(b[offSynced:], uint64(h.Synced))
	binary.LittleEndian.PutUint64(b[offAt:], uint64(h.At))
	binary.LittleEndian.PutUint32(b[offEntries:], uint32(entries))
	binary.LittleEndian.PutUint32(b[offPayload:], uint32(h.Payload))
	binary.LittleEndian.PutUint32(b[offBytes:], uint32(entryBytes))
	binary.LittleEndian.PutUint32(b[offCRC:], 0)
	binary.LittleEndian.PutUint32(b[offCRC:], Checksum(b))
}

// headerCRC is the checksum of a header block, taken with its own field as zero.
func headerCRC(b []byte) uint32 {
	var zero [4]byte
	c := crc32.Update(0, castagnoli, b[:offCRC])
	c = crc32.Update(c, castagnoli, zero[:])
	return crc32.Update(c, castagnoli, b[offCRC+4:BlockSize])
}

var zeroBlock [BlockSize]byte

// Unmarshal reads a header block. ErrEnd is returned for an all-zero block,
// ErrFormat for an intact header of another format, ErrHeader for anything else.
// The memory of the previous call is used again.
func (h *Header) Unmarshal(b []byte) error {
	if len(b) != BlockSize {
		return fmt.Errorf("%w: %d bytes", ErrHeader, len(b))
	}
	if binary.LittleEndian.Uint32(b) != magic {
		if bytes.Equal(b, zeroBlock[:]) {
			return ErrEnd
		}
		return ErrHeader
	}
	if binary.LittleEndian.Uint32(b[offCRC:]) != headerCRC(b) {
		return fmt.Errorf("%w: checksum", ErrHeader)
	}
	h.Format = binary.LittleEndian.Uint16(b[offFormat:])
	h.Flags = binary.LittleEndian.Uint16(b[offFlags:])
	if h.Format != Format {
		return fmt.Errorf("%w: format %d, known is %d", ErrFormat, h.Format, Format)
	}
	h.PoolID = binary.LittleEndian.Uint64(b[offPool:])
	h.Epoch = binary.LittleEndian.Uint64(b[offEpoch:])
	h.First = Seq(binary.LittleEndian.Uint64(b[offFirst:]))
	h.Synced = Seq(binary.LittleEndian.Uint64(b[offSynced:]))
	h.At = Loc(binary.LittleEndian.Uint64(b[offAt:]))
	entries := binary.LittleEndian.Uint32(b[offEntries:])
	payload := binary.LittleEndian.Uint32(b[offPayload:])
	size := binary.LittleEndian.Uint32(b[offBytes:])
	if entries > MaxEntries || payload > BlockSize || size > entryRoom {
		return fmt.Errorf("%w: %d entries of %d bytes, %d blocks", ErrHeader, entries, size, payload)
	}
	h.Payload = int(payload)
	return h.unmarshalEntries(b[headerFixed:], int(entries), int(size))
}

func (h *Header) unmarshalEntries(b []byte, entries, size int) error {
	if h.crcs == nil {
		h.crcs = make([]uint32, 0, entryRoom/crcBytes)
	}
	h.Entries, h.crcs = h.Entries[:0], h.crcs[:0]
	rest := b[:size]
	for i := range entries {
		var e Entry
		n, crcs, err := e.Unmarshal(rest, h.crcs)
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		h.crcs, rest = crcs, rest[n:]
		h.Entries = append(h.Entries, e)
	}
	if len(rest) != 0 || !bytes.Equal(b[size:], zeroBlock[:len(b)-size]) {
		return fmt.Errorf("%w: bytes behind the entries", ErrHeader)
	}
	return h.Validate()
}
