package segment

import (
	"errors"
	"os"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// maxIovecs is the kernel's limit for one call (UIO_MAXIOV).
const maxIovecs = 1024

// newRecordWriter picks the vectored write where the file has a descriptor.
func newRecordWriter(f vfs.File, plain bool) recordWriter {
	if fd := f.Fd(); fd != vfs.InvalidFd && !plain {
		return vectorWriter{int(fd)}
	}
	return plainWriter{f}
}

// vectorWriter writes a record in one system call.
type vectorWriter struct{ fd int }

func (w vectorWriter) sequential() bool { return false }

// write consumes bufs.
func (w vectorWriter) write(bufs [][]byte, off int64) error {
	for len(bufs) > 0 {
		n, err := unix.Pwritev(w.fd, bufs[:min(len(bufs), maxIovecs)], off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("pwritev", err)
		}
		if n == 0 {
			return errShortWrite
		}
		off += int64(n)
		for n > 0 {
			k := min(n, len(bufs[0]))
			bufs[0] = bufs[0][k:]
			n -= k
			if len(bufs[0]) == 0 {
				bufs = bufs[1:]
			}
		}
	}
	return nil
}

func extend(fd uintptr, size int64) error {
	return retryInterrupted(func() error { return unix.Ftruncate(int(fd), size) })
}

// dropCache forgets the clean cached pages of a file, so that it is read from
// the device.
func dropCache(f vfs.File) error {
	if f.Fd() == vfs.InvalidFd {
		return nil
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// punchHole gives back the space of a range.
func punchHole(f vfs.File, off, n int64) error {
	if f.Fd() == vfs.InvalidFd {
		return ErrNoPunch
	}
	err := retryInterrupted(func() error {
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		return ErrNoPunch
	}
	return err
}
