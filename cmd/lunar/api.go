package main

import (
	"encoding/json"
	"net/url"
	"time"

	"lunar/lun"
)

// The admin API: HTTP and JSON over a unix socket. What both sides share is
// here: paths, bodies that are not lun's own, and the envelope of streams.
//
// An answer is 200 with an object or a list, or an error status with
// {"error": {"code", "message"}}. A stream is one envelope a line; its last line
// has a result or an error, so that a stream that was cut off is known as such.

const apiPrefix = "/v1"

// maxRequestBytes bounds the JSON bodies that the server reads.
const maxRequestBytes = 4 << 20

func lunPath(name string, more ...string) string {
	return apiPath(append([]string{"luns", name}, more...)...)
}

func snapshotPath(ref lun.SnapshotRef) string {
	return apiPath("luns", ref.LUN, "snapshots", ref.Name)
}

func apiPath(parts ...string) string {
	path := apiPrefix
	for _, p := range parts {
		path += "/" + url.PathEscape(p)
	}
	return path
}

// apiError is the body of an answer that is an error.
type apiError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *apiError) Error() string { return e.Message }

type errorBody struct {
	Error *apiError `json:"error"`
}

// Codes of errors. Clients may act on a code; the message is for people.
const (
	codeNotFound = "not-found"
	codeExists   = "exists"
	codeInvalid  = "invalid"
	codeBusy     = "busy"
	codeRefused  = "refused"
	codeNoSpace  = "no-space"
	codeReadOnly = "read-only"
	codeCorrupt  = "corrupt"
	codeStopping = "stopping"
	codeInternal = "internal"
)

// envelope is one line of a stream.
type envelope struct {
	Item     json.RawMessage `json:"item,omitempty"`
	Progress *progress       `json:"progress,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *apiError       `json:"error,omitempty"`
}

type progress struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
}

type resizeBody struct {
	SizeBytes int64 `json:"size_bytes"`
	Force     bool  `json:"force,omitempty"`
}

type capacityBody struct {
	CapacityBytes int64 `json:"capacity_bytes"`
}

type renameBody struct {
	Name string `json:"name"`
}

type onlineBody struct {
	Online bool `json:"online"`
}

type snapshotBody struct {
	Targets []lun.SnapshotRequest `json:"targets"`
	lun.SnapshotOptions
}

type protectBody struct {
	Protected bool          `json:"protected"`
	For       time.Duration `json:"for,omitempty"` // 0: without an end
}

type deleteBody struct {
	Snapshots []lun.SnapshotRef `json:"snapshots"`
	lun.DeleteOptions
}

type rollbackBody struct {
	Snapshot string `json:"snapshot"`
	lun.RollbackOptions
}

type cloneBody struct {
	Snapshot string `json:"snapshot,omitempty"`
	Name     string `json:"name"`
	Thick    bool   `json:"thick,omitempty"`
}

// rollbackAnswer is the snapshot that a rollback kept, as `snapshot list` has it,
// with what else the rollback did. After --discard there is none.
type rollbackAnswer struct {
	LUN    string  `json:"lun"`
	To     string  `json:"to"`
	Kept   *string `json:"kept"` // LUN@NAME
	Online bool    `json:"online"`
	*lun.SnapshotInfo
}

// reservationAnswer is the contract's reservation show with what --explain and
// --dry-run add to it.
type reservationAnswer struct {
	lun.ReservationInfo
	Explain   []string `json:"explain,omitempty"`
	Snapshots []string `json:"snapshots,omitempty"` // that went, or would go
}

// statusAnswer is `lunar status`.
type statusAnswer struct {
	Pool     lun.PoolStatus   `json:"pool"`
	LUNs     []lun.LUNInfo    `json:"luns"`
	Clients  []lun.ClientInfo `json:"clients"`
	Warnings []lun.Warning    `json:"warnings"`
	Server   serverInfo       `json:"server"`
}

// serverInfo is the process behind the socket.
type serverInfo struct {
	Version string   `json:"version"`
	PID     int      `json:"pid"`
	Data    string   `json:"data"`
	Listen  []string `json:"listen"`
}
