package lun

import (
	"fmt"
	"math/rand"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// BenchmarkManyDeletes (twice -many) deletes every other one of many snapshots, each with four
// random blocks of its own, and then the LUN with the others.
func BenchmarkManyDeletes(b *testing.B) {
	for range b.N {
		manyDeletes(b, 2**manySnapshots, 1<<30)
	}
}

func manyDeletes(b *testing.B, n int, size int64) {
	p, err := Open(bg, Options{Dir: b.TempDir(), FS: vfs.Default, SegmentBytes: 64 << 20, Capacity: 16 << 30})
	must(b, err)
	defer p.Close()
	_, err = p.CreateLUN(bg, CreateLUN{Name: "a", SizeBytes: size})
	must(b, err)
	none := 0
	_, err = p.SetLUN(bg, "a", SetLUN{MaxSnapshots: &none})
	must(b, err)
	v, err := p.OpenVolume("a", "")
	must(b, err)
	for at := int64(0); at < size; at += 1 << 20 {
		must(b, v.WriteAt(pat(256, 1), at, false))
	}
	r := rand.New(rand.NewSource(1))
	began := time.Now()
	for i := range n {
		_, err := p.CreateSnapshots(bg, []SnapshotRequest{{LUN: "a", Name: fmt.Sprint(i)}}, SnapshotOptions{})
		must(b, err)
		for range 4 {
			must(b, v.WriteAt(pat(1, byte(i)), r.Int63n(size/blockSize)*blockSize, false))
		}
	}
	v.Close()
	b.Logf("%d taken in %v", n, time.Since(began))
	var refs []SnapshotRef
	for i := 0; i < n; i += 2 {
		refs = append(refs, SnapshotRef{"a", fmt.Sprint(i)})
	}
	must(b, p.Checkpoint())
	began = time.Now()
	_, err = p.DeleteSnapshots(bg, refs, DeleteOptions{})
	must(b, err)
	answered := time.Since(began)
	must(b, p.WaitReclaim(bg))
	b.ReportMetric(float64(time.Since(began).Microseconds())/float64(len(refs)), "us/delete")
	b.Logf("%d deleted, answered in %v, back in %v", len(refs), answered, time.Since(began))
	began = time.Now()
	_, err = p.DeleteLUN(bg, "a", true)
	must(b, err)
	answered = time.Since(began)
	for p.Status().UsedBytes > 0 { // nobody waits for it: at half speed
		time.Sleep(10 * time.Millisecond)
	}
	b.Logf("LUN with %d snapshots deleted, answered in %v, back in %v", n/2, answered, time.Since(began))
	b.ReportMetric(float64(time.Since(began).Microseconds())/float64(n/2), "us/dropped")
}
