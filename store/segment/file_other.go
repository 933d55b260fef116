//go:build !linux

package segment

import (
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func allocated(vfs.File, int64) bool { return false }

// osFile is a descriptor of the operating system.
type osFile uintptr

// Pwritev writes the first buffer: the caller goes on with the next.
func (fd osFile) Pwritev(bufs [][]byte, off int64) (int, error) {
	return syscall.Pwrite(int(fd), bufs[0], off)
}

func (fd osFile) Truncate(size int64) error    { return syscall.Ftruncate(int(fd), size) }
func (fd osFile) DropCache() error             { return nil }
func (fd osFile) PunchHole(off, n int64) error { return ErrNoPunch }
