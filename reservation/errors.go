package reservation

import (
	"fmt"
	"syscall"
)

// sentinel is an error kind that carries the errno which a client may be told.
type sentinel struct {
	text  string
	errno syscall.Errno
}

func (s *sentinel) Error() string { return s.text }
func (s *sentinel) Unwrap() error { return s.errno }

var (
	// ErrNoSpace: a promise does not fit into the pool. Nothing was changed.
	ErrNoSpace error = &sentinel{"no space in the pool", syscall.ENOSPC}
	// ErrInvalid: an amount makes no sense. Nothing was changed.
	ErrInvalid error = &sentinel{"invalid reservation", syscall.EINVAL}
	// ErrUnknown: there is no such account.
	ErrUnknown error = &sentinel{"no such account", syscall.ENOENT}
	// ErrExists: there is such an account already.
	ErrExists error = &sentinel{"the account exists", syscall.EEXIST}
)

// ShortError is the ErrNoSpace of a promise, with how many blocks it lacks.
type ShortError struct {
	cause  error
	Blocks int64
}

func (e *ShortError) Error() string { return e.cause.Error() }
func (e *ShortError) Unwrap() error { return e.cause }

// Human writes an amount of blocks for people: in a unit that it is a whole number of, else in the largest that leaves at least four
// digits, so that sums can be checked by hand.
func Human(blocks int64) string {
	switch {
	case blocks < 0:
		return "-" + Human(-blocks)
	case blocks == 0:
		return "0 B"
	}
	const units = "KMGTPE"
	kib := blocks * (BlockSize / 1024)
	i, unit := 0, int64(1)
	for i < len(units)-1 && (kib >= 10240*unit || kib%(1024*unit) == 0) {
		i, unit = i+1, unit*1024
	}
	if kib%unit == 0 {
		return fmt.Sprintf("%d %ciB", kib/unit, units[i])
	}
	return fmt.Sprintf("%.2f %ciB", float64(kib)/float64(unit), units[i])
}
