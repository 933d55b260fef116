package segment

import (
	"errors"
	"fmt"
	"syscall"
)

// sentinel is an error with a name and the errno that a client is to see.
type sentinel struct {
	text  string
	errno syscall.Errno
}

func (s *sentinel) Error() string { return s.text }
func (s *sentinel) Unwrap() error { return s.errno }

// Errors of a log in use.
var (
	// ErrFailed is what every Append and Sync returns after a write or a sync
	// failed. What was not synced may be lost; only reopening tells.
	ErrFailed error = &sentinel{"the log has failed and takes no more writes", syscall.EIO}
	// ErrFull is returned by Admit when its context ended while there was no
	// segment to write to, and at once for an admission that the limit of segments can never take.
	ErrFull error = &sentinel{"no segment is free", syscall.ENOSPC}
	// ErrClosed is returned by everything after Close.
	ErrClosed error = &sentinel{"the log is closed", syscall.ESHUTDOWN}
	// ErrInvalid marks a call that breaks the rules of this package.
	ErrInvalid error = &sentinel{"invalid use of the log", syscall.EINVAL}
	// ErrTooLarge is returned for a structural entry longer than a segment
	// or a record's header can take.
	ErrTooLarge error = &sentinel{"too large for the log", syscall.EINVAL}
	// ErrNoPunch is returned where the file system cannot give back a part of a file.
	ErrNoPunch error = &sentinel{"the file system cannot punch holes", syscall.ENOTSUP}
	// ErrRead is returned for blocks that could not be read from their file.
	ErrRead error = &sentinel{"a segment could not be read", syscall.EIO}
)

// Errors of decoding and recovery.
var (
	// ErrEnd is returned for a header that is all zero: nothing was written here.
	ErrEnd = errors.New("end of the log")
	// ErrHeader is returned for a block that is no header of this format.
	ErrHeader = errors.New("not a record header")
	// ErrFormat is returned for an intact header of a format that this version
	// does not know.
	ErrFormat = errors.New("log format is not known")
	// ErrCorrupt is what a CorruptError is.
	ErrCorrupt error = &sentinel{"the log is damaged", syscall.EIO}
)

// CorruptError says that entries which were acknowledged as durable cannot be
// read any more.
type CorruptError struct {
	Segment  uint64 // where the log could not be followed
	Offset   int64  // in bytes
	From, To Seq    // the entries that are lost, both included
	Why      string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("the log is damaged in segment %s at byte %d (%s): entries %d to %d were durable and are lost; restore the file from a copy, or accept the loss of these entries by a repair",
		Name(e.Segment), e.Offset, e.Why, e.From, e.To)
}

func (e *CorruptError) Unwrap() error { return ErrCorrupt }

// failure is the sticky error of a failed log: ErrFailed, and what caused it.
type failure struct {
	doing string
	cause error
}

func (f *failure) Error() string {
	return fmt.Sprintf("%v (%s: %v); reopen the pool to recover what was durable", ErrFailed, f.doing, f.cause)
}

// Unwrap puts ErrFailed first, so that errors.As finds EIO before the cause's
// own errno: a client must not take a terminal ENOSPC for one that passes.
func (f *failure) Unwrap() []error { return []error{ErrFailed, f.cause} }

// noRoom is ErrFull with the reasons: the context's, and the file system's if it refused.
type noRoom struct {
	context, cause error
}

func (n *noRoom) Error() string {
	if n.cause != nil {
		return fmt.Sprintf("%v: preparing one failed: %v (%v); free space on the file system, or delete snapshots", ErrFull, n.cause, n.context)
	}
	return fmt.Sprintf("%v below the pool's capacity (%v); delete snapshots or LUNs, or raise the capacity", ErrFull, n.context)
}

func (n *noRoom) Unwrap() []error {
	if n.cause != nil {
		return []error{ErrFull, n.cause, n.context}
	}
	return []error{ErrFull, n.context}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}
