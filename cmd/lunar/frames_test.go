package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"lunar/lun"
)

// drain applies a stream to an image, as both receivers do.
func drain(r io.Reader) (image []byte, payload int64, err error) {
	frames := &frameReader{r: r}
	for {
		fr, err := frames.next()
		if err != nil {
			return image, payload, err
		}
		switch fr.kind {
		case frameEnd:
			return image, payload, nil
		case frameSize:
			image = append(image, make([]byte, fr.length-int64(len(image)))...)
		case frameData:
			if err := frames.payload(image[fr.offset : fr.offset+fr.length]); err != nil {
				return image, payload, err
			}
			payload += fr.length
		}
	}
}

// sparseImage has n bytes with data in some runs of blocks.
func sparseImage(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	image := make([]byte, n)
	for at := 0; at < n; at += zeroUnit {
		if rng.IntN(3) == 0 {
			image[at+rng.IntN(min(zeroUnit, n-at))] = byte(1 + rng.IntN(255))
		}
	}
	return image
}

func TestFramesCarryDataAndLeaveZerosOut(t *testing.T) {
	for seed, n := range []int{1, zeroUnit - 1, zeroUnit, 3*zeroUnit + 5, maxFrameData, 3*maxFrameData + 7*zeroUnit} {
		image := sparseImage(n, uint64(seed))
		var stream bytes.Buffer
		out := &frameWriter{w: &stream}
		must(out.size(int64(n)))
		must(out.data(image, 0))
		must(out.end())
		got, payload, err := drain(&stream)
		if err != nil || !bytes.Equal(got, image) {
			t.Errorf("%d bytes do not come back as they were: %v", n, err)
		}
		var data int64
		for at := 0; at < n; at += zeroUnit {
			if block := image[at:min(at+zeroUnit, n)]; !isZero(block) {
				data += int64(len(block))
			}
		}
		if payload != data {
			t.Errorf("%d bytes: %d were sent, %d are not zero", n, payload, data)
		}
	}
}

func TestFrameReaderRefusesWhatIsNoFrame(t *testing.T) {
	head := func(kind frameKind, offset, length uint64) []byte {
		b := []byte{byte(kind)}
		b = binary.BigEndian.AppendUint64(b, offset)
		return binary.BigEndian.AppendUint64(b, length)
	}
	size := head(frameSize, 0, 8192)
	cases := map[string][]byte{
		"kind 0":               head(0, 0, 0),
		"kind 9":               head(9, 0, 0),
		"size above 64 TiB":    head(frameSize, 0, 1<<46+1),
		"negative size":        head(frameSize, 0, 1<<63),
		"data before size":     head(frameData, 0, 1),
		"no data":              append(bytes.Clone(size), head(frameData, 0, 0)...),
		"too much data":        append(bytes.Clone(size), head(frameData, 0, maxFrameData+1)...),
		"negative length":      append(bytes.Clone(size), head(frameData, 0, 1<<63)...),
		"data behind the end":  append(bytes.Clone(size), head(frameData, 8000, 512)...),
		"offset that wraps":    append(bytes.Clone(size), head(frameData, 1<<63-100, 512)...),
		"negative offset":      append(bytes.Clone(size), head(frameData, 1<<63, 512)...),
		"error without bounds": head(frameError, 0, 1<<40),
		"error without JSON":   append(head(frameError, 0, 1), 'x'),
	}
	for name, stream := range cases {
		if _, _, err := drain(bytes.NewReader(stream)); !errors.Is(err, lun.ErrInvalid) {
			t.Errorf("%s: %v; want a refusal", name, err)
		}
	}
}

// A stream that ends before its end frame is never taken for a whole one.
func TestFramesCutOffAnywhere(t *testing.T) {
	var stream bytes.Buffer
	out := &frameWriter{w: &stream}
	must(out.size(2 * zeroUnit))
	must(out.data(bytes.Repeat([]byte{1}, 2*zeroUnit), 0))
	must(out.end())
	whole := stream.Bytes()
	for n := range whole {
		if n > 40 && n < len(whole)-40 {
			continue
		}
		if _, _, err := drain(bytes.NewReader(whole[:n])); !errors.Is(err, errCutOff) {
			t.Fatalf("cut off after %d of %d bytes: %v", n, len(whole), err)
		}
	}
}

func TestFrameError(t *testing.T) {
	var stream bytes.Buffer
	out := &frameWriter{w: &stream}
	must(out.fail(lun.Errorf(lun.ErrNoSpace, "pool is full; delete something")))
	_, _, err := drain(&stream)
	var body *apiError
	if !errors.As(err, &body) || body.Code != codeNoSpace || body.Message != "pool is full; delete something" {
		t.Errorf("%#v", err)
	}
}

func FuzzFrameReader(f *testing.F) {
	var stream bytes.Buffer
	out := &frameWriter{w: &stream}
	must(out.size(zeroUnit))
	must(out.data([]byte{1, 2, 3}, 7))
	must(out.end())
	f.Add(stream.Bytes())
	f.Fuzz(func(t *testing.T, stream []byte) {
		frames := &frameReader{r: bytes.NewReader(stream)}
		for {
			fr, err := frames.next()
			if err != nil || fr.kind == frameEnd {
				return
			}
			if fr.kind == frameData {
				if fr.offset < 0 || fr.length <= 0 || fr.length > maxFrameData || fr.offset+fr.length > frames.size {
					t.Fatalf("%+v of %d bytes", fr, frames.size)
				}
				if err := frames.payload(make([]byte, fr.length)); err != nil {
					return
				}
			}
		}
	})
}
