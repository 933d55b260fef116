package lun

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// benchOpen opens and closes a pool that fill has filled, and reports what it keeps in memory.
func benchOpen(b *testing.B, n int, fill func(p *Pool, i int) error) {
	o := Options{FS: vfs.NewMem(), Dir: "pool", Capacity: 4 << 30, Manual: true, SnapshotsPerLUN: 1 << 20}
	p, err := Open(bg, o)
	if err != nil {
		b.Fatal(err)
	}
	for i := range n {
		if err := fill(p, i); err != nil {
			b.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		b.Fatal(err)
	}
	var before, after runtime.MemStats
	for b.Loop() {
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&before)
		b.StartTimer()
		if p, err = Open(bg, o); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&after)
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/float64(n), "bytes/each")
}

// BenchmarkOpen opens a pool whose one LUN has 65,536 snapshots.
func BenchmarkOpen(b *testing.B) {
	benchOpen(b, 65536, func(p *Pool, i int) (err error) {
		if i == 0 {
			if _, err := p.CreateLUN(bg, CreateLUN{Name: "a", SizeBytes: 64 << 20}); err != nil {
				return err
			}
		}
		_, err = p.CreateSnapshots(bg, []SnapshotRequest{{LUN: "a", Name: fmt.Sprint("s", i)}}, SnapshotOptions{})
		return err
	})
}

// BenchmarkOpenLUNs opens a pool of 10,000 LUNs with a block in each.
func BenchmarkOpenLUNs(b *testing.B) {
	benchOpen(b, 10000, func(p *Pool, i int) error {
		name := fmt.Sprint("lun", i)
		if _, err := p.CreateLUN(bg, CreateLUN{Name: name, SizeBytes: 1 << 30}); err != nil {
			return err
		}
		v, err := p.OpenVolume(name, "")
		if err != nil {
			return err
		}
		defer v.Close()
		return v.WriteAt(make([]byte, blockSize), int64(i)*blockSize, false)
	})
}
