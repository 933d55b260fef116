package segment

import (
	"sync"
	"sync/atomic"
)

// slabBytes is the size of the buffers that small writes are copied into;
// a copy of more than slabShare blocks gets a buffer of its own.
const (
	slabBytes = 64 << 10
	slabShare = 4
)

// memory is a buffer that is shared by chunks. It goes back to the pool when
// the last of them is let go.
type memory struct {
	bytes []byte
	refs  atomic.Int32
}

// chunk is a run of blocks of a record that lies in memory, one iovec of its
// write. The record holds one reference until its blocks are in the file;
// readers hold one while they copy.
//
// Chunks are used again, but never freed while in use, so that a reader may
// try to pin one that it found a moment ago:
//   - refs is 0 exactly while the chunk is in the pool; nobody pins it then.
//   - Having pinned it, the reader looks again whether the block's slot still
//     refers to it. A slot is set once and cleared once in the life of a
//     segment object, so if it does, this is the chunk of that block, and
//     base and mem will not change before the reader lets go.
type chunk struct {
	refs atomic.Int32
	base int     // the segment's block at mem[0]
	mem  []byte  // from base on; may be longer than what is used
	n    int     // blocks used; the appender's under Log.mu, then the record writer's
	of   *memory // what mem is a part of
}

var (
	chunkPool  = sync.Pool{New: func() any { return new(chunk) }}
	memoryPool = sync.Pool{New: func() any { return new(memory) }}
)

// newMemory makes memory of a buffer, with one reference.
func newMemory(bytes []byte) *memory {
	m := memoryPool.Get().(*memory)
	m.bytes = bytes
	m.refs.Store(1)
	return m
}

func (m *memory) release(b *Buffers) {
	if m.refs.Add(-1) == 0 {
		b.Put(m.bytes)
		m.bytes = nil
		memoryPool.Put(m)
	}
}

// newChunk makes a chunk of n blocks, with the record's reference.
func newChunk(of *memory, mem []byte, base, n int) *chunk {
	of.refs.Add(1)
	c := chunkPool.Get().(*chunk)
	c.base, c.mem, c.n, c.of = base, mem, n, of
	c.refs.Store(1)
	return c
}

func (c *chunk) release(b *Buffers) {
	if c.refs.Add(-1) == 0 {
		of := c.of
		c.of, c.mem = nil, nil
		chunkPool.Put(c)
		of.release(b)
	}
}

// pin takes a reference unless the chunk is in the pool.
func (c *chunk) pin() bool {
	for {
		n := c.refs.Load()
		if n == 0 {
			return false
		}
		if c.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}
