package segment

import (
	"errors"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// fileCategory is how Pebble's disk statistics name our files.
const fileCategory = vfs.DiskWriteCategory("lunar-segment")

// recordWriter writes the blocks of one record, in order and completely.
type recordWriter interface {
	// write consumes bufs. direct asks for what is written to be kept out of the
	// page cache.
	write(bufs [][]byte, off int64, direct bool) error
	close() // gives back what write opened
	// sequential says that a sync must not run beside a write (vfs.File's rule
	// for files that are not reached by their descriptor).
	sequential() bool
}

// descriptor is what we do through a file's descriptor, beyond vfs.File. A file without one may do the same itself, as
// that of a simulation does.
type descriptor interface {
	Pwritev(bufs [][]byte, off int64) (int, error) // may write less
	Truncate(size int64) error
	PunchHole(off, n int64) error // ErrNoPunch where the file system cannot
	DropCache() error             // forgets the clean cached pages, so that the file is read from the device
}

// descriptorOf returns nil if the file has none.
func descriptorOf(f vfs.File) descriptor {
	if fd := f.Fd(); fd != vfs.InvalidFd {
		return osFile(fd)
	}
	d, _ := f.(descriptor)
	return d
}

// bypass is a descriptor that can also write past the page cache.
type bypass interface {
	OpenDirect() (d descriptor, shut func(), err error)
}

// newRecordWriter picks the vectored write where there is one.
func newRecordWriter(f vfs.File, plain bool) recordWriter {
	if d := descriptorOf(f); d != nil && !plain {
		by, _ := d.(bypass)
		return &vectorWriter{d: d, by: by}
	}
	return plainWriter{f}
}

// maxIovecs is the kernel's limit for one call (UIO_MAXIOV).
const maxIovecs = 1024

// vectorWriter writes a record in one system call.
type vectorWriter struct {
	d descriptor

	// For direct writes.
	by     bypass // nil where there are none
	direct descriptor
	shut   func()
}

func (w *vectorWriter) sequential() bool { return false }

func (w *vectorWriter) close() {
	if w.shut != nil {
		w.shut()
	}
	w.by, w.direct, w.shut = nil, nil, nil
}

// write consumes bufs. Where a direct write is asked for and not possible, it is
// an ordinary one.
func (w *vectorWriter) write(bufs [][]byte, off int64, direct bool) error {
	for len(bufs) > 0 {
		d := w.d
		if direct = direct && w.openDirect(); direct {
			d = w.direct
		}
		n, err := d.Pwritev(bufs[:min(len(bufs), maxIovecs)], off)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case direct && (errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP)):
			w.close()
			continue
		case err != nil:
			return err
		case n == 0:
			return errShortWrite
		}
		off += int64(n)
		bufs = skip(bufs, n)
	}
	return nil
}

// skip takes n bytes from the front of bufs.
func skip(bufs [][]byte, n int) [][]byte {
	for n > 0 {
		k := min(n, len(bufs[0]))
		bufs[0] = bufs[0][k:]
		n -= k
		if len(bufs[0]) == 0 {
			bufs = bufs[1:]
		}
	}
	return bufs
}

func (w *vectorWriter) openDirect() bool {
	if w.direct == nil && w.by != nil {
		var err error
		if w.direct, w.shut, err = w.by.OpenDirect(); err != nil {
			w.close()
		}
	}
	return w.direct != nil
}

// plainWriter writes buffer by buffer through the file.
type plainWriter struct{ f vfs.File }

func (w plainWriter) sequential() bool { return true }

func (w plainWriter) close() {}

func (w plainWriter) write(bufs [][]byte, off int64, _ bool) error {
	for _, b := range bufs {
		n, err := w.f.WriteAt(b, off)
		if err != nil {
			return err
		}
		if n != len(b) {
			return errShortWrite
		}
		off += int64(n)
	}
	return nil
}

var errShortWrite = errors.New("short write")

// retryInterrupted repeats a call that a signal interrupted before it did anything.
func retryInterrupted(call func() error) error {
	for {
		err := call()
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// syncData is fdatasync. An interrupted one has reported nothing yet and is
// repeated; any other failure is final, since the kernel reports it once.
//
// An fdatasync of ext4 that is under way while the file system finds an error and
// becomes read-only can report success and lose what was written to preallocated
// blocks: nobody hears that they could not be marked as written. So one is believed only if the
// file system takes writes yet: one of no bytes costs nothing and asks that.
func syncData(f vfs.File) error {
	err := retryInterrupted(f.SyncData)
	if fd := f.Fd(); err == nil && fd != vfs.InvalidFd {
		err = retryInterrupted(func() error { _, err := syscall.Pwrite(int(fd), nil, 0); return err })
	}
	return err
}

// preallocate gives a file its full size, so that writing to it needs no new
// space and its size does not change at each sync.
func preallocate(f vfs.File, size int64) error {
	err := retryInterrupted(func() error { return f.Preallocate(0, size) })
	if errors.Is(err, syscall.ENOSPC) && allocated(f, size) {
		err = nil
	}
	if err != nil && !errors.Is(err, syscall.EOPNOTSUPP) {
		return err
	}
	info, err := f.Stat()
	d := descriptorOf(f)
	if err != nil || info.Size() >= size || d == nil {
		return err
	}
	return retryInterrupted(func() error { return d.Truncate(size) })
}

func dropCache(f vfs.File) error {
	if d := descriptorOf(f); d != nil {
		return d.DropCache()
	}
	return nil
}

// punchHole gives back the space of a range.
func punchHole(f vfs.File, off, n int64) error {
	if d := descriptorOf(f); d != nil {
		return retryInterrupted(func() error { return d.PunchHole(off, n) })
	}
	return ErrNoPunch
}

// syncFolder makes the names in a folder durable.
func syncFolder(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(retryInterrupted(d.Sync), d.Close())
}
