//go:build !linux

package segment

import (
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func newRecordWriter(f vfs.File, _ bool) recordWriter { return plainWriter{f} }

func extend(fd uintptr, size int64) error { return syscall.Ftruncate(int(fd), size) }

func dropCache(vfs.File) error { return nil }

func punchHole(vfs.File, int64, int64) error { return ErrNoPunch }
