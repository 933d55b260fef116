package segment

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sort"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Read fills p, whole blocks, from the consecutive blocks that begin at loc.
// Blocks that are not in the file yet come from memory. The checksums are the
// caller's to compare, and it is the caller who keeps the segment from being
// released meanwhile.
func (l *Log) Read(p []byte, loc Loc) error {
	number, block := l.Locate(loc)
	n := len(p) / BlockSize
	if len(p)%BlockSize != 0 || loc == 0 || block+n > l.blocks {
		return invalid("a read of %d bytes at block %d of segment %s", len(p), block, Name(number))
	}
	if l.closed.Load() {
		return ErrClosed
	}
	for _, s := range *l.liveSet.Load() {
		if s.number == number {
			return l.readLive(s, p, block, n)
		}
	}
	return l.readFile(number, p, block)
}

// readLive reads from a segment whose blocks may be in memory.
func (l *Log) readLive(s *openSegment, p []byte, block, n int) error {
	for i := 0; i < n; {
		from := i
		c := s.pin(block+i, l.bufs)
		if c == nil {
			for i++; i < n && s.pending[block+i].Load() == nil; i++ {
			}
			if err := l.readOpen(s, p[from*BlockSize:i*BlockSize], block+from); err != nil {
				return err
			}
			continue
		}
		for i++; i < n && s.pending[block+i].Load() == c; i++ {
		}
		copy(p[from*BlockSize:i*BlockSize], c.mem[(block+from-c.base)*BlockSize:])
		c.release(l.bufs)
	}
	return nil
}

// readOpen reads written blocks of an open segment.
func (l *Log) readOpen(s *openSegment, p []byte, block int) error {
	if !s.h.acquire() {
		return l.readFile(s.number, p, block) // it was finished, and its file closed, meanwhile
	}
	err := readFull(s.h.f, p, int64(block)*BlockSize)
	s.h.release()
	return err
}

func (l *Log) readFile(number uint64, p []byte, block int) error {
	h, err := l.handle(number)
	if err != nil {
		return err
	}
	err = readFull(h.f, p, int64(block)*BlockSize)
	h.release()
	return err
}

// handle returns an open file of a sealed segment.
func (l *Log) handle(number uint64) (*handle, error) {
	if h := l.handles.get(number); h != nil {
		return h, nil
	}
	h, err := l.handles.open(number, func() (vfs.File, error) { return l.opts.FS.Open(l.opts.path(number)) })
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRead, err)
	}
	if l.closed.Load() {
		h.release()
		l.handles.close()
		return nil, ErrClosed
	}
	return h, nil
}

func readFull(f vfs.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %d of %d bytes at %d: %w", ErrRead, n, len(p), off, err)
}

// list returns the numbers of the segment files there are, in order.
func list(opts Options) ([]uint64, error) {
	names, err := opts.FS.List(opts.Dir)
	if err != nil {
		if notExist(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("the segment folder: %w", err)
	}
	var numbers []uint64
	for _, name := range names {
		if number, ok := ParseName(name); ok && number > 0 && number <= opts.maxNumber() {
			numbers = append(numbers, number)
		}
	}
	sort.Slice(numbers, func(i, j int) bool { return numbers[i] < numbers[j] })
	return numbers, nil
}

func notExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
