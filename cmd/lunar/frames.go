package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"lunar/lun"
)

// Import and export move a LUN's content over the admin socket as frames, so that
// what is sparse stays sparse. A frame is a kind (1 byte), an offset and a length
// (8 bytes each, big endian), then:
//
//	size   length is the size of the LUN from now on; nothing follows
//	data   length bytes follow, which belong at offset
//	end    offset and length are 0; everything was sent
//	damaged length bytes at offset cannot be read, and are zero here; nothing follows
//	error  length bytes follow: the apiError that ended the sender's work
//
// What no data frame covers is zero. A stream ends with end or error; one that
// ends otherwise was cut off.
type frameKind uint8

const (
	frameSize    frameKind = 1
	frameData    frameKind = 2
	frameEnd     frameKind = 3
	frameError   frameKind = 4
	frameDamaged frameKind = 5
)

const (
	frameHeaderBytes = 17
	// maxFrameData bounds what a receiver has to hold.
	maxFrameData  = 1 << 20
	maxFrameError = 64 << 10
	// zeroUnit is the grain of what is left out as zero: a block of the pool.
	zeroUnit = 4 << 10
)

type frame struct {
	kind   frameKind
	offset int64
	length int64
}

type frameWriter struct {
	w    io.Writer
	head [frameHeaderBytes]byte
}

func (f *frameWriter) header(kind frameKind, offset, length int64) error {
	f.head[0] = byte(kind)
	binary.BigEndian.PutUint64(f.head[1:], uint64(offset))
	binary.BigEndian.PutUint64(f.head[9:], uint64(length))
	_, err := f.w.Write(f.head[:])
	return err
}

func (f *frameWriter) size(n int64) error            { return f.header(frameSize, 0, n) }
func (f *frameWriter) damaged(offset, n int64) error { return f.header(frameDamaged, offset, n) }
func (f *frameWriter) end() error                    { return f.header(frameEnd, 0, 0) }

// data writes what is not zero of p, in frames of at most maxFrameData.
func (f *frameWriter) data(p []byte, offset int64) error {
	for len(p) > 0 {
		skip, n := nextData(p)
		p, offset = p[skip:], offset+int64(skip)
		for n > 0 {
			part := min(n, maxFrameData)
			if err := f.header(frameData, offset, int64(part)); err != nil {
				return err
			}
			if _, err := f.w.Write(p[:part]); err != nil {
				return err
			}
			p, offset, n = p[part:], offset+int64(part), n-part
		}
	}
	return nil
}

func (f *frameWriter) fail(cause error) error {
	body, _ := toAPIError(cause)
	if len(body.Message) > maxFrameError/8 {
		body.Message = body.Message[:maxFrameError/8]
	}
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	if err := f.header(frameError, 0, int64(len(text))); err != nil {
		return err
	}
	_, err = f.w.Write(text)
	return err
}

var zeroBlock [zeroUnit]byte

// nextData finds the first run of blocks in p that are not all zero: it begins
// after skip bytes and has n. A last part that is no whole block counts as one.
func nextData(p []byte) (skip, n int) {
	for skip < len(p) && isZero(p[skip:min(skip+zeroUnit, len(p))]) {
		skip = min(skip+zeroUnit, len(p))
	}
	end := skip
	for end < len(p) && !isZero(p[end:min(end+zeroUnit, len(p))]) {
		end = min(end+zeroUnit, len(p))
	}
	return skip, end - skip
}

// isZero takes at most one block.
func isZero(block []byte) bool { return bytes.Equal(block, zeroBlock[:len(block)]) }

var errCutOff = errors.New("the data broke off before its end")

type frameReader struct {
	r    io.Reader
	size int64 // of the LUN, as the last size frame says
	head [frameHeaderBytes]byte
}

// next reads the header of a frame and checks it; the payload of a data frame is
// the caller's to read. An error frame is returned as its error.
func (f *frameReader) next() (frame, error) {
	if _, err := io.ReadFull(f.r, f.head[:]); err != nil {
		return frame{}, cutOff(err)
	}
	fr := frame{
		kind:   frameKind(f.head[0]),
		offset: int64(binary.BigEndian.Uint64(f.head[1:])),
		length: int64(binary.BigEndian.Uint64(f.head[9:])),
	}
	switch fr.kind {
	case frameSize:
		if fr.length < 0 || fr.length > lun.MaxLUNSize {
			return frame{}, badFrame("size %d", fr.length)
		}
		f.size = fr.length
	case frameData:
		if fr.length <= 0 || fr.length > maxFrameData || fr.offset < 0 || fr.offset > f.size-fr.length {
			return frame{}, badFrame("%d bytes at %d of %d", fr.length, fr.offset, f.size)
		}
	case frameDamaged:
		if fr.length <= 0 || fr.offset < 0 || fr.offset > f.size-fr.length {
			return frame{}, badFrame("%d damaged bytes at %d of %d", fr.length, fr.offset, f.size)
		}
	case frameEnd:
	case frameError:
		return frame{}, f.readError(fr.length)
	default:
		return frame{}, badFrame("kind %d", fr.kind)
	}
	return fr, nil
}

func (f *frameReader) readError(length int64) error {
	if length < 0 || length > maxFrameError {
		return badFrame("error of %d bytes", length)
	}
	text := make([]byte, length)
	if _, err := io.ReadFull(f.r, text); err != nil {
		return cutOff(err)
	}
	var body apiError
	if err := json.Unmarshal(text, &body); err != nil {
		return badFrame("error that is not JSON")
	}
	return &body
}

func (f *frameReader) payload(p []byte) error {
	_, err := io.ReadFull(f.r, p)
	return cutOff(err)
}

func cutOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errCutOff
	}
	return err
}

func badFrame(format string, args ...any) error {
	return lun.Errorf(lun.ErrInvalid, "data stream: a bad frame: %s; are lunar and its server of the same version?", fmt.Sprintf(format, args...))
}
