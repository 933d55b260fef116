package lun

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The kinds of refusal. Each wraps the errno that the NBD side answers with, so
// that errors.As(err, *syscall.Errno) crosses from lun to nbd without an import.
// Errors of this package carry one of them and a message that is complete by
// itself: what, why, what to do.
var (
	// When naming things.
	ErrNotFound error = &kind{"not found", syscall.ENOENT}
	ErrExists   error = &kind{"exists already", syscall.EEXIST}
	ErrInvalid  error = &kind{"invalid", syscall.EINVAL}
	// When the state of a LUN or of the pool forbids it.
	ErrBusy     error = &kind{"clients are attached", syscall.EBUSY}
	ErrRefused  error = &kind{"refused", syscall.EPERM}
	ErrNoSpace  error = &kind{"no space", syscall.ENOSPC}
	ErrReadOnly error = &kind{"read-only", syscall.EPERM}
	ErrCorrupt  error = &kind{"corrupt", syscall.EIO}
	// When opening a pool.
	ErrNotPool error = &kind{"not a pool", syscall.ENOTEMPTY}
	ErrLocked  error = &kind{"locked by another server", syscall.EBUSY}
)

type kind struct {
	text  string
	errno syscall.Errno
}

func (k *kind) Error() string { return k.text }
func (k *kind) Unwrap() error { return k.errno }

// Errorf makes an error of the given kind whose text is the formatted message
// alone. %w in the format keeps its cause reachable too; an errno in the cause
// goes before that of the kind.
func Errorf(kind error, format string, args ...any) error {
	return &apiError{cause: fmt.Errorf(format, args...), kind: kind}
}

type apiError struct{ cause, kind error }

func (e *apiError) Error() string   { return e.cause.Error() }
func (e *apiError) Unwrap() []error { return []error{e.cause, e.kind} }

// CreateLUN asks for a new LUN. A nil Reserve or Limit, an empty OnFull mean the
// pool's defaults.
type CreateLUN struct {
	Name        string  `json:"name"`
	SizeBytes   int64   `json:"size_bytes"`
	Thick       bool    `json:"thick"`
	Reserve     *Amount `json:"reserve,omitempty"`
	Limit       *Amount `json:"limit,omitempty"`
	OnFull      string  `json:"on_full,omitempty"`
	Description string  `json:"description,omitempty"`
	ReadOnly    bool    `json:"read_only,omitempty"`
	Allow       Allow   `json:"allow,omitempty"`
	QoS         QoS     `json:"qos,omitzero"`
}

// SetLUN changes what is not nil.
type SetLUN struct {
	Description  *string `json:"description,omitempty"`
	ReadOnly     *bool   `json:"read_only,omitempty"`
	MaxSnapshots *int    `json:"max_snapshots,omitempty"`
	Allow        *Allow  `json:"allow,omitempty"` // replaces the list

	QoSIOPS           *int64 `json:"qos_iops,omitempty"`
	QoSBytesPerSecond *int64 `json:"qos_bytes_per_second,omitempty"`
	QoSBurstMS        *int64 `json:"qos_burst_ms,omitempty"`
}

// SnapshotRequest names one LUN of a group snapshot; an empty Name means the UTC
// time of the group's instant.
type SnapshotRequest struct {
	LUN  string `json:"lun"`
	Name string `json:"name,omitempty"`
}

// SnapshotOptions hold for every snapshot of a group. TTL 0 means for ever.
// ProtectFor protects for that long, Protect alone until somebody ends it.
type SnapshotOptions struct {
	TTL         time.Duration     `json:"ttl,omitempty"`
	Protect     bool              `json:"protect,omitempty"`
	ProtectFor  time.Duration     `json:"protect_for,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Description string            `json:"description,omitempty"`
}

// SetSnapshot changes what is not nil. Labels are set or replaced; DropLabels
// names the ones to take away. TTL counts from now, 0 means for ever.
type SetSnapshot struct {
	Description *string           `json:"description,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	DropLabels  []string          `json:"drop_labels,omitempty"`
	TTL         *time.Duration    `json:"ttl,omitempty"`
}

// SnapshotRef names one snapshot.
type SnapshotRef struct {
	LUN  string `json:"lun"`
	Name string `json:"name"`
}

func (r SnapshotRef) String() string {
	if r.Name == "" {
		return r.LUN
	}
	return r.LUN + "@" + r.Name
}

// DeleteOptions: DryRun computes only; Wait returns when the space is back; Force
// deletes protected snapshots and disconnects clients.
type DeleteOptions struct {
	DryRun bool `json:"dry_run,omitempty"`
	Wait   bool `json:"wait,omitempty"`
	Force  bool `json:"force,omitempty"`
}

// DeleteReport is what a delete freed or, in a dry run, would free. Deleted holds
// LUN@NAME of each snapshot.
type DeleteReport struct {
	FreedBytes int64    `json:"freed_bytes"`
	Deleted    []string `json:"deleted"`
}

// RollbackOptions: Discard drops the state before; Force disconnects clients and
// leaves the LUN offline unless Online.
type RollbackOptions struct {
	Discard bool `json:"discard,omitempty"`
	Force   bool `json:"force,omitempty"`
	Online  bool `json:"online,omitempty"`
}

