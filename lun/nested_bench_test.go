package lun

import (
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// BenchmarkNestedRollbacks: a LUN that was rolled back again and again, each time to
// a snapshot of the branch before. What a page costs that is not in memory, and
// again when the snapshots are gone.
func BenchmarkNestedRollbacks(b *testing.B) {
	for _, depth := range []int{0, 256, 1024} {
		b.Run(fmt.Sprint(depth), func(b *testing.B) {
			for range b.N {
				nestedRollbacks(b, depth)
			}
		})
	}
}

func nestedRollbacks(b *testing.B, depth int) {
	const size = 128 << 20
	o := Options{Dir: b.TempDir(), FS: vfs.Default, Manual: true, SegmentBytes: 64 << 20, Capacity: 8 << 30, SnapshotsPerLUN: 1 << 20}
	p, err := Open(bg, o)
	must(b, err)
	_, err = p.CreateLUN(bg, CreateLUN{Name: "a", SizeBytes: size})
	must(b, err)
	write := func(at int64, n int) {
		v, err := p.OpenVolume("a", "")
		must(b, err)
		must(b, v.WriteAt(pat(n, byte(at)), at, false))
		v.Close()
	}
	for at := int64(0); at < size; at += 1 << 20 {
		write(at, 256)
	}
	var refs []SnapshotRef
	for i := range depth {
		write(int64(i*7919)%(size/blockSize)*blockSize, 1)
		s := SnapshotRef{"a", fmt.Sprint(i)}
		refs = append(refs, s)
		_, err := p.CreateSnapshots(bg, []SnapshotRequest{{LUN: s.LUN, Name: s.Name}}, SnapshotOptions{})
		must(b, err)
		_, err = p.Rollback(bg, "a", s.Name, RollbackOptions{Discard: true})
		must(b, err)
	}
	miss := func(unit string) {
		must(b, p.Close())
		p, err = Open(bg, o)
		must(b, err)
		v, err := p.OpenVolume("a", "")
		must(b, err)
		buf := make([]byte, blockSize)
		began := time.Now()
		for at := int64(0); at < size; at += 2 << 20 {
			must(b, v.ReadAt(buf, at))
		}
		b.ReportMetric(float64(time.Since(began).Microseconds())/(size>>21), unit)
		v.Close()
	}
	miss("us/miss")
	if depth > 0 {
		began := time.Now()
		_, err = p.DeleteSnapshots(bg, refs, DeleteOptions{})
		must(b, err)
		must(b, p.Reclaim())
		b.ReportMetric(time.Since(began).Seconds(), "s-delete")
		miss("us/miss-then")
	}
	must(b, p.Close())
}
