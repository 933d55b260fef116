package lun

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

var manySnapshots = flag.Int("many", 4096, "snapshots of TestManySnapshots; 65536 must work")

// There is no built-in ceiling of snapshots: thousands of one LUN are taken, each
// with a block of its own, listed, read, found again by a restart, and all but one
// deleted in one command.
func TestManySnapshots(t *testing.T) {
	n := *manySnapshots
	if raceEnabled {
		n = min(n, 1024)
	}
	fs := vfs.NewMem()
	p := openT(t, fs, Options{Manual: true, SegmentBytes: 16 << 20, Capacity: 4 << 30})
	none := 0
	newLUNT(t, p, CreateLUN{Name: "a", SizeBytes: 8 << 20})
	_, err := p.SetLUN(bg, "a", SetLUN{MaxSnapshots: &none})
	must(t, err)
	v := vol(t, p, "a")
	began := time.Now()
	for i := range n {
		must(t, v.WriteAt(pat(1, byte(i)), int64(i%2048)*blockSize, false))
		snapT(t, p, "a", fmt.Sprint(i))
	}
	v.Close()
	t.Logf("%d snapshots taken in %v", n, time.Since(began))
	began = time.Now()
	must(t, p.Close())
	p = openT(t, fs, Options{Manual: true, SegmentBytes: 16 << 20, Capacity: 4 << 30})
	t.Logf("closed and opened in %v", time.Since(began))
	began = time.Now()
	list, err := p.Snapshots("a")
	must(t, err)
	if len(list) != n {
		t.Fatalf("%d snapshots, want %d", len(list), n)
	}
	t.Logf("listed in %v", time.Since(began))
	began = time.Now()
	for _, i := range []int{0, 1, n / 2, n - 1} {
		s, err := p.OpenVolume("a", fmt.Sprint(i))
		must(t, err)
		b := make([]byte, blockSize)
		for _, at := range []int{i % 2048, (i + 1) % 2048} {
			must(t, s.ReadAt(b, int64(at)*blockSize))
			want := byte(0)
			if last := i - (i-at+2048*n)%2048; last >= 0 {
				want = byte(last)
			}
			if b[0] != want {
				t.Errorf("snapshot %d, block %d holds %d, want %d", i, at, b[0], want)
			}
		}
		s.Close()
	}
	t.Logf("four read in %v", time.Since(began))
	began = time.Now()
	var refs []SnapshotRef
	for i := range n - 1 {
		refs = append(refs, SnapshotRef{"a", fmt.Sprint(i)})
	}
	rep, err := p.DeleteSnapshots(bg, refs, DeleteOptions{})
	must(t, err)
	t.Logf("%d deleted in %v, will free %d blocks", len(refs), time.Since(began), rep.FreedBytes/blockSize)
	began = time.Now()
	must(t, p.Reclaim())
	t.Logf("given back in %v", time.Since(began))
	info, err := p.LUN("a")
	must(t, err)
	if want := int64(max(n-2048, 0)) * blockSize; rep.FreedBytes != want || info.Area.UsedBytes != 0 || info.Snapshots != 1 {
		t.Errorf("freed %d, want %d; %+v", rep.FreedBytes, want, info)
	}
	checkT(t, p)
}
