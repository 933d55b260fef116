package lun

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// BenchmarkOpen opens a pool whose one LUN has 65,536 snapshots.
func BenchmarkOpen(b *testing.B) {
	o := Options{FS: vfs.NewMem(), Dir: "pool", Capacity: 4 << 30, Manual: true, SnapshotsPerLUN: 1 << 20}
	p, err := Open(bg, o)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := p.CreateLUN(bg, CreateLUN{Name: "a", SizeBytes: 64 << 20}); err != nil {
		b.Fatal(err)
	}
	for i := range 65536 {
		if _, err := p.CreateSnapshots(bg, []SnapshotRequest{{LUN: "a", Name: fmt.Sprint("s", i)}}, SnapshotOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if p, err = Open(bg, o); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
