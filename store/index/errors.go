package index

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
)

// sentinel is an error kind that carries the errno which a client may be told.
type sentinel struct {
	text  string
	errno syscall.Errno
}

func (s *sentinel) Error() string { return s.text }
func (s *sentinel) Unwrap() error { return s.errno }

// What Open and reads can say.
var (
	// ErrNewerFormat: the index was written by a newer release.
	ErrNewerFormat error = &sentinel{"index: newer format", syscall.ENOTSUP}
	// ErrCorrupt: a file of the index is damaged, or one is missing.
	ErrCorrupt error = &sentinel{"index: damaged", syscall.EIO}
	// ErrMissing: there is no index, and Options.MustExist or ReadOnly was set.
	ErrMissing error = &sentinel{"index: missing", syscall.ENOENT}
)

// What writes can say.
var (
	// ErrDead: a write or sync of the index failed, so that nobody knows what is durable. Nothing is written any more.
	ErrDead error = &sentinel{"index: writing ended by a failure", syscall.EIO}
	// ErrNoRoom: the file system has no room for this commit. Nothing was changed; the same batch can be made again.
	ErrNoRoom error = &sentinel{"index: no room", syscall.ENOSPC}
	// ErrReadOnly: the index was opened read-only.
	ErrReadOnly error = &sentinel{"index: read-only", syscall.EROFS}
	// ErrClosed: the index was closed, or the batch used up.
	ErrClosed error = &sentinel{"index: closed", syscall.ESHUTDOWN}
)

// openError sorts an error of pebble.Open: an errno of the file system stays what it is, everything else says that the
// files are not what they were when they were written.
func openError(dir string, err error) error {
	if strings.Contains(err.Error(), "unknown format major version") {
		// Pebble has no sentinel for this; a changed text would only make it ErrCorrupt, which stops as well.
		return fmt.Errorf("%w: the tables in %s were written by a newer Pebble than this program has (%v): use the newer lunar",
			ErrNewerFormat, dir, err)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && !errors.Is(err, fs.ErrNotExist) && !pebble.IsCorruptionError(err) {
		return fmt.Errorf("index: cannot open %s: %w", dir, err)
	}
	return fmt.Errorf("%w: %s cannot be opened (%v): run pool repair", ErrCorrupt, dir, err)
}

// readError marks what a read of a damaged table says. A file that is gone was needed.
func readError(err error) error {
	switch {
	case err == nil || errors.Is(err, ErrCorrupt):
		return err
	case pebble.IsCorruptionError(err), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	return fmt.Errorf("index: read: %w", err)
}
