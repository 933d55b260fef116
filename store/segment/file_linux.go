package segment

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// osFile is a descriptor of the operating system.
type osFile uintptr

func (fd osFile) Pwritev(bufs [][]byte, off int64) (int, error) {
	n, err := unix.Pwritev(int(fd), bufs, off)
	return n, os.NewSyscallError("pwritev", err)
}

// OpenDirect opens the file once more, whatever it is called by now.
func (fd osFile) OpenDirect() (descriptor, func(), error) {
	direct, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("open", err)
	}
	return osFile(direct), func() { unix.Close(direct) }, nil // a direct write has reported its error itself
}

func (fd osFile) Truncate(size int64) error { return unix.Ftruncate(int(fd), size) }

func (fd osFile) DropCache() error { return unix.Fadvise(int(fd), 0, 0, unix.FADV_DONTNEED) }

// allocated says whether a file has the space for its full size. On a full xfs an
// fallocate of what is allocated fails: it reserves the whole range once more.
func allocated(f vfs.File, size int64) bool {
	if f.Fd() == vfs.InvalidFd {
		return false
	}
	var st unix.Stat_t
	err := retryInterrupted(func() error { return unix.Fstat(int(f.Fd()), &st) })
	return err == nil && st.Blocks*512 >= size
}

func (fd osFile) PunchHole(off, n int64) error {
	err := unix.Fallocate(int(fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		return ErrNoPunch
	}
	return err
}
