package segment

import "sync"

// record is one that is being filled or waits to be written. Records are used
// again.
//
// All fields are guarded by Log.mu until the record is closed (Log.cur is
// another one), and belong to the holder of Log.ioMu from then on. The bytes of
// header and chunks are written by appenders after they let Log.mu go: filling
// counts those, and the record's writer waits for it.
type record struct {
	next    *record
	seg     *openSegment
	at      int // the segment's block that the header lies in
	limit   int // most payload blocks
	first   Seq
	entries int
	blocks  int // payload blocks given out
	large   int // of large writes
	bytes   int // bytes of entries given out
	charge  int64
	header  []byte // one block; entries are encoded in place
	chunks  []*chunk
	slab    *memory // what small writes are copied into, with slabUsed blocks given out
	slabUse int
	filling sync.WaitGroup
}

func (r *record) last() Seq { return r.first + Seq(r.entries) - 1 }

// end is the first block of the segment behind the record.
func (r *record) end() int { return r.at + 1 + r.blocks }

// takes says whether an entry of that size and payload still fits.
func (r *record) takes(entryBytes, blocks int) bool {
	return r.bytes+entryBytes <= entryRoom && r.entries < MaxEntries && r.blocks+blocks <= r.limit
}

// place finds memory for the next n payload blocks: a part of own if the log
// was given the buffer, else of a slab. It returns the chunk that the blocks belong to.
// The chunk's n is raised; Log.mu is held.
func (r *record) place(n int, own *memory, ownFrom int, b *Buffers) *chunk {
	at := r.end()
	if own != nil {
		return r.add(newChunk(own, own.bytes[ownFrom*BlockSize:(ownFrom+n)*BlockSize], at, n))
	}
	if n > slabShare {
		m := newMemory(b.Get(n * BlockSize))
		c := r.add(newChunk(m, m.bytes, at, n))
		m.release(b)
		return c
	}
	if r.slab == nil || (r.slabUse+n)*BlockSize > len(r.slab.bytes) {
		r.dropSlab(b)
		r.slab = newMemory(b.Get(min(slabBytes, r.limit*BlockSize)))
	}
	from := r.slabUse
	r.slabUse += n
	if k := len(r.chunks); k > 0 {
		if c := r.chunks[k-1]; c.of == r.slab && c.base+c.n == at {
			c.n += n
			return c
		}
	}
	return r.add(newChunk(r.slab, r.slab.bytes[from*BlockSize:], at, n))
}

func (r *record) add(c *chunk) *chunk {
	r.chunks = append(r.chunks, c)
	return c
}

// dropSlab lets the slab go; its chunks keep it.
func (r *record) dropSlab(b *Buffers) {
	if r.slab != nil {
		r.slab.release(b)
		r.slab, r.slabUse = nil, 0
	}
}
