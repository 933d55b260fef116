package segment

import (
	"math/bits"
	"sync"
	"unsafe"
)

const (
	minBufferBits = 12 // 4 KiB
	maxBufferBits = 25 // 32 MiB
	bufferClasses = maxBufferBits - minBufferBits + 1
)

// Buffers is a pool of buffers that begin at a multiple of 4 KiB, in size
// classes of powers of two from 4 KiB to 32 MiB. What it keeps is bounded; what
// is handed out is not: that is the admission's work.
type Buffers struct {
	retainMax int64

	mu       sync.Mutex
	retained int64
	classes  [bufferClasses][]unsafe.Pointer
}

// NewBuffers makes a pool that keeps at most retain bytes of unused buffers.
func NewBuffers(retain int64) *Buffers { return &Buffers{retainMax: retain} }

// classOf is the smallest class that holds n bytes.
func classOf(n int) int {
	if n <= 1<<minBufferBits {
		return 0
	}
	return bits.Len(uint(n-1)) - minBufferBits
}

// Get returns a buffer of n bytes whose content is arbitrary.
func (b *Buffers) Get(n int) []byte {
	class := classOf(n)
	if class >= bufferClasses {
		return alignedBytes(n)[:n]
	}
	size := 1 << (class + minBufferBits)
	b.mu.Lock()
	if k := len(b.classes[class]); k > 0 {
		p := b.classes[class][k-1]
		b.classes[class][k-1] = nil
		b.classes[class] = b.classes[class][:k-1]
		b.retained -= int64(size)
		b.mu.Unlock()
		return unsafe.Slice((*byte)(p), size)[:n]
	}
	b.mu.Unlock()
	return alignedBytes(size)[:n]
}

// Put gives back a buffer that Get returned; it may have been shortened at its
// end. Others, and what exceeds the bound, are left to the garbage collector.
func (b *Buffers) Put(p []byte) {
	size := cap(p)
	if size == 0 {
		return
	}
	class := classOf(size)
	if class >= bufferClasses || size != 1<<(class+minBufferBits) {
		return
	}
	at := unsafe.Pointer(unsafe.SliceData(p[:size]))
	if uintptr(at)%BlockSize != 0 {
		return
	}
	b.mu.Lock()
	if b.retained+int64(size) <= b.retainMax {
		b.retained += int64(size)
		b.classes[class] = append(b.classes[class], at)
	}
	b.mu.Unlock()
}

// alignedBytes allocates size bytes at a multiple of the block size. The
// allocator aligns such sizes by itself; the second attempt is for the day it
// does not.
func alignedBytes(size int) []byte {
	p := make([]byte, size)
	if uintptr(unsafe.Pointer(unsafe.SliceData(p)))%BlockSize == 0 {
		return p
	}
	p = make([]byte, size+BlockSize)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(p))) % BlockSize
	return p[skip : skip+uintptr(size) : skip+uintptr(size)]
}
