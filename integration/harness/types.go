package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The JSON of the commands, as the contract promises it. Kept apart from the server's own types on purpose: a renamed
// field must break a test.

// LUN is `lun show`.
type LUN struct {
	Name            string    `json:"name"`
	UUID            string    `json:"uuid"`
	SizeBytes       int64     `json:"size_bytes"`
	Kind            string    `json:"kind"`
	ReadOnly        bool      `json:"read_only"`
	Online          bool      `json:"online"`
	UsedBytes       int64     `json:"used_bytes"`
	ReferencedBytes int64     `json:"referenced_bytes"`
	Clients         int       `json:"clients"`
	Created         time.Time `json:"created"`
	Description     string    `json:"description"`
	Parent          *string   `json:"parent"`
	Area            Area      `json:"area"`
	Snapshots       int       `json:"snapshots"`
}

// Area is a LUN's snapshot area.
type Area struct {
	UsedBytes    int64  `json:"used_bytes"`
	ReserveBytes int64  `json:"reserve_bytes"`
	LimitBytes   *int64 `json:"limit_bytes"`
	OnFull       string `json:"on_full"`
}

// Snapshot is `snapshot show`.
type Snapshot struct {
	LUN             string            `json:"lun"`
	Name            string            `json:"name"`
	Created         time.Time         `json:"created"`
	Protected       bool              `json:"protected"`
	Expires         *time.Time        `json:"expires"`
	Labels          map[string]string `json:"labels"`
	SizeBytes       int64             `json:"size_bytes"`
	UniqueBytes     int64             `json:"unique_bytes"`
	ReferencedBytes int64             `json:"referenced_bytes"`
	ChangedBytes    int64             `json:"changed_bytes"`
	Clients         int               `json:"clients"`
}

// Pool is `pool status`.
type Pool struct {
	CapacityBytes int64   `json:"capacity_bytes"`
	UsedBytes     int64   `json:"used_bytes"`
	PromisedBytes int64   `json:"promised_bytes"`
	SharedBytes   int64   `json:"shared_bytes"`
	IndexBytes    int64   `json:"index_bytes"`
	FreeBytes     int64   `json:"free_bytes"`
	DeadBytes     int64   `json:"dead_bytes"`
	Segments      int     `json:"segments"`
	State         string  `json:"state"`
	Reason        *string `json:"reason"`
	LUNs          int     `json:"luns"`
	Snapshots     int     `json:"snapshots"`
}

// LUN reads one LUN.
func (s *Server) LUN(name string) LUN {
	s.t.Helper()
	var l LUN
	s.JSON(&l, "lun", "show", name)
	return l
}

// Snapshots lists the snapshots of a LUN.
func (s *Server) Snapshots(lun string) []Snapshot {
	s.t.Helper()
	var list []Snapshot
	s.JSON(&list, "snapshot", "list", lun)
	return list
}

// Pool reads the pool's status.
func (s *Server) Pool() Pool {
	s.t.Helper()
	var p Pool
	s.JSON(&p, "pool", "status")
	return p
}

// DiskBytes is what the pool occupies on disk.
func (s *Server) DiskBytes() int64 {
	s.t.Helper()
	return DiskBytes(s.t, s.Dir)
}

// DiskBytes is what a file or folder occupies on disk (holes are free).
func DiskBytes(t testing.TB, path string) int64 {
	t.Helper()
	var sum int64
	err := filepath.WalkDir(path, func(path string, _ os.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err == nil {
			sum += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// TreeSum is a hash of all names, sizes and contents of a pool, without the lock that names its last holder.
func TreeSum(t testing.TB, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || strings.HasPrefix(entry.Name(), "lock") {
			return err
		}
		text, err := os.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n", path, len(text))
		h.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}
