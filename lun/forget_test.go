package lun

import (
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"lunar/cow"
)

func (p *Pool) versionCount() int {
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	return len(p.tree.Versions())
}

func clean(t *testing.T, p *Pool) {
	t.Helper()
	rep, err := p.Check(bg, nil)
	must(t, err)
	if !rep.OK {
		t.Fatalf("pool check: %+v", rep.Problems[:min(5, len(rep.Problems))])
	}
}

// Snapshots that are taken and deleted for ever leave no trail: the ids that were
// merged are forgotten, also where each interval changes pages of its own.
func TestMergedIDsAreForgotten(t *testing.T) {
	fs := vfs.NewCrashableMem()
	p := openT(t, fs, Options{Manual: true, Capacity: 4 << 30, SegmentBytes: 1 << 20})
	_, err := p.CreateLUN(bg, CreateLUN{Name: "a", SizeBytes: 1 << 30})
	must(t, err)
	v := vol(t, p, "a")
	defer v.Close()
	const pages = 64
	for i := range pages { // the base image
		must(t, v.WriteAt(pat(1, 1), int64(i)*cow.PageBlocks*blockSize, false))
	}
	most := 0
	for i := range 200 {
		snapT(t, p, "a", fmt.Sprint("s", i))
		for k := range 1 + i%5 {
			must(t, v.WriteAt(pat(1, byte(2+i%100)), int64((i*7+k)%pages)*cow.PageBlocks*blockSize, false))
		}
		if i >= 4 { // the oldest of four goes
			_, err := p.DeleteSnapshots(bg, []SnapshotRef{{LUN: "a", Name: fmt.Sprint("s", i-4)}}, DeleteOptions{Wait: true})
			must(t, err)
		}
		most = max(most, p.versionCount())
	}
	if most > 5+8 { // the head, four snapshots, and lists that double from one to the next
		t.Errorf("%d versions at most in the tree for a head and four snapshots", most)
	}
	clean(t, p)
	must(t, p.Close())
	p = openT(t, fs, Options{Manual: true, Capacity: 4 << 30})
	clean(t, p)
	// The log's records name ids that are forgotten; the cleaner finds their blocks.
	_, err = p.Clean(bg)
	must(t, err)
	_, err = p.Clean(bg)
	must(t, err)
	if st := p.Status(); st.DeadBytes > 2<<20 {
		t.Errorf("%d of %d segments' bytes are dead after cleaning, of %d used", st.DeadBytes, st.Segments, st.UsedBytes)
	}
	clean(t, p)
	must(t, p.Close())
}

// What all clones of a golden image replaced comes back when the image and its
// snapshot are deleted, although two or more clones still need the rest.
func TestHiddenVersionGivesBack(t *testing.T) {
	fs := vfs.NewCrashableMem()
	p := openT(t, fs, Options{Manual: true})
	_, err := p.CreateLUN(bg, CreateLUN{Name: "golden", SizeBytes: 64 << 20})
	must(t, err)
	v := vol(t, p, "golden")
	must(t, v.WriteAt(pat(100, 1), 0, false))
	v.Close()
	snapT(t, p, "golden", "s")
	for _, c := range []string{"c1", "c2", "c3"} {
		_, err := p.Clone(bg, "golden", "s", c, false)
		must(t, err)
	}
	_, err = p.DeleteLUN(bg, "golden", true)
	must(t, err)
	must(t, p.Reclaim())
	if got := p.Status().SharedBytes; got != 100*blockSize {
		t.Fatalf("shared is %d bytes, want all of the image", got)
	}
	for i, c := range []string{"c1", "c2", "c3"} { // blocks 0-29, 10-39, 20-49: all replaced 20-29
		w := vol(t, p, c)
		must(t, w.WriteAt(pat(30, byte(10+i)), int64(i)*10*blockSize, false))
		w.Close()
	}
	must(t, p.Reclaim())
	if got := p.Status().SharedBytes; got != 90*blockSize {
		t.Errorf("shared is %d blocks, want 90", got/blockSize)
	}
	clean(t, p)
	// A crash right after gives the same.
	fs = fs.CrashClone(vfs.CrashCloneCfg{})
	p.Abandon()
	p = openT(t, fs, Options{Manual: true})
	expect(t, p, "c1", 5, 10, "replaced by c1")
	expect(t, p, "c1", 45, 1, "not replaced by c1")
	expect(t, p, "c3", 5, 1, "not replaced by c3")
	clean(t, p)
	// With one clone left, the rest merges into it and is its own.
	for _, c := range []string{"c1", "c2"} {
		_, err := p.DeleteLUN(bg, c, true)
		must(t, err)
	}
	must(t, p.Reclaim())
	clean(t, p)
	if got := p.Status().SharedBytes; got != 0 {
		t.Errorf("shared is %d bytes, want none", got)
	}
	expect(t, p, "c3", 5, 1, "of the image")
	expect(t, p, "c3", 25, 12, "replaced by c3")
	must(t, p.Close())
}

