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
	write(bufs [][]byte, off int64) error
	// sequential says that a sync must not run beside a write (vfs.File's rule
	// for files that are not reached by their descriptor).
	sequential() bool
}

// plainWriter writes buffer by buffer through the file.
type plainWriter struct{ f vfs.File }

func (w plainWriter) sequential() bool { return true }

func (w plainWriter) write(bufs [][]byte, off int64) error {
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
func syncData(f vfs.File) error { return retryInterrupted(f.SyncData) }

// preallocate gives a file its full size, so that writing to it needs no new
// space and its size does not change at each sync.
func preallocate(f vfs.File, size int64) error {
	err := retryInterrupted(func() error { return f.Preallocate(0, size) })
	if err != nil && !errors.Is(err, syscall.EOPNOTSUPP) {
		return err
	}
	info, err := f.Stat()
	if err != nil || info.Size() >= size || f.Fd() == vfs.InvalidFd {
		return err
	}
	return extend(f.Fd(), size)
}

// syncFolder makes the names in a folder durable.
func syncFolder(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(retryInterrupted(d.Sync), d.Close())
}
