package main

import "strings"

// row is one workload of the target table. Ratios are to nbdkit's file plugin in the same run.
type row struct {
	ID     string  `json:"id"`
	Title  string  `json:"title"`
	Target float64 `json:"target"`
	Floor  float64 `json:"floor"`            // not done below
	Memory bool    `json:"memory,omitempty"` // the floor is 1.0 of nbdkit's memory plugin, the target at least 1.1 of it
	Long   bool    `json:"-"`                // not in bench-quick

	job             []string
	copyIn, copyOut bool

	before string // what is done to every server first: fresh (each repeat), fill, scatter, idle
}

func (r row) large() bool {
	return r.copyIn || r.copyOut || strings.Contains(strings.Join(r.job, " "), "--bs=1M")
}

// flushes says whether the row is about FLUSH.
func (r row) flushes() bool { return strings.Contains(strings.Join(r.job, " "), "--fsync=") }

func job(text string) []string { return strings.Fields(text) }

// rows in the order in which they are run: what one leaves behind is what the next one finds.
var rows = []row{
	{ID: "write-1m-fresh", Title: "1M write, depth 4, fresh", Target: 1.1, Floor: 0.9, job: job("--rw=write --bs=1M --iodepth=4"), before: "fresh"},
	{ID: "read-1m-sequential", Title: "1M read, depth 4, sequential layout", Target: 1.2, Floor: 0.95, job: job("--rw=read --bs=1M --iodepth=4"), before: "fill"},
	{ID: "copy-out", Title: "nbdcopy -C 4 out", Target: 1.1, Floor: 0.9, copyOut: true},
	{ID: "randread-q1", Title: "4K random read, depth 1", Target: 1.9, Floor: 1.3, job: job("--rw=randread --bs=4k --iodepth=1 --norandommap")},
	{ID: "randread-q32", Title: "4K random read, depth 32", Target: 1.5, Floor: 1.1, job: job("--rw=randread --bs=4k --iodepth=32 --norandommap")},
	{ID: "randread-q32x2", Title: "4K random read, depth 32 x 2 jobs", Target: 2.0, Floor: 1.3, job: job("--rw=randread --bs=4k --iodepth=32 --numjobs=2 --norandommap")},
	{ID: "randwrite-q1", Title: "4K random write, depth 1", Target: 2.2, Memory: true, job: job("--rw=randwrite --bs=4k --iodepth=1 --norandommap")},
	{ID: "randwrite-q32", Title: "4K random write, depth 32", Target: 3.2, Memory: true, job: job("--rw=randwrite --bs=4k --iodepth=32 --norandommap")},
	{ID: "randwrite-q32x2", Title: "4K random write, depth 32 x 2 jobs", Target: 5.5, Memory: true, job: job("--rw=randwrite --bs=4k --iodepth=32 --numjobs=2 --norandommap")},
	{ID: "fsync-1", Title: "4K random write, fsync each", Target: 1.6, Floor: 1.2, job: job("--rw=randwrite --bs=4k --iodepth=1 --fsync=1 --norandommap")},
	{ID: "fsync-32", Title: "4K random write, depth 32, fsync every 32", Target: 4.8, Floor: 2.5, job: job("--rw=randwrite --bs=4k --iodepth=32 --fsync=32 --norandommap")},
	{ID: "mix", Title: "70/30 mix, depth 32", Target: 2.0, Floor: 1.3, job: job("--rw=randrw --rwmixread=70 --bs=4k --iodepth=32 --norandommap")},
	{ID: "read-1m-scattered", Title: "1M read, depth 4, after random overwrite", Target: 0.9, Floor: 0.5, job: job("--rw=read --bs=1M --iodepth=4"), before: "scatter"},
	{ID: "read-1m-idle", Title: "1M read, depth 4, the same after 60 s idle", Target: 1.1, Floor: 0.9, Long: true, job: job("--rw=read --bs=1M --iodepth=4"), before: "idle"},
	{ID: "write-1m-aged", Title: "1M write, depth 4, aged log", Target: 1.0, Floor: 0.75, job: job("--rw=write --bs=1M --iodepth=4"), before: "scatter"},
	{ID: "copy-in", Title: "nbdcopy -C 4 in", Target: 1.0, Floor: 0.75, copyIn: true},
}

// pairs are run on two LUNs of one lunar: one without snapshots, one with 256, each followed by writes.
var pairs = []row{
	{ID: "snapshots-randread", Title: "4K random read, depth 32, with 256 snapshots", Target: 0.95, Floor: 0.9, job: job("--rw=randread --bs=4k --iodepth=32 --norandommap")},
	{ID: "snapshots-randwrite", Title: "4K random write, depth 32, with 256 snapshots", Target: 0.95, Floor: 0.9, job: job("--rw=randwrite --bs=4k --iodepth=32 --norandommap")},
	{ID: "snapshots-mix", Title: "70/30 mix, depth 32, with 256 snapshots", Target: 0.95, Floor: 0.9, Long: true, job: job("--rw=randrw --rwmixread=70 --bs=4k --iodepth=32 --norandommap")},
	{ID: "snapshots-read-1m", Title: "1M read, depth 4, with 256 snapshots", Target: 0.95, Floor: 0.9, Long: true, job: job("--rw=read --bs=1M --iodepth=4")},
	{ID: "snapshots-write-1m", Title: "1M write, depth 4, with 256 snapshots", Target: 0.95, Floor: 0.9, Long: true, job: job("--rw=write --bs=1M --iodepth=4")},
}

const (
	snapshotCount  = 256
	snapshotWrites = 64
)
