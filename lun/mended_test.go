// Faults that a review of the engine found, each seen failing before it was mended.

package lun

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

var bg = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func pat(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n*blockSize) }

func openT(t *testing.T, fs vfs.FS, o Options) *Pool {
	o.FS, o.Dir = fs, "pool"
	if o.Capacity == 0 {
		o.Capacity = 1 << 30
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 1 << 20
	}
	p, err := Open(bg, o)
	must(t, err)
	t.Cleanup(p.Abandon)
	return p
}

func vol(t *testing.T, p *Pool, n string) *Volume {
	v, err := p.OpenVolume(n, "")
	must(t, err)
	return v
}

func expect(t *testing.T, p *Pool, lun string, block int, b byte, what string) {
	t.Helper()
	v := vol(t, p, lun)
	defer v.Close()
	buf := make([]byte, blockSize)
	if err := v.ReadAt(buf, int64(block)*blockSize); err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if buf[0] != b {
		t.Errorf("%s: block %d: got %d want %d", what, block, buf[0], b)
	}
}

// 1: absorbed without a change, then a snapshot: record deleted
func TestMendedAbsorb(t *testing.T) {
	fs := vfs.NewCrashableMem()
	p := openT(t, fs, Options{Manual: true})
	_, err := p.CreateLUN(bg, CreateLUN{Name: "a", SizeBytes: 64 << 20})
	must(t, err)
	v := vol(t, p, "a")
	must(t, v.WriteAt(pat(10, 7), 0, true))
	_, err = p.CreateSnapshots(bg, []SnapshotRequest{{LUN: "a", Name: "s1"}}, SnapshotOptions{})
	must(t, err)
	_, err = p.DeleteSnapshots(bg, []SnapshotRef{{LUN: "a", Name: "s1"}}, DeleteOptions{Wait: true})
	must(t, err)
	must(t, v.Trim(100*blockSize, 50*blockSize, true))
	_, err = p.CreateSnapshots(bg, []SnapshotRequest{{LUN: "a", Name: "s2"}}, SnapshotOptions{})
	must(t, err)
	must(t, v.WriteAt(pat(1, 9), 200*blockSize, true))
	v.Close()
	must(t, p.Close())
	p = openT(t, fs, Options{Manual: true})
	expect(t, p, "a", 0, 7, "after reopen")
	r, err := p.Check(bg, nil)
	must(t, err)
	t.Logf("check %+v", r)
	must(t, p.Close())
}

// 2: holes dropped while merging: old data comes back
func TestMendedHoles(t *testing.T) {
	fs := vfs.NewCrashableMem()
	p := openT(t, fs, Options{Manual: true})
	_, err := p.CreateLUN(bg, CreateLUN{Name: "a", SizeBytes: 64 << 20})
	must(t, err)
	v := vol(t, p, "a")
	must(t, v.WriteAt(pat(512, 7), 0, true))
	_, err = p.CreateSnapshots(bg, []SnapshotRequest{{LUN: "a", Name: "s1"}}, SnapshotOptions{})
	must(t, err)
	must(t, v.WriteAt(pat(1, 9), 0, true))
	must(t, p.Checkpoint())
	_, err = p.DeleteSnapshots(bg, []SnapshotRef{{LUN: "a", Name: "s1"}}, DeleteOptions{})
	must(t, err)
	_, _, err = p.publishReclaim()
	must(t, err) // as the janitor does; the sweep comes later
	must(t, v.Zero(blockSize, 300*blockSize, false, true))
	must(t, p.Checkpoint())
	must(t, p.Reclaim())
	expect(t, p, "a", 1, 0, "before reopen")
	v.Close()
	must(t, p.Close())
	p = openT(t, fs, Options{Manual: true})
	expect(t, p, "a", 1, 0, "after reopen")
	r, err := p.Check(bg, nil)
	must(t, err)
	t.Logf("check %+v", r)
	must(t, p.Close())
}

// 3: WRITE_ZEROES at a full area
func TestMendedZeroFull(t *testing.T) {
	fs := vfs.NewCrashableMem()
	p := openT(t, fs, Options{Manual: true})
	lim := &Amount{}
	*lim, _ = ParseAmount("1MiB")
	_, err := p.CreateLUN(bg, CreateLUN{Name: "a", SizeBytes: 64 << 20, Limit: lim, OnFull: OnFullFreeze})
	must(t, err)
	v := vol(t, p, "a")
	must(t, v.WriteAt(pat(1024, 7), 0, true))
	_, err = p.CreateSnapshots(bg, []SnapshotRequest{{LUN: "a", Name: "s1"}}, SnapshotOptions{})
	must(t, err)
	err = v.Zero(0, 1024*blockSize, false, true)
	t.Logf("zero: %v", err)
	if err == nil {
		expect(t, p, "a", 5, 0, "zeroed")
	}
	must(t, p.Close())
}