// SetReservation changes what is not nil; DryRun only names the snapshots that
// would go.
type SetReservation struct {
	Reserve *Amount `json:"reserve,omitempty"`
	Limit   *Amount `json:"limit,omitempty"`
	OnFull  *string `json:"on_full,omitempty"`
	DryRun  bool    `json:"dry_run,omitempty"`
}

// AreaDefaults are the pool-wide defaults of a new LUN's snapshot area. A nil
// Reserve means 20 % for thick and 0 for thin LUNs, a nil Limit means none, an
// empty OnFull means recycle.
type AreaDefaults struct {
	Reserve *Amount
	Limit   *Amount
	OnFull  string
}

// Export is one name that an NBD client can ask for: NAME or LUN@NAME.
type Export struct {
	Name        string
	SizeBytes   int64
	Description string
	ReadOnly    bool
}

// ClientControl is how the pool sees and ends the connections of the NBD server.
// Disconnect ends all connections of an export (NAME or LUN@NAME) and returns
// when none of them holds it any more.
type ClientControl interface {
	Clients() []ClientInfo
	Disconnect(export string)
	DisconnectID(id uint64) error
}

// On-full policies of a snapshot area.
const (
	OnFullRecycle = "recycle"
	OnFullFreeze  = "freeze"
)

// Bounds of a LUN's size; between them it is any multiple of SectorSize.
const (
	SectorSize       = 512
	MinLUNSize int64 = 4 << 10
	MaxLUNSize int64 = 64 << 40
)

// Amount is a quantity of space: so many bytes, a percentage of a LUN's size, or
// none at all (a limit only). Its text form is 20%, 10G or none.
type Amount struct {
	Percent int   // of the LUN's size; 0 unless the amount is a percentage
	Bytes   int64 // 0 unless the amount is absolute
	None    bool
}

// maxPercent bounds percentages: an area may well be larger than its LUN (ten
// snapshots, each rewritten), but not without end.
const maxPercent = 1000

// ParseAmount reads 20%, SIZE or none.
func ParseAmount(s string) (Amount, error) {
	if s == "none" {
		return Amount{None: true}, nil
	}
	digits, ok := strings.CutSuffix(s, "%")
	if !ok {
		n, err := ParseSize(s)
		return Amount{Bytes: n}, err
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || n > maxPercent {
		return Amount{}, Errorf(ErrInvalid, "percentage %q: want a whole number from 0%% to %d%%", s, maxPercent)
	}
	return Amount{Percent: int(n)}, nil
}

func (a Amount) String() string {
	switch {
	case a.None:
		return "none"
	case a.Percent != 0:
		return strconv.Itoa(a.Percent) + "%"
	default:
		return strconv.FormatInt(a.Bytes, 10)
	}
}

// Of returns the amount in bytes for a LUN of the given size; ok is false for none.
func (a Amount) Of(size int64) (n int64, ok bool) {
	switch {
	case a.None:
		return 0, false
	case a.Percent != 0:
		// size <= 64 TiB = 2^46 and the percentage <= 1000 < 2^10: no overflow.
		return size * int64(a.Percent) / 100, true
	default:
		return a.Bytes, true
	}
}

// MarshalText gives JSON the text form.
func (a Amount) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads the text form.
func (a *Amount) UnmarshalText(b []byte) error {
	parsed, err := ParseAmount(string(b))
	if err != nil {
		return err
	}
	*a = parsed
	return nil
}

// ParseSize reads bytes, or 10K 10M 10G 10T with an optional iB: powers of 1024,
// no fractions, no sign.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimSuffix(s, "iB")
	shift := 0
	if n := len(digits); n > 0 {
		if i := strings.IndexByte("KMGT", digits[n-1]); i >= 0 {
			digits, shift = digits[:n-1], 10*(i+1)
		} else if len(digits) != len(s) {
			digits = "" // "10iB" has no unit
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || digits[0] < '0' || digits[0] > '9' {
		if errors.Is(err, strconv.ErrRange) {
			return 0, Errorf(ErrInvalid, "size %q: too large", s)
		}
		return 0, Errorf(ErrInvalid, "size %q: want bytes or a whole number with K, M, G or T (powers of 1024), as 512, 10G or 10GiB", s)
	}
	if n > (1<<63-1)>>shift {
		return 0, Errorf(ErrInvalid, "size %q: too large", s)
	}
	return n << shift, nil
}

// CheckLUNSize holds the rule for sizes of LUNs.
func CheckLUNSize(n int64) error {
	switch {
	case n < MinLUNSize || n > MaxLUNSize:
		return Errorf(ErrInvalid, "LUN size %d: want from %d (4 KiB) to %d (64 TiB) bytes", n, MinLUNSize, MaxLUNSize)
	case n%SectorSize != 0:
		return Errorf(ErrInvalid, "LUN size %d: want a multiple of %d bytes; %d is the next", n, SectorSize, (n/SectorSize+1)*SectorSize)
	}
	return nil
}

// CheckName holds the rule for names of LUNs and snapshots; what says which of
// them it is in the message.
func CheckName(what, s string) error {
	ok := len(s) >= 1 && len(s) <= 63
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		ok = alnum || i > 0 && (c == '.' || c == '_' || c == '-')
	}
	if !ok {
		return Errorf(ErrInvalid, "%s name %q: want 1 to 63 of a-z A-Z 0-9 . _ -, beginning with a letter or digit", what, s)
	}
	return nil
}
