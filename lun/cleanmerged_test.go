package lun

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestCleanAfterMerges: Clean finds the live blocks of segments also where the versions that wrote them were merged into others.
func TestCleanAfterMerges(t *testing.T) {
	p := openT(t, vfs.NewMem(), Options{Manual: true})
	const blocks = 6 << 10
	newLUNT(t, p, CreateLUN{Name: "a", SizeBytes: blocks * blockSize})
	v := vol(t, p, "a")
	defer v.Close()
	for at := int64(0); at < blocks; at += 64 {
		must(t, v.WriteAt(pat(64, 1), at*blockSize, false))
	}
	random := rand.New(rand.NewPCG(1, 1))
	for i := range 8 {
		_, err := p.CreateSnapshots(bg, []SnapshotRequest{{LUN: "a", Name: fmt.Sprint("s", i)}}, SnapshotOptions{})
		must(t, err)
		for range blocks / 4 {
			must(t, v.WriteAt(pat(1, byte(i+2)), random.Int64N(blocks)*blockSize, false))
		}
	}
	_, err := p.Clean(bg)
	must(t, err)
	for i := range 4 {
		_, err := p.DeleteSnapshots(bg, []SnapshotRef{{LUN: "a", Name: fmt.Sprint("s", 2*i)}}, DeleteOptions{})
		must(t, err)
		must(t, p.Reclaim())
	}
	before := p.victims()
	_, err = p.Clean(bg)
	must(t, err)
	payload, live, sealed := p.space.totals()
	t.Logf("%d victims before; %d segments hold %d blocks, %d of them live", len(before), sealed, payload, live)
	if payload > live+live/8 {
		t.Errorf("after Clean %d blocks are held for %d live ones", payload, live)
	}
	report, err := p.Check(bg, nil)
	if err != nil || !report.OK {
		t.Errorf("check: %+v, %v", report, err)
	}
}