// 4: shrink of a thick LUN
func TestMendedShrinkThick(t *testing.T) {
	fs := vfs.NewCrashableMem()
	p := openT(t, fs, Options{Manual: true})
	zero := &Amount{}
	*zero, _ = ParseAmount("0")
	_, err := p.CreateLUN(bg, CreateLUN{Name: "a", SizeBytes: 512 << 20, Thick: true, Reserve: zero})
	must(t, err)
	before := p.Status()
	info, err := p.ResizeLUN(bg, "a", 16<<20, true)
	must(t, err)
	after := p.Status()
	t.Logf("used %d, free before %d after %d", info.UsedBytes, before.FreeBytes, after.FreeBytes)
	if info.UsedBytes != 0 {
		t.Errorf("used %d of an empty LUN", info.UsedBytes)
	}
	must(t, p.Close())
}

// 5: two large writes at a full area of policy recycle
func TestMendedTwoBigWrites(t *testing.T) {
	p := openT(t, vfs.NewMem(), Options{SegmentBytes: 64 << 20, Capacity: 4 << 30})
	lim := &Amount{}
	*lim, _ = ParseAmount("32MiB")
	_, err := p.CreateLUN(bg, CreateLUN{Name: "a", SizeBytes: 128 << 20, Limit: lim})
	must(t, err)
	v := vol(t, p, "a")
	must(t, v.WriteAt(pat(8192, 7), 0, true))
	must(t, v.WriteAt(pat(8192, 7), 32<<20, true))
	_, err = p.CreateSnapshots(bg, []SnapshotRequest{{LUN: "a", Name: "s1"}}, SnapshotOptions{})
	must(t, err)
	must(t, v.WriteAt(pat(6000, 8), 0, true)) // 23 MiB in the area
	_, err = p.CreateSnapshots(bg, []SnapshotRequest{{LUN: "a", Name: "s2"}}, SnapshotOptions{})
	must(t, err)
	done := make(chan error, 2)
	for i := range 2 {
		go func() { done <- v.WriteAt(pat(8192, byte(20+i)), int64(i)*(32<<20), false) }()
	}
	for range 2 {
		select {
		case err := <-done:
			t.Logf("write: %v", err)
		case <-time.After(50 * time.Second):
			panic("two writes hang")
		}
	}
	must(t, p.Close())
}

// A rollback that keeps nothing needs no room in a full area.
func TestMendedDiscard(t *testing.T) {
	p := openT(t, vfs.NewMem(), Options{Manual: true})
	lim := &Amount{}
	*lim, _ = ParseAmount("1MiB")
	_, err := p.CreateLUN(bg, CreateLUN{Name: "a", SizeBytes: 64 << 20, Limit: lim})
	must(t, err)
	v := vol(t, p, "a")
	_, err = p.CreateSnapshots(bg, []SnapshotRequest{{LUN: "a", Name: "s1"}}, SnapshotOptions{})
	must(t, err)
	must(t, v.WriteAt(pat(1024, 7), 0, true)) // 4 MiB of new data, nothing in the area
	v.Close()
	_, err = p.Rollback(bg, "a", "s1", RollbackOptions{})
	t.Logf("keep: %v", err)
	_, err = p.Rollback(bg, "a", "s1", RollbackOptions{Discard: true})
	if err != nil {
		t.Errorf("discard: %v", err)
	}
}

// TestDefaultSegment: small pools have small segments, and large ones no larger than 64 MiB.
func TestDefaultSegment(t *testing.T) {
	for capacity, want := range map[int64]int64{
		1 << 20: 4 << 20, 1900 << 20: 4 << 20, 2 << 30: 8 << 20, 8<<30 - 1: 16 << 20, 16 << 30: 64 << 20, 1 << 50: 64 << 20,
	} {
		if got := defaultSegment(capacity); got != want {
			t.Errorf("a pool of %d bytes gets segments of %d, want %d", capacity, got, want)
		}
	}
}
