package nbd

import (
	"math/bits"
	"sync"
	"unsafe"
)

// Sizes of a connection's own buffers. They come from pools, and an idle
// connection holds none of them.
const (
	inputSize  = 256 << 10
	outputSize = 256 << 10
	pageSize   = 4096
)

var (
	inputs  = sync.Pool{New: func() any { return new([inputSize]byte) }}
	outputs = sync.Pool{New: func() any { return new([outputSize + pageSize]byte) }}
	// frames are buffers for large replies, by the logarithm of their size.
	frames [bits.UintSize]sync.Pool
)

// frame is a reply too large to be collected with others. Its data begins at a
// page boundary, its header just before that.
type frame struct {
	all []byte
	own int // which pool
}

// newFrame returns a frame for n bytes of data behind up to a page of headers.
func newFrame(n int) *frame {
	class := bits.Len(uint(max(n, 1) - 1))
	if f, ok := frames[class].Get().(*frame); ok {
		return f
	}
	raw := make([]byte, 1<<class+2*pageSize)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(raw)))) & (pageSize - 1)
	return &frame{all: raw[skip : skip+1<<class+pageSize], own: class}
}

// data is the part of the frame that begins at a page boundary.
func (f *frame) data(n int) []byte { return f.all[pageSize : pageSize+n] }

// from is the frame's content that ends with n bytes of data and begins with a
// header of h bytes.
func (f *frame) from(h, n int) []byte { return f.all[pageSize-h : pageSize+n] }

func (f *frame) free() { frames[f.own].Put(f) }
