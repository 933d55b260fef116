package segment

import (
	"errors"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// How many blocks are read at once: where records are small or sought block
// by block, reading ahead saves system calls; where they are large it reads
// payload that nobody looks at.
const (
	readOne  = 1
	readSome = 16
	readMany = 256
)

// blockReader reads single blocks of one file, with a window. Blocks behind
// the end of the file read as zeros.
type blockReader struct {
	f      vfs.File
	buf    []byte
	at, n  int // the window
	blocks int // of a segment
}

// block returns block i, valid until the next call; ahead is how many blocks
// to read at least if it is not in the window.
func (r *blockReader) block(i, ahead int) ([]byte, error) {
	if i < r.at || i >= r.at+r.n {
		if err := r.fill(i, min(ahead, r.blocks-i)); err != nil {
			// One bad sector is not to hide the blocks around it.
			if err := r.fill(i, 1); err != nil {
				r.n = 0
				return nil, err
			}
		}
	}
	return r.buf[(i-r.at)*BlockSize : (i-r.at+1)*BlockSize], nil
}

func (r *blockReader) fill(i, n int) error {
	if cap(r.buf) < n*BlockSize {
		r.buf = alignedBytes(n * BlockSize)
	}
	r.buf = r.buf[:n*BlockSize]
	got, err := r.f.ReadAt(r.buf, int64(i)*BlockSize)
	if err != nil && !errors.Is(err, io.EOF) {
		r.n = 0
		return err
	}
	clear(r.buf[got:])
	r.at, r.n = i, n
	return nil
}

// header reads the header at block i. ours says that it is one of the given
// pool, at its right place; err is why it is none at all.
func (r *blockReader) header(h *Header, opts *Options, number uint64, i, ahead int) (ours bool, err error) {
	b, err := r.block(i, ahead)
	if err != nil {
		return false, err
	}
	if err := h.Unmarshal(b); err != nil {
		return false, err
	}
	return h.PoolID == opts.PoolID && h.At == opts.loc(number, i), nil
}

func aheadOf(h *Header) int {
	if h.Payload >= readSome {
		return readOne
	}
	return readSome
}

// isBadHeader says whether a block was read and found to be no header, as
// opposed to one that could not be read, or understood.
func isBadHeader(err error) bool { return errors.Is(err, ErrEnd) || errors.Is(err, ErrHeader) }

func isFormat(err error) bool { return errors.Is(err, ErrFormat) }
