package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"lunar/lun"
)

// importSource is what an import reads: a file whose holes can be found, or a
// stream of unknown length.
type importSource struct {
	name   string
	file   *os.File  // nil for a stream
	stream io.Reader // nil for a file
	size   int64     // of the file
	close  func()
}

var qcow2Magic = []byte("QFI\xfb")

// openImportSource opens FILE, or stdin for "-". A qcow2 image is converted to a
// temporary raw file first.
func openImportSource(ctx context.Context, name string, stdin io.Reader) (*importSource, error) {
	src := &importSource{name: name, close: func() {}}
	if name == "-" {
		src.name = "stdin"
		if f, ok := stdin.(*os.File); ok {
			src.file = f
		} else {
			src.stream = stdin
		}
	} else {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("import: FILE cannot be read: %w", err)
		}
		src.file, src.close = f, func() { f.Close() }
	}
	if err := src.measure(); err != nil {
		src.close()
		return nil, err
	}
	qcow2, err := src.isQcow2(ctx)
	if err == nil && qcow2 {
		return convertQcow2(ctx, src)
	}
	if err != nil {
		src.close()
		return nil, err
	}
	return src, nil
}

// measure finds the size of a file or block device; all else becomes a stream.
func (s *importSource) measure() error {
	if s.file == nil {
		return nil
	}
	info, err := s.file.Stat()
	if err != nil {
		return fmt.Errorf("import: %s: %w", s.name, err)
	}
	mode := info.Mode()
	if mode.IsDir() {
		return fmt.Errorf("import: %s is a folder; name a disk image", s.name)
	}
	device := mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0
	at := int64(0)
	if mode.IsRegular() {
		// A shell may hand over a file that was read from already.
		at, err = s.file.Seek(0, io.SeekCurrent)
	}
	if err != nil || at != 0 || !mode.IsRegular() && !device {
		s.stream, s.file = s.file, nil
		return nil
	}
	if s.size = info.Size(); device {
		if s.size, err = s.file.Seek(0, io.SeekEnd); err != nil {
			return fmt.Errorf("import: size of %s: %w", s.name, err)
		}
	}
	return nil
}

func (s *importSource) isQcow2(ctx context.Context) (bool, error) {
	if s.stream != nil {
		peek := bufio.NewReaderSize(s.stream, 64<<10)
		s.stream = peek
		head, err := await(ctx, func() ([]byte, error) { return peek.Peek(len(qcow2Magic)) })
		if err != nil && !errors.Is(err, io.EOF) {
			return false, fmt.Errorf("import: %s: %w", s.name, err)
		}
		return string(head) == string(qcow2Magic), nil
	}
	var head [4]byte
	n, err := s.file.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("import: %s: %w", s.name, err)
	}
	return string(head[:n]) == string(qcow2Magic), nil
}

// convertQcow2 replaces a qcow2 source by a raw one in a temporary folder.
func convertQcow2(ctx context.Context, src *importSource) (*importSource, error) {
	defer src.close()
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		return nil, fmt.Errorf("import: %s is a qcow2 image, and qemu-img, which reads them, is not installed; install qemu-utils or convert it to raw elsewhere", src.name)
	}
	dir, err := os.MkdirTemp("", "lunar-import-")
	if err != nil {
		return nil, fmt.Errorf("import: no temporary folder for the raw image: %w; set TMPDIR to where there is space", err)
	}
	raw, err := convertInto(ctx, tool, dir, src)
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	info, err := raw.Stat()
	if err != nil {
		raw.Close()
		_ = os.RemoveAll(dir)
		return nil, err
	}
	done := func() {
		raw.Close()
		_ = os.RemoveAll(dir)
	}
	return &importSource{name: src.name, file: raw, size: info.Size(), close: done}, nil
}

func convertInto(ctx context.Context, tool, dir string, src *importSource) (*os.File, error) {
	image := src.name
	if src.stream != nil {
		image = filepath.Join(dir, "image.qcow2")
		if err := spool(image, src.stream); err != nil {
			return nil, fmt.Errorf("import: %s: %w", src.name, err)
		}
	}
	// An absolute path is never taken for an option or for a protocol.
	image, err := filepath.Abs(image)
	if err != nil {
		return nil, err
	}
	if err := refuseForeignFiles(ctx, tool, image, src.name); err != nil {
		return nil, err
	}
	target := filepath.Join(dir, "image.raw")
	if _, err := runTool(ctx, tool, "convert", "-f", "qcow2", "-O", "raw", image, target); err != nil {
		return nil, fmt.Errorf("import: %s: %w", src.name, err)
	}
	return os.Open(target)
}

