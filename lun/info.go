package lun

import "time"

// The shapes that every reading command prints with -o json (shared contract of
// the command line). Sizes are bytes; times are UTC.

// LUNInfo describes one LUN. Used is what its live data is charged with, without
// its snapshot area; Referenced is what is visible through its head.
type LUNInfo struct {
	Name            string    `json:"name"`
	UUID            string    `json:"uuid"`
	SizeBytes       int64     `json:"size_bytes"`
	Kind            string    `json:"kind"` // "thin" or "thick"
	ReadOnly        bool      `json:"read_only"`
	Online          bool      `json:"online"`
	UsedBytes       int64     `json:"used_bytes"`
	ReferencedBytes int64     `json:"referenced_bytes"`
	Clients         int       `json:"clients"`
	Created         time.Time `json:"created"`
	Description     string    `json:"description"`
	Parent          *string   `json:"parent"`
	Area            AreaInfo  `json:"area"`
	Snapshots       int       `json:"snapshots"`
	MaxSnapshots    int       `json:"max_snapshots"`
	Allow           Allow     `json:"allow"` // [] is anyone
	QoS             *QoS      `json:"qos"`   // null: no limits
}

// AreaInfo describes the snapshot area of a LUN. A nil limit is "none".
type AreaInfo struct {
	UsedBytes    int64  `json:"used_bytes"`
	ReserveBytes int64  `json:"reserve_bytes"`
	LimitBytes   *int64 `json:"limit_bytes"`
	OnFull       string `json:"on_full"` // "recycle" or "freeze"
}

// SnapshotInfo describes one snapshot. Unique is what deleting it alone would
// free now; Changed is what differs from the snapshot before it.
type SnapshotInfo struct {
	LUN             string            `json:"lun"`
	Name            string            `json:"name"`
	Created         time.Time         `json:"created"`
	Protected       bool              `json:"protected"`
	ProtectedUntil  *time.Time        `json:"protected_until"` // nil: not protected, or without an end
	Expires         *time.Time        `json:"expires"`
	Labels          map[string]string `json:"labels"`
	Description     string            `json:"description"`
	SizeBytes       int64             `json:"size_bytes"`
	UniqueBytes     int64             `json:"unique_bytes"`
	ReferencedBytes int64             `json:"referenced_bytes"`
	ChangedBytes    int64             `json:"changed_bytes"`
	Clients         int               `json:"clients"`
}

// ReservationInfo is one LUN's capacity arithmetic.
type ReservationInfo struct {
	LUN            string   `json:"lun"`
	SizeBytes      int64    `json:"size_bytes"`
	UsedBytes      int64    `json:"used_bytes"`
	Area           AreaInfo `json:"area"`
	OldestSnapshot *string  `json:"oldest_snapshot"`
	FullInDays     *float64 `json:"full_in_days"`
}

// PoolStatus is the capacity of the pool. Free is what a new thin write can
// still get. IndexWritten and Moved count since the pool was opened: what the
// index wrote to its files, and the blocks that the cleaner copied. Scattered are the
// parts of 2 MiB of LUNs that wait to be put together. Foreign is what others took of the file system that the pool counts on, Pending what is on
// its way back, Provisioned the sizes of all LUNs, WriteAmplification the bytes in the
// log for each byte that was written.
type PoolStatus struct {
	CapacityBytes int64   `json:"capacity_bytes"`
	UsedBytes     int64   `json:"used_bytes"`
	PromisedBytes int64   `json:"promised_bytes"`
	SharedBytes   int64   `json:"shared_bytes"`
	IndexBytes    int64   `json:"index_bytes"`
	FreeBytes     int64   `json:"free_bytes"`
	DeadBytes     int64   `json:"dead_bytes"`
	Segments      int     `json:"segments"`
	State         string  `json:"state"` // "ok" or "read-only"
	Reason        *string `json:"reason"`
	LUNs          int     `json:"luns"`
	Snapshots     int     `json:"snapshots"`

	IndexWrittenBytes int64 `json:"index_written_bytes"`
	MovedBytes        int64 `json:"moved_bytes"`
	ScatteredPages    int   `json:"scattered_pages"`

	Reclaim            ReclaimInfo `json:"reclaim"` // what deleted versions are giving back
	HeadroomBytes      int64       `json:"headroom_bytes"`
	PendingBytes       int64       `json:"pending_bytes"`
	ForeignBytes       int64       `json:"foreign_bytes"`
	ProvisionedBytes   int64       `json:"provisioned_bytes"`
	OverCommit         float64     `json:"over_commit"`
	WriteAmplification float64     `json:"write_amplification"`

	Backups     []BackupInfo `json:"index_backups,omitempty"`
	PinnedBytes int64        `json:"pinned_bytes,omitempty"` // of segments that only copies of the index need
	HoleBytes   int64        `json:"hole_bytes,omitempty"`   // given back to the file system out of segments that are in use
}

// Problem is one finding of a check.
type Problem struct {
	What  string `json:"what"`
	Where string `json:"where"`
}

// CheckReport is the result of `pool check`.
type CheckReport struct {
	OK       bool      `json:"ok"`
	Problems []Problem `json:"problems"`
}

// DiffRange is one changed range between two versions.
type DiffRange struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Kind   string `json:"kind"` // "data" or "hole"
}

// ClientInfo is one attached client.
type ClientInfo struct {
	ID      uint64    `json:"id"`
	Export  string    `json:"export"`
	Address string    `json:"address"`
	Since   time.Time `json:"since"`
	TLS     bool      `json:"tls"`

	CommonName string `json:"common_name,omitempty"` // of a client certificate
}

// Warning is one line of `lunar status`.
type Warning struct {
	Level   string `json:"level"` // "warning" or "critical"
	Message string `json:"message"`
}

// Event is one thing that happened in the background or by an administrator.
type Event struct {
	Time    time.Time `json:"time"`
	Type    string    `json:"type"`
	LUN     *string   `json:"lun"`
	Message string    `json:"message"`
}

// RollbackInfo is what a rollback did. Kept is the snapshot that holds the state
// before it, nil after --discard.
type RollbackInfo struct {
	LUN    string  `json:"lun"`
	To     string  `json:"to"`
	Kept   *string `json:"kept"`
	Online bool    `json:"online"`
}
