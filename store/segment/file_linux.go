package segment

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// osFile is a descriptor of the operating system.
type osFile uintptr

func (fd osFile) Pwritev(bufs [][]byte, off int64) (int, error) {
	n, err := unix.Pwritev(int(fd), bufs, off)
	return n, os.NewSyscallError("pwritev", err)
}

func (fd osFile) Truncate(size int64) error { return unix.Ftruncate(int(fd), size) }

func (fd osFile) DropCache() error { return unix.Fadvise(int(fd), 0, 0, unix.FADV_DONTNEED) }

func (fd osFile) PunchHole(off, n int64) error {
	err := unix.Fallocate(int(fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		return ErrNoPunch
	}
	return err
}
