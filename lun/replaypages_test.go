package lun

import (
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestReplayByPage: what was written in any order, in two LUNs, across pages, overwritten, zeroed and trimmed in small and large
// ranges, between snapshots, a rollback and a clone, is there after an open that maps it page by page, by workers and by one
// alone; and all counters agree with the maps.
func TestReplayByPage(t *testing.T) {
	changes := 1200
	if raceEnabled {
		changes = 120
	}
	for _, manual := range []bool{true, false} {
		replayByPage(t, manual, changes)
	}
}

func replayByPage(t *testing.T, manual bool, changes int) {
	const blocks = 160 * 512 // two and a half times what one worker takes in a row
	fs := vfs.NewMem()
	o := Options{Manual: true, SegmentBytes: 4 << 20, Capacity: 4 << 30}
	p := openT(t, fs, o)
	random := rand.New(rand.NewPCG(4, 2))
	want, stamp := map[string][]uint64{}, uint64(0)
	for _, name := range []string{"a", "b"} {
		newLUNT(t, p, CreateLUN{Name: name, SizeBytes: blocks * blockSize})
		want[name] = make([]uint64, blocks)
	}
	change := func() {
		name := []string{"a", "b"}[random.IntN(2)]
		v, w := vol(t, p, name), want[name]
		defer v.Close()
		n := 1 + random.IntN(20)
		if random.IntN(50) == 0 {
			n = 1 + random.IntN(blocks/16)
		}
		at := random.IntN(blocks - n + 1)
		how := random.IntN(10)
		if n > 20 {
			how = random.IntN(2)
		}
		switch how {
		case 0:
			must(t, v.Trim(int64(at)*blockSize, int64(n)*blockSize, false))
		case 1:
			must(t, v.Zero(int64(at)*blockSize, int64(n)*blockSize, random.IntN(2) == 0, false))
		default:
			b := make([]byte, n*blockSize)
			for i := range n {
				stamp++
				fill(b[i*blockSize:(i+1)*blockSize], stamp)
				w[at+i] = stamp
			}
			must(t, v.WriteAt(b, int64(at)*blockSize, false))
			return
		}
		clear(w[at : at+n])
	}
	for i := range changes {
		change()
		switch i {
		case changes / 4:
			must(t, p.Checkpoint())
		case changes / 2:
			snapT(t, p, "a", "s")
			want["a@s"] = append([]uint64(nil), want["a"]...)
		case changes * 5 / 8:
			_, err := p.Clone(bg, "a", "s", "c", false)
			must(t, err)
			want["c"] = want["a@s"]
		case changes * 3 / 4:
			_, err := p.Rollback(bg, "a", "s", RollbackOptions{})
			must(t, err)
			copy(want["a"], want["a@s"])
		}
	}
	v := vol(t, p, "a")
	must(t, v.Flush())
	v.Close()
	p.Abandon()
	o.Manual = manual
	p = openT(t, fs, o)
	for name, w := range want {
		sameStamps(t, p, name, w)
	}
	checkT(t, p)
}

// sameStamps reads every block of an export.
func sameStamps(t *testing.T, p *Pool, export string, want []uint64) {
	t.Helper()
	lun, snapshot := export, ""
	if export == "a@s" {
		lun, snapshot = "a", "s"
	}
	v, err := p.OpenVolume(lun, snapshot)
	must(t, err)
	defer v.Close()
	const piece = 256
	b := make([]byte, piece*blockSize)
	for at := 0; at < len(want); at += piece {
		must(t, v.ReadAt(b, int64(at)*blockSize))
		for i := range piece {
			if got := stampOf(t, b[i*blockSize:(i+1)*blockSize]); got != want[at+i] {
				t.Fatalf("%s: block %d holds %d, want %d", export, at+i, got, want[at+i])
			}
		}
	}
}
