package nbd

import (
	"context"
	"net/netip"
	"time"
)

// Backend names and opens exports. Its methods may be called by many
// connections at a time.
type Backend interface {
	// Exports lists what this client may see.
	Exports(ctx context.Context, client Client) ([]ExportInfo, error)
	// Open opens an export for one connection; "" asks for the default export.
	// A name that does not exist, or that the client may not see, is
	// ErrUnknownExport (or wraps fs.ErrNotExist); ErrTLSRequired asks for TLS.
	// It is also called, and the Device closed at once, to answer INFO and the
	// options for metadata contexts.
	Open(ctx context.Context, name string, client Client) (Device, error)
}

// ExportInfo is one line of a list of exports.
type ExportInfo struct {
	Name, Description string
}

// Client is one connection.
type Client struct {
	ID         uint64
	Export     string     // "" until an export was opened
	Address    string     // of the peer, as the network prints it
	IP         netip.Addr // of the peer; the zero Addr on unix sockets
	Listener   string     // ListenerOptions.Name
	Since      time.Time
	TLS        bool
	CommonName string // of a client certificate that was verified
}

// Device is one export, opened by one connection. Calls may be concurrent; the
// ranges are within Size and not empty. Errors are mapped by errors.As to a
// syscall.Errno.
type Device interface {
	Size() int64
	ReadOnly() bool
	Description() string

	// Buffer returns a page-aligned buffer of n bytes that WriteOwned may take.
	// A buffer that is not handed over is given to Discard.
	Buffer(n int) []byte
	Discard(p []byte)

	ReadAt(p []byte, off int64) error               // all of p, or an error
	WriteAt(p []byte, off int64, fua bool) error    // copies p
	WriteOwned(p []byte, off int64, fua bool) error // takes p, in every outcome
	// Flush makes durable whatever any connection wrote before.
	Flush() error
	Trim(off, n int64, fua bool) error
	Zero(off, n int64, noHole, fua bool) error
	// Extents reports allocation from off on, in order and without gaps, until n
	// bytes are covered or fn returns false.
	Extents(off, n int64, fn func(off, n int64, hole, zero bool) (more bool)) error
	Close() error
}

// A Device may have more to offer, by implementing any of the following.
type (
	// Namer tells an export's own name, where it was opened by another one.
	Namer interface{ Name() string }

	// FastZeroer says of a range whether Zero is faster than writing it. Without
	// it, FAST_ZERO is not offered.
	FastZeroer interface {
		FastZero(off, n int64) bool
	}

	// Prefetcher gets a range ready to be read. Without it, CACHE reads the range.
	Prefetcher interface {
		Prefetch(off, n int64) error
	}

	// ChangeReporter tells which blocks differ from a snapshot. ChangedContexts
	// lists the snapshots, newest first; each is offered as lunar:changed:NAME and, for tools
	// that know it, as qemu:dirty-bitmap:NAME. Changed reports like Extents.
	ChangeReporter interface {
		ChangedContexts() []string
		Changed(since string, off, n int64, fn func(off, n int64, changed bool) (more bool)) error
	}

	// TryWriter writes without FUA where that need not wait for space or for a turn.
	// Where it must, nothing was written and done is false: the request is then
	// carried out by the other methods, beside whatever its connection sends behind
	// it. An owned p is from Buffer and is taken if done.
	TryWriter interface {
		TryWrite(p []byte, off int64, owned bool) (done bool, err error)
	}

	// Settler keeps what was written so far from going with the process: the
	// operating system has it when Settle returns, durable or not. It is called before
	// writes are answered. What could not be written makes Flush fail for good.
	Settler interface{ Settle() }

	// Throttler limits how fast requests begin; a request that is held back holds
	// back what its connection sent behind it, and nobody else. Admit reports
	// whether a request may begin now, and counts it if so; bytes is 0 where it
	// moves no data. Wait is called for one that may not: it counts it, and returns
	// when it may begin, or when ctx ends.
	Throttler interface {
		Admit(bytes int) bool
		Wait(ctx context.Context, bytes int)
	}
)
