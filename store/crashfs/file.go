package crashfs

import (
	"errors"
	"io"
	"os"
	"path"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// file is the content of a file as it is read, as it is durable, and what lies
// between. Guarded by FS.mu.
type file struct {
	live, durable content
	pend          []effect
	diverged      bool // a sync failed: durable and pend do not make live any more
	modified      time.Time
}

func (f *file) do(e effect) {
	e.apply(&f.live)
	f.pend = append(f.pend, e)
	f.modified = time.Now()
}

func (f *file) sync() {
	if !f.diverged {
		f.durable = f.live.share()
	} else {
		for i := range f.pend {
			f.pend[i].apply(&f.durable)
		}
	}
	f.pend = nil
}

// failSync is what Linux does: the pages are clean, and lost if they are not read again in time.
func (f *file) failSync() {
	if len(f.pend) > 0 {
		f.pend, f.diverged = nil, true
	}
}

// dropCache reads from the device what is not waiting to be written.
func (f *file) dropCache() {
	if !f.diverged {
		return
	}
	f.live = f.durable.share()
	for i := range f.pend {
		f.pend[i].apply(&f.live)
	}
	f.diverged = false
}

// handle is an open file or folder.
type handle struct {
	fs    *FS
	f     *file // nil for a folder
	d     *dir
	name  string
	write bool
	pos   int64
}

var _ vfs.File = (*handle)(nil)

func (h *handle) Close() error { return nil }

func (h *handle) Read(b []byte) (int, error) {
	n, err := h.ReadAt(b, h.pos)
	h.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (h *handle) ReadAt(b []byte, off int64) (int, error) {
	if h.f == nil {
		return 0, pathError("read", h.name, syscall.EISDIR)
	}
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	n := h.f.live.read(b, off)
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (h *handle) Write(b []byte) (int, error) {
	n, err := h.WriteAt(b, h.pos)
	h.pos += int64(n)
	return n, err
}

func (h *handle) WriteAt(b []byte, off int64) (int, error) { return h.Pwritev([][]byte{b}, off) }

// Pwritev writes several buffers in one operation.
func (h *handle) Pwritev(bufs [][]byte, off int64) (int, error) {
	if !h.write {
		return 0, pathError("write", h.name, syscall.EBADF)
	}
	size := 0
	for _, b := range bufs {
		size += len(b)
	}
	err := h.fs.begin(OpWrite, h.name, off, int64(size))
	var short *Short
	if err != nil && !errors.As(err, &short) {
		return 0, pathError("write", h.name, err)
	}
	data := make([]byte, 0, size)
	for _, b := range bufs {
		data = append(data, b...)
	}
	if short != nil {
		data = data[:min(short.Bytes, size)]
	}
	h.fs.mu.Lock()
	h.f.do(effect{kind: OpWrite, data: data, off: off})
	h.fs.mu.Unlock()
	if short != nil && short.Err != nil {
		return len(data), pathError("write", h.name, short.Err)
	}
	return len(data), nil
}

// change is an operation on an open file.
func (h *handle) change(e effect, n int64) error {
	if err := h.fs.begin(e.kind, h.name, e.off, n); err != nil {
		return pathError(e.kind.String(), h.name, err)
	}
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	h.f.do(e)
	return nil
}

// Truncate changes the size.
func (h *handle) Truncate(size int64) error { return h.change(effect{kind: OpTruncate, off: size}, 0) }

// PunchHole makes a range zeros and gives its space back.
func (h *handle) PunchHole(off, n int64) error {
	return h.change(effect{kind: OpPunch, off: off, n: n}, n)
}

// DropCache forgets what was read or written and is clean.
func (h *handle) DropCache() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	h.f.dropCache()
	return nil
}

// Preallocate is fallocate that keeps the size: there is nothing to see of it.
func (h *handle) Preallocate(off, n int64) error {
	if err := h.fs.begin(OpPreallocate, h.name, off, n); err != nil {
		return pathError("fallocate", h.name, err)
	}
	return nil
}

func (h *handle) Sync() error {
	kind := OpSync
	if h.d != nil {
		kind = OpSyncDir
	}
	err := h.fs.begin(kind, h.name, 0, 0)
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	switch {
	case err != nil && h.f != nil:
		h.f.failSync()
	case h.f != nil:
		h.f.sync()
	case err == nil:
		h.fs.syncDirLocked(h.d)
	}
	if err != nil {
		return pathError("fsync", h.name, err)
	}
	return nil
}

func (h *handle) SyncData() error { return h.Sync() }

func (h *handle) SyncTo(int64) (fullSync bool, err error) {
	if err := h.fs.begin(OpSyncTo, h.name, 0, 0); err != nil {
		return false, pathError("sync_file_range", h.name, err)
	}
	return false, nil
}

func (h *handle) Prefetch(int64, int64) error { return nil }
func (h *handle) Fd() uintptr                 { return vfs.InvalidFd }

func (h *handle) Stat() (vfs.FileInfo, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.d != nil {
		return statLocked(h.name, h.d), nil
	}
	return statLocked(h.name, h.f), nil
}

type info struct {
	name     string
	size     int64
	modified time.Time
	isDir    bool
}

func statLocked(name string, n node) info {
	if f, ok := n.(*file); ok {
		return info{name: path.Base(name), size: f.live.size, modified: f.modified}
	}
	return info{name: path.Base(name), isDir: true}
}

func (i info) Name() string           { return i.name }
func (i info) Size() int64            { return i.size }
func (i info) ModTime() time.Time     { return i.modified }
func (i info) IsDir() bool            { return i.isDir }
func (i info) Sys() any               { return nil }
func (i info) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }

func (i info) Mode() os.FileMode {
	if i.isDir {
		return os.ModeDir | 0o755
	}
	return 0o644
}
