package lun

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// BenchmarkHoles: LUNs written side by side, 1 MiB at a time, share every segment; one of
// four is deleted. What comes back to the file system by holes, and by moves,
// and what each writes for it.
func BenchmarkHoles(b *testing.B) {
	for _, holes := range []bool{true, false} {
		b.Run(map[bool]string{true: "holes", false: "moves"}[holes], func(b *testing.B) {
			for range b.N {
				deleteInterleaved(b, holes)
			}
		})
	}
}

func deleteInterleaved(b *testing.B, holes bool) {
	p, err := Open(bg, Options{Dir: b.TempDir(), FS: vfs.Default, Manual: true, SegmentBytes: 64 << 20, Capacity: 8 << 30})
	must(b, err)
	defer p.Close()
	p.holesFail.Store(!holes)
	const size = 256 << 20
	names := []string{"a", "b", "c", "d"}
	var vs []*Volume
	for _, n := range names {
		_, err := p.CreateLUN(bg, CreateLUN{Name: n, SizeBytes: size})
		must(b, err)
		v, err := p.OpenVolume(n, "")
		must(b, err)
		vs = append(vs, v)
	}
	for at := int64(0); at < size; at += 1 << 20 {
		for i, v := range vs {
			must(b, v.WriteAt(pat(256, byte(i+1)), at, false))
		}
	}
	for _, v := range vs {
		must(b, v.Flush())
		v.Close()
	}
	must(b, p.log.Rotate())
	must(b, p.Checkpoint())
	_, err = p.DeleteLUN(bg, "c", true)
	must(b, err)
	must(b, p.WaitReclaim(bg))
	before := p.log.Stats()
	began := time.Now()
	st, err := p.Clean(bg)
	must(b, err)
	after := p.log.Stats()
	b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms")
	b.ReportMetric(float64(st.MovedBytes>>20), "moved-MiB")
	b.ReportMetric(float64(st.HoleBytes>>20), "hole-MiB")
	b.ReportMetric(float64(after.Limit-after.Files)-float64(before.Limit-before.Files), "segments-gained")
	rep, err := p.Check(bg, nil)
	must(b, err)
	if !rep.OK {
		b.Fatal(rep.Problems)
	}
}
