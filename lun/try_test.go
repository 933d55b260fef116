package lun

import (
	"errors"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestTryWrite: a write that must not wait is done where there is space, and does nothing at all where it would have to wait or
// to be refused; then the buffer is still the caller's.
func TestTryWrite(t *testing.T) {
	p := openT(t, vfs.NewMem(), Options{Manual: true})
	newLUNT(t, p, CreateLUN{Name: "a", SizeBytes: 1 << 20, Limit: &Amount{Bytes: blockSize}, OnFull: OnFullFreeze})
	v := vol(t, p, "a")
	defer v.Close()
	try := func(b byte, block, n int, owned, want bool) {
		t.Helper()
		data := pat(n, b)
		if owned {
			data = v.Buffer(n * blockSize)
			copy(data, pat(n, b))
		}
		done, err := v.TryWrite(data, int64(block)*blockSize, owned)
		if err != nil || done != want {
			t.Errorf("TryWrite of %d blocks at %d: %v, %v", n, block, done, err)
		}
		if owned && !done {
			v.Discard(data)
		}
	}
	try(1, 0, 4, false, true)
	try(2, 4, 32, true, true)
	if done, err := v.TryWrite([]byte{3, 3, 3}, 40*blockSize+7, false); !done || err != nil {
		t.Errorf("part of a block: %v, %v", done, err)
	}
	_, err := p.CreateSnapshots(bg, []SnapshotRequest{{LUN: "a", Name: "s"}}, SnapshotOptions{})
	must(t, err)
	// The area has room for one block, and then none: what the snapshot holds cannot be overwritten.
	try(8, 10, 1, false, true)
	try(9, 0, 1, false, false)
	try(9, 0, 1, true, false)
	if done, err := v.TryWrite([]byte{9}, 40*blockSize+7, false); done || err != nil {
		t.Errorf("part of a block that is held: %v, %v", done, err)
	}
	try(4, 50, 1, false, true) // a hole needs none
	if err := v.WriteAt(pat(1, 9), 0, false); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("WriteAt says %v", err)
	}
	for block, b := range map[int]byte{0: 1, 3: 1, 4: 2, 35: 2, 10: 8, 50: 4} {
		expect(t, p, "a", block, b, "after refusals")
	}
	if done, err := v.TryWrite(pat(1, 1), 1<<20, false); !done || err == nil {
		t.Errorf("beyond the end: %v, %v", done, err)
	}
	report, err := p.Check(bg, nil)
	if err != nil || !report.OK {
		t.Errorf("check: %+v, %v", report, err)
	}
}