// refuseForeignFiles refuses an image that takes its content from other files: an
// image from a stranger could name any file that its importer may read.
func refuseForeignFiles(ctx context.Context, tool, image, name string) error {
	out, err := runTool(ctx, tool, "info", "-f", "qcow2", "--output=json", image)
	if err != nil {
		return fmt.Errorf("import: %s: %w", name, err)
	}
	var info struct {
		Backing  string `json:"backing-filename"`
		Specific struct {
			Data struct {
				File string `json:"data-file"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return fmt.Errorf("import: %s: answer of qemu-img info: %w", name, err)
	}
	if other := info.Backing + info.Specific.Data.File; other != "" {
		return fmt.Errorf("import: %s takes content from another file, %s; make it whole first: qemu-img convert -O raw %s FILE", name, other, name)
	}
	return nil
}

func runTool(ctx context.Context, tool string, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, tool, args...).Output()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return nil, errors.New(oneLine(string(exit.Stderr)))
	}
	return out, err
}

func spool(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// lunSizeFor is the size of a LUN that holds n bytes.
func lunSizeFor(n int64) int64 {
	return max((n+lun.SectorSize-1)/lun.SectorSize*lun.SectorSize, lun.MinLUNSize)
}

// sendFile writes what is not a hole and not zero of the file.
func (s *importSource) sendFile(ctx context.Context, out *frameWriter, m *meter) error {
	buf := make([]byte, maxFrameData)
	for off := int64(0); off < s.size; {
		from, to, err := nextExtent(s.file, off, s.size)
		if err != nil {
			return fmt.Errorf("import: %s: %w", s.name, err)
		}
		for off = from; off < to; {
			if err := ctx.Err(); err != nil {
				return err
			}
			p := buf[:min(to-off, int64(len(buf)))]
			if _, err := s.file.ReadAt(p, off); err != nil {
				return fmt.Errorf("import: %s, %d bytes at %d: %w", s.name, len(p), off, err)
			}
			if err := out.data(padded(p), off); err != nil {
				return err
			}
			off += int64(len(p))
			m.set(off, s.size)
		}
	}
	return nil
}

// nextExtent finds the next run of f that may hold data. Where the file system
// knows no holes everything may.
func nextExtent(f *os.File, off, size int64) (from, to int64, err error) {
	from, err = f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case err != nil:
		return off, size, nil
	}
	to, err = f.Seek(from, unix.SEEK_HOLE)
	if err != nil || to <= from {
		to = size
	}
	// Whole blocks of the LUN: what is read beyond the data is zero.
	from -= from % zeroUnit
	to = (to + zeroUnit - 1) / zeroUnit * zeroUnit
	return from, min(to, size), nil
}

// padded fills the last sector up with zeros. p must have room behind it, which
// the buffers of this file have: their size is a multiple of a sector.
func padded(p []byte) []byte {
	n := len(p)
	whole := p[:(n+lun.SectorSize-1)/lun.SectorSize*lun.SectorSize]
	clear(whole[n:])
	return whole
}

// streamChunk is how much of a stream of unknown length is read ahead: the LUN
// grows by as much at a time.
const streamChunk = 32 << 20

// streamReader reads a stream in chunks, the last of which is shorter.
type streamReader struct {
	r    io.Reader
	buf  []byte
	last bool
}

// next reads one chunk. A pipe may be silent for long: when ctx ends, the read is
// left to itself and nothing may be read any more.
func (s *streamReader) next(ctx context.Context) ([]byte, error) {
	n, err := await(ctx, func() (int, error) { return io.ReadFull(s.r, s.buf) })
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		s.last, err = true, nil
	}
	return s.buf[:n], err
}

// await does what may block for ever, unless ctx ends before.
func await[T any](ctx context.Context, fn func() (T, error)) (T, error) {
	type outcome struct {
		v   T
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		v, err := fn()
		done <- outcome{v, err}
	}()
	select {
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	case o := <-done:
		return o.v, o.err
	}
}

// sendStream writes a stream whose first chunk was read already. A size of 0 is
// unknown: the LUN grows with the stream.
func (s *importSource) sendStream(ctx context.Context, in *streamReader, chunk []byte, size int64, out *frameWriter, m *meter) error {
	for off := int64(0); ; {
		end := off + int64(len(chunk))
		if size > 0 && end > size {
			return fmt.Errorf("import: %s has more than the %d bytes of --size; give a larger one", s.name, size)
		}
		if size == 0 {
			if err := out.size(lunSizeFor(end)); err != nil {
				return err
			}
		}
		if err := out.data(padded(chunk), off); err != nil {
			return err
		}
		off = end
		m.set(off, -1)
		if in.last {
			return nil
		}
		var err error
		if chunk, err = in.next(ctx); err != nil {
			return fmt.Errorf("import: %s: %w", s.name, err)
		}
	}
}
