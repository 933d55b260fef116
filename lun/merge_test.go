package lun

import (
	"bytes"
	"context"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A block that was trimmed above a snapshot must stay a hole when that snapshot
// is merged into the head: the head's record must keep its tombstone until the
// pages have been joined, although the head has no parent any more.
func TestTrimStaysThroughMerge(t *testing.T) {
	ctx := context.Background()
	o := Options{FS: vfs.NewCrashableMem(), Dir: "pool", Capacity: 1 << 30, Manual: true, SegmentBytes: 512 << 10}
	p, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateLUN(ctx, CreateLUN{Name: "vol", SizeBytes: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	v, err := p.OpenVolume("vol", "")
	if err != nil {
		t.Fatal(err)
	}
	old := bytes.Repeat([]byte{0xaa}, 8*blockSize)
	if err := v.WriteAt(old, 0, false); err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateSnapshots(ctx, []SnapshotRequest{{LUN: "vol", Name: "a"}}, SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.DeleteSnapshots(ctx, []SnapshotRef{{LUN: "vol", Name: "a"}}, DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := v.Trim(0, 4*blockSize, true); err != nil {
		t.Fatal(err)
	}
	if err := p.Reclaim(); err != nil {
		t.Fatal(err)
	}
	v.Close()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err = Open(ctx, o); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if v, err = p.OpenVolume("vol", ""); err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	got := make([]byte, 8*blockSize)
	if err := v.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:4*blockSize], make([]byte, 4*blockSize)) {
		t.Error("trimmed blocks show what they held before the TRIM")
	}
	if !bytes.Equal(got[4*blockSize:], old[4*blockSize:]) {
		t.Error("blocks that were not trimmed changed")
	}
	rep, err := p.Check(ctx, nil)
	if err != nil || !rep.OK {
		t.Errorf("check: %v %+v", err, rep.Problems)
	}
}

// A TRIM that finds nothing to do in a page that was merged into the head must
// not take the merged record away with the next snapshot's first write.
func TestIdleAbsorbThenSnapshot(t *testing.T) {
	ctx := context.Background()
	o := Options{FS: vfs.NewCrashableMem(), Dir: "pool", Capacity: 1 << 30, Manual: true, SegmentBytes: 512 << 10}
	p, _ := Open(ctx, o)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := p.CreateLUN(ctx, CreateLUN{Name: "vol", SizeBytes: 64 << 20})
	must(err)
	v, err := p.OpenVolume("vol", "")
	must(err)
	old := bytes.Repeat([]byte{0xaa}, 8*blockSize)
	must(v.WriteAt(old, 0, false))
	_, err = p.CreateSnapshots(ctx, []SnapshotRequest{{LUN: "vol", Name: "a"}}, SnapshotOptions{})
	must(err)
	_, err = p.DeleteSnapshots(ctx, []SnapshotRef{{LUN: "vol", Name: "a"}}, DeleteOptions{Wait: true})
	must(err)
	must(v.Trim(100*blockSize, 4*blockSize, true)) // a hole already
	_, err = p.CreateSnapshots(ctx, []SnapshotRequest{{LUN: "vol", Name: "b"}}, SnapshotOptions{})
	must(err)
	must(v.WriteAt(old[:blockSize], 200*blockSize, true))
	v.Close()
	must(p.Close())
	p, err = Open(ctx, o)
	must(err)
	defer p.Close()
	v, err = p.OpenVolume("vol", "")
	must(err)
	defer v.Close()
	got := make([]byte, 8*blockSize)
	must(v.ReadAt(got, 0))
	if !bytes.Equal(got, old) {
		t.Error("content lost")
	}
	rep, err := p.Check(ctx, nil)
	if err != nil || !rep.OK {
		t.Errorf("check: %v %+v", err, rep.Problems)
	}
}