// Thousands of snapshots are deleted, one by one in one go, or with their LUN, in
// one record of the log each.
func TestThousandsOfSnapshots(t *testing.T) {
	p := openT(t, vfs.NewMem(), Options{Manual: true, SnapshotsPerLUN: 1 << 20})
	_, err := p.CreateLUN(bg, CreateLUN{Name: "a", SizeBytes: 64 << 20})
	must(t, err)
	v := vol(t, p, "a")
	const n = 5000
	var refs []SnapshotRef
	for i := range n {
		if i%10 == 0 {
			must(t, v.WriteAt(pat(1, byte(i)), int64(i%1000)*blockSize, false))
		}
		name := fmt.Sprint("s", i)
		snapT(t, p, "a", name)
		if i%2 == 0 {
			refs = append(refs, SnapshotRef{LUN: "a", Name: name})
		}
	}
	v.Close()
	list, err := p.Snapshots("a")
	must(t, err)
	if len(list) != n {
		t.Fatalf("%d snapshots listed, want %d", len(list), n)
	}
	_, err = p.DeleteSnapshots(bg, refs[:10], DeleteOptions{})
	must(t, err)
	if r := p.Status().Reclaim; r.Pending != 10 || r.Running {
		t.Errorf("10 deleted snapshots, to come back: %+v", r)
	}
	must(t, p.Reclaim())
	if r := p.Status().Reclaim; r.Pending != 0 || r.PagesDone != r.PagesTotal {
		t.Errorf("after a round, to come back: %+v", r)
	}
	refs = refs[10:]
	before := p.Status().UsedBytes
	rep, err := p.DeleteSnapshots(bg, refs, DeleteOptions{Wait: true})
	must(t, err)
	if shown := before - p.Status().UsedBytes; shown != rep.FreedBytes {
		t.Errorf("foreseen %d bytes, freed %d", rep.FreedBytes, shown)
	}
	clean(t, p)
	_, err = p.DeleteLUN(bg, "a", true)
	must(t, err)
	must(t, p.Reclaim())
	clean(t, p)
	if got := p.versionCount(); got != 0 {
		t.Errorf("%d versions left", got)
	}
	must(t, p.Close())
}

// Background merging keeps to half of the time, unless somebody waits for space.
func TestReclaimPace(t *testing.T) {
	var r reclaiming
	quit := make(chan struct{})
	timed := func(worked time.Duration) time.Duration {
		began := time.Now()
		r.pace(worked, quit)
		return time.Since(began)
	}
	if d := timed(10 * time.Millisecond); d < 10*time.Millisecond {
		t.Errorf("paused %s after 10 ms of work", d)
	}
	r.urgent.Add(1)
	if d := timed(time.Hour); d > 30*time.Second {
		t.Errorf("paused %s while somebody waits", d)
	}
	r.urgent.Add(-1)
	close(quit)
	if d := timed(10 * time.Millisecond); d > 30*time.Second {
		t.Errorf("paused %s at the end of the server", d)
	}
}
