package main

import (
	"fmt"
	"syscall"
)

// leastFiles is how many files the process must be allowed to have open.
const leastFiles = 256

// fileShare is who may have how many files open, so that clients never take those
// that the pool needs to go on.
type fileShare struct {
	limit     int // ulimit -n
	pool      int // of its segments, and as many of its index
	listeners int // connections of each listener
}

// shareFiles divides a limit of open files: a half is the pool's, the other one
// the clients', but for what the server itself has open.
func shareFiles(limit, listeners int) (fileShare, error) {
	if limit < leastFiles {
		return fileShare{}, fmt.Errorf("only %d files may be open (ulimit -n), want at least %d; raise it with ulimit -n or LimitNOFILE=", limit, leastFiles)
	}
	return fileShare{limit: limit, pool: min(512, limit/4), listeners: max((limit/2-32)/max(listeners, 1), 1)}, nil
}

// ownFileShare divides the limit of this process.
func ownFileShare(listeners int) (fileShare, error) {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return fileShare{}, fmt.Errorf("limit of open files: %w", err)
	}
	return shareFiles(int(min(r.Cur, 1<<30)), listeners)
}

// connections is how many a listener may have where the configuration says want;
// not more than 0 is no limit there.
func (f fileShare) connections(want int) int {
	if want <= 0 {
		return f.listeners
	}
	return min(want, f.listeners)
}
