package segment

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Name is the file name of a segment.
func Name(number uint64) string { return fmt.Sprintf("%012x%s", number, fileExt) }

// ParseName returns the number of a segment's file name.
func ParseName(name string) (number uint64, ok bool) {
	hex, found := strings.CutSuffix(name, fileExt)
	if !found || len(hex) != 12 {
		return 0, false
	}
	number, err := strconv.ParseUint(hex, 16, 64)
	return number, err == nil && Name(number) == name
}

// openSegment is a segment that the log writes to, or has left but not yet synced.
type openSegment struct {
	number uint64
	h      *handle
	out    recordWriter

	// reached is how many blocks from the beginning were written in some life of the file. A sync of what lies below it has only
	// data to write; above it the file system also has to note that the space is in use. Guarded by Log.ioMu.
	reached int

	// pending holds, for each block, the chunk in memory that it lies in until
	// it is in the file. A slot is set before its location is told to anyone,
	// and cleared after the write returned: nil means the file has it.
	pending []atomic.Pointer[chunk]

	// Guarded by Log.mu.
	used    int // blocks given out, headers included
	payload int
	first   Seq
	last    Seq
	sealed  bool // nothing is appended any more

	// syncMu is held by whoever syncs the file. dirty is set after each write
	// and taken back before each sync. broken is the error of a sync: the kernel
	// reports it once, so it is kept for everyone who asks afterwards.
	syncMu sync.Mutex
	dirty  atomic.Bool
	broken error
}

func (s *openSegment) info() SegmentInfo {
	return SegmentInfo{Number: s.number, First: s.first, Last: s.last, Blocks: s.used, PayloadBlocks: s.payload}
}

// pin returns the chunk that a block lies in, pinned, or nil if the file has it.
func (s *openSegment) pin(block int, b *Buffers) *chunk {
	c := s.pending[block].Load()
	if c == nil || !c.pin() {
		return nil // pin fails only after the slot was cleared
	}
	if s.pending[block].Load() == c {
		return c
	}
	c.release(b) // it was written meanwhile, and the chunk may live another life
	return nil
}

// sync makes what was written durable. What is written while it runs may
// or may not be covered; dirty stays set for it.
func (s *openSegment) sync() error {
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	if s.broken == nil && s.dirty.Swap(false) {
		s.broken = syncData(s.h.f)
	}
	return s.broken
}
