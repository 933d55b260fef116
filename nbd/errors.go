package nbd

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"unicode/utf8"
)

// Errors that a Backend may return from Open, wrapped or not.
var (
	// ErrUnknownExport is the answer for a name that does not exist, and for one
	// that this client may not see: it must not learn the difference.
	ErrUnknownExport = errors.New("no such export")
	// ErrTLSRequired is the answer for an export that is served over TLS only.
	ErrTLSRequired = errors.New("this export is served over TLS only")
)

// Errors of the Server.
var (
	ErrServerClosed  = errors.New("nbd: the server has been shut down")
	ErrUnknownClient = errors.New("nbd: no client has this id")
)

// errno is an error value as it goes over the wire.
type errno uint32

// The error values of the protocol; nothing else is ever sent.
const (
	errNone     errno = 0
	errPerm     errno = 1
	errIO       errno = 5
	errNoMem    errno = 12
	errInval    errno = 22
	errNoSpace  errno = 28
	errOverflow errno = 75
	errNotSup   errno = 95
	errShutdown errno = 108
)

// wireErrno maps an error of a Device. ENOTSUP and EOVERFLOW pass only where the
// protocol has a place for them, which the caller knows; what is not listed is EIO.
func wireErrno(err error) errno {
	var e syscall.Errno
	switch {
	case err == nil:
		return errNone
	case errors.As(err, &e):
		return mapErrno(e)
	case errors.Is(err, fs.ErrPermission):
		return errPerm
	}
	return errIO
}

func mapErrno(e syscall.Errno) errno {
	switch e {
	case syscall.EPERM, syscall.EROFS, syscall.EACCES:
		return errPerm
	case syscall.ENOMEM:
		return errNoMem
	case syscall.EINVAL:
		return errInval
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return errNoSpace
	case syscall.EOVERFLOW:
		return errOverflow
	case syscall.ENOTSUP:
		return errNotSup
	case syscall.ESHUTDOWN:
		return errShutdown
	}
	return errIO
}

// wireText makes a text fit to be sent: a string of the protocol is UTF-8 without
// NUL and at most 4096 bytes, and an error reply must never break that
// (CVE-2020-10761 was an echoed name).
func wireText(s string, limit int) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "?"), "?")
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}

// validName reports whether b may be the name of an export or of a context.
func validName(b []byte) bool {
	return len(b) <= maxStringBytes && utf8.Valid(b) && !strings.ContainsRune(string(b), 0)
}
