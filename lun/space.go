package lun

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"lunar/store/segment"
)

// space is the use of segments: how many blocks of each are mapped. live is
// the truth in memory; stored is what the index says after the last checkpoint,
// and only that decides when a segment may be used again.
type space struct {
	blocks uint64 // per segment

	mu       sync.Mutex
	segs     map[uint64]*usage
	highest  uint64
	given    atomic.Int64 // blocks of holes, as the durable checkpoint knows them
	released atomic.Int64
	emptied  atomic.Int64 // segments that lost their last block since the last checkpoint began
}

// usage of one segment. A segment is sealed when the log has moved past it; its
// row goes into the index once everything in it is before the replay position.
type usage struct {
	live   atomic.Int64
	stored int64 // guarded by space.mu
	sealed bool
	info   segment.SegmentInfo

	row       bool // the index has a row, which says:
	rowed     int64
	rowSealed bool
	damaged   bool   // the cleaner could not read it
	dead      bool   // the durable checkpoint neither points into it nor replays it
	died      uint64 // nothing is mapped, but a copy of the index may need it: since this commit; 0 otherwise
	holes     holes
}

func newSpace(segmentBytes int64) *space {
	return &space{blocks: uint64(segmentBytes / segment.BlockSize), segs: map[uint64]*usage{}}
}

func (s *space) of(number uint64) *usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ofLocked(number)
}

func (s *space) ofLocked(number uint64) *usage {
	u := s.segs[number]
	if u == nil {
		u = &usage{}
		s.segs[number] = u
		s.highest = max(s.highest, number)
	}
	return u
}

// top is the largest segment number ever used.
func (s *space) top() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.highest
}

// lose takes a block from a segment.
func (s *space) lose(number uint64) {
	if s.of(number).live.Add(-1) == 0 {
		s.emptied.Add(1)
	}
}

func (s *space) segment(loc uint64) uint64 { return loc / s.blocks }

// seal notes that the log has moved past a segment.
func (s *space) seal(info segment.SegmentInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.ofLocked(info.Number)
	u.sealed, u.info = true, info
}

// unused says that nothing is or will be mapped into a segment.
func (s *space) unused(n uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.segs[n]
	return u == nil || u.live.Load() == 0 && u.stored == 0
}

// has says whether a segment is in use.
func (s *space) has(number uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.segs[number] != nil
}

// hasUnreleased says whether there is a sealed segment without live blocks that
// waits for a checkpoint.
func (s *space) hasUnreleased() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.segs {
		if u.sealed && u.live.Load() == 0 && !u.dead && u.died == 0 {
			return true
		}
	}
	return false
}

// takeDead forgets the segments that the durable checkpoint says are dead, and
// returns them.
func (s *space) takeDead() (out []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, u := range s.segs {
		if u.dead && u.live.Load() == 0 {
			out = append(out, n)
			delete(s.segs, n)
		}
	}
	return out
}

// pinned is how many segments wait for newer copies of the index only, with what
// is to become holes in others.
func (s *space) pinned() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	planned := uint64(0)
	for _, u := range s.segs {
		if u.died != 0 {
			n++
		} else if u.holes.since != 0 {
			planned += uint64(u.holes.planned() - u.holes.made)
		}
	}
	return n + int((planned+s.blocks-1)/s.blocks)
}

// totals returns the payload and live blocks of sealed segments and their number.
func (s *space) totals() (payload, live int64, sealed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.segs {
		live += u.live.Load()
		if u.died != 0 {
			continue // nothing that cleaning could give back
		}
		if u.sealed {
			payload += int64(u.info.Blocks) - u.holes.made
			sealed++
		} else {
			payload += u.live.Load()
		}
	}
	return payload, live, sealed
}

// row is a segment in the index: live blocks, first and last sequence, blocks
// in use with and without headers, and whether it is sealed (replay need not
// look at it). 6 x 8 bytes, little endian; FORMAT.md.
type row struct {
	live   int64
	sealed bool
	info   segment.SegmentInfo
}

func (r row) marshal() []byte {
	b := make([]byte, 0, 41)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.live))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.info.First))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.info.Last))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.info.Blocks))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.info.PayloadBlocks))
	if r.sealed {
		return append(b, 1)
	}
	return append(b, 0)
}

func (r *row) unmarshal(number uint64, b []byte) error {
	if len(b) != 41 || b[40] > 1 {
		return Errorf(ErrCorrupt, "index: row of segment %d is malformed", number)
	}
	r.live = int64(binary.LittleEndian.Uint64(b))
	r.info = segment.SegmentInfo{
		Number: number,
		First:  segment.Seq(binary.LittleEndian.Uint64(b[8:])),
		Last:   segment.Seq(binary.LittleEndian.Uint64(b[16:])),
		Blocks: int(binary.LittleEndian.Uint64(b[24:])), PayloadBlocks: int(binary.LittleEndian.Uint64(b[32:])),
	}
	r.sealed = b[40] == 1
	return nil
}

// marshalCounts is a counter row: owned, ref, local (8 bytes each, little endian)
// and the encoded pairs of what the version replaced.
func marshalCounts(c counts, pairs []byte) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, 24+len(pairs)), uint64(c.owned))
	b = binary.LittleEndian.AppendUint64(b, uint64(c.ref))
	b = binary.LittleEndian.AppendUint64(b, uint64(c.local))
	return append(b, pairs...)
}

func unmarshalCounts(b []byte) (c counts, pairs []byte, err error) {
	if len(b) < 24 {
		return counts{}, nil, Errorf(ErrCorrupt, "index: counters are malformed")
	}
	c = counts{int64(binary.LittleEndian.Uint64(b)), int64(binary.LittleEndian.Uint64(b[8:])), int64(binary.LittleEndian.Uint64(b[16:]))}
	return c, b[24:], nil
}
