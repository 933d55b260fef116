package crashfs

import "fmt"

// Kind is what an operation does.
type Kind uint8

// The operations that are counted. Reading, listing and closing are not.
const (
	OpCreate Kind = iota
	OpLink
	OpRemove
	OpRename
	OpMkdir
	OpWrite
	OpPreallocate
	OpTruncate
	OpPunch
	OpSync    // of a file
	OpSyncTo  // of a file, guarantees nothing
	OpSyncDir // of a folder
)

var kindNames = [...]string{"create", "link", "remove", "rename", "mkdir", "write", "preallocate", "truncate", "punch", "sync", "sync-to", "sync-dir"}

func (k Kind) String() string { return kindNames[k] }

// Op is one operation.
type Op struct {
	N              int // counted from 1
	Kind           Kind
	Path           string
	Offset, Length int64 // of a write, in bytes
}

func (o Op) String() string {
	if o.Length > 0 {
		return fmt.Sprintf("operation %d: %s %s %d+%d", o.N, o.Kind, o.Path, o.Offset, o.Length)
	}
	return fmt.Sprintf("operation %d: %s %s", o.N, o.Kind, o.Path)
}

// Syncs says whether the operation makes anything durable.
func (o Op) Syncs() bool { return o.Kind == OpSync || o.Kind == OpSyncDir }

// Hook is called before each operation, with no lock held: it may take an Image. An
// error it returns is that of the operation, which is then not done. It may be called concurrently.
type Hook func(Op) error

// Short is an error of a write that does a part of it first. Without Err the
// write says so by its count only, as a system call may.
type Short struct {
	Bytes int
	Err   error
}

func (s *Short) Error() string { return fmt.Sprintf("short write of %d bytes: %v", s.Bytes, s.Err) }
func (s *Short) Unwrap() error { return s.Err }
