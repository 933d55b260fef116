package lun

import (
	"bytes"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestZeroKeepsHoles: WRITE_ZEROES that begins or ends inside a block leaves a hole a hole, and zeroes what is not one; with
// NO_HOLE the parts are paid for as well.
func TestZeroKeepsHoles(t *testing.T) {
	fs := vfs.NewMem()
	p := openT(t, fs, Options{Manual: true})
	newLUNT(t, p, CreateLUN{Name: "a", SizeBytes: 1 << 20})
	v := vol(t, p, "a")
	model := make([]byte, 1<<20)
	used := func(want int64, what string) {
		t.Helper()
		info, err := p.LUN("a")
		must(t, err)
		if info.UsedBytes != want*blockSize {
			t.Errorf("%s: %d blocks are used, want %d", what, info.UsedBytes/blockSize, want)
		}
		got := make([]byte, len(model))
		must(t, v.ReadAt(got, 0))
		if !bytes.Equal(got, model) {
			t.Errorf("%s: the content is wrong", what)
		}
	}
	zero := func(off, n int64, noHole bool, want int64, what string) {
		t.Helper()
		must(t, v.Zero(off, n, noHole, true))
		clear(model[off : off+n])
		used(want, what)
	}
	zero(100, 50, false, 0, "inside a hole")
	zero(100, 2*blockSize, false, 0, "from hole to hole")
	zero(1<<20-700, 700, false, 0, "the end of the device")
	must(t, v.WriteAt(pat(3, 7), 10*blockSize, false))
	copy(model[10*blockSize:], pat(3, 7))
	used(3, "three blocks written")
	zero(10*blockSize+5, 10, false, 3, "inside data")
	zero(9*blockSize+5, blockSize, false, 3, "from a hole into data")
	zero(12*blockSize+5, blockSize, false, 3, "from data into a hole")
	zero(9*blockSize+5, 4*blockSize, false, 0+0, "from hole to hole over data")
	zero(30*blockSize+5, blockSize, true, 2, "parts of holes that stay paid for")
	zero(30*blockSize+5, blockSize, true, 2, "again")
	zero(30*blockSize+9, 100, false, 2, "a part of what is paid for")
	must(t, p.Checkpoint())
	checkT(t, p)
	must(t, v.Close())
}
