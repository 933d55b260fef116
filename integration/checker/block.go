// Package checker is the oracle of the crash tests. A model keeps, for each block of a LUN, every version that was
// written since the last check, when it was issued and when it was acknowledged; after a crash it says of what the
// server serves: what MUST be there is, the rest is a version that MAY be, and nothing is torn, foreign or out of order.
package checker

import (
	"encoding/binary"
	"fmt"
)

// BlockSize is the unit that must never be torn.
const BlockSize = 4096

const stampMagic = 0x4c554e4152424c4b // "LUNARBLK"

// Stamp fills a block so that it tells which block, generation and connection it was written for, and so that no mix
// of two versions passes for either.
func Stamp(p []byte, block, gen uint64, conn uint32) {
	binary.LittleEndian.PutUint64(p[0:], stampMagic)
	binary.LittleEndian.PutUint64(p[8:], block)
	binary.LittleEndian.PutUint64(p[16:], gen)
	binary.LittleEndian.PutUint64(p[24:], uint64(conn))
	x := (block+1)*0x9e3779b97f4a7c15 ^ (gen+1)*0xbf58476d1ce4e5b9
	for i := 32; i < BlockSize; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p[i:], x)
	}
}

// read is what a block on disk says about itself.
type read struct {
	zero bool
	gen  uint64
	conn uint32
}

// decode tells which version a block holds, or how it is broken.
func decode(p []byte, block uint64) (read, error) {
	if isZero(p) {
		return read{zero: true}, nil
	}
	if magic := binary.LittleEndian.Uint64(p); magic != stampMagic {
		return read{}, fmt.Errorf("block %d: torn or garbage, begins with % x", block, p[:16])
	}
	if at := binary.LittleEndian.Uint64(p[8:]); at != block {
		return read{}, fmt.Errorf("block %d: holds block %d (misplaced)", block, at)
	}
	r := read{gen: binary.LittleEndian.Uint64(p[16:]), conn: uint32(binary.LittleEndian.Uint64(p[24:]))}
	var want [BlockSize]byte
	Stamp(want[:], block, r.gen, r.conn)
	for i := range want {
		if want[i] != p[i] {
			return r, fmt.Errorf("block %d: torn: stamped generation %d of connection %d, differs from byte %d on", block, r.gen, r.conn, i)
		}
	}
	return r, nil
}

func isZero(p []byte) bool {
	for i := 0; i < len(p); i += 8 {
		if binary.LittleEndian.Uint64(p[i:]) != 0 {
			return false
		}
	}
	return true
}

// Generation reads which version one block holds; 0 is zeroes.
func Generation(r Reader, block uint64) (uint64, error) {
	p := make([]byte, BlockSize)
	if err := r.Read(p, int64(block)*BlockSize); err != nil {
		return 0, err
	}
	is, err := decode(p, block)
	return is.gen, err
}
