package lun

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func newLUNT(t *testing.T, p *Pool, r CreateLUN) {
	t.Helper()
	_, err := p.CreateLUN(bg, r)
	must(t, err)
}

func snapT(t *testing.T, p *Pool, lun, name string) {
	t.Helper()
	_, err := p.CreateSnapshots(bg, []SnapshotRequest{{LUN: lun, Name: name}}, SnapshotOptions{})
	must(t, err)
}

func resizeT(t *testing.T, p *Pool, lun string, size int64) {
	t.Helper()
	info, err := p.ResizeLUN(bg, lun, size, true)
	must(t, err)
	if info.SizeBytes != size {
		t.Errorf("resize to %d answers %d", size, info.SizeBytes)
	}
}

func checkT(t *testing.T, p *Pool) {
	t.Helper()
	rep, err := p.Check(bg, nil)
	must(t, err)
	if !rep.OK {
		t.Errorf("check: %+v", rep.Problems)
	}
}

// wantHole reads bytes that must be zero.
func wantHole(t *testing.T, p *Pool, lun string, off, n int64) {
	t.Helper()
	v := vol(t, p, lun)
	defer v.Close()
	b := make([]byte, n)
	must(t, v.ReadAt(b, off))
	for i, c := range b {
		if c != 0 {
			t.Errorf("%s: byte %d is %#x, want a zero: what was cut off came back", lun, off+int64(i), c)
			return
		}
	}
}

// A rollback across a resize brings the size back, and with it what a thick LUN
// is promised; without room for that it is refused.
func TestRollbackAcrossResizeThick(t *testing.T) {
	p := openT(t, vfs.NewMem(), Options{Manual: true})
	none := &Amount{Bytes: 0}
	newLUNT(t, p, CreateLUN{Name: "a", SizeBytes: 64 << 20, Thick: true, Reserve: none})
	snapT(t, p, "a", "small")
	resizeT(t, p, "a", 512<<20)
	snapT(t, p, "a", "large")
	promised := p.Status().PromisedBytes

	_, err := p.Rollback(bg, "a", "small", RollbackOptions{})
	must(t, err)
	if got := promised - p.Status().PromisedBytes; got != 448<<20 {
		t.Errorf("the rollback from 512 to 64 MiB gave %d MiB of promises back, want 448", got>>20)
	}
	newLUNT(t, p, CreateLUN{Name: "b", SizeBytes: 768 << 20, Thick: true, Reserve: none})
	if _, err = p.Rollback(bg, "a", "large", RollbackOptions{}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("rollback to 512 MiB with the pool promised to others: %v, want ErrNoSpace", err)
	}
	if info, _ := p.LUN("a"); info.SizeBytes != 64<<20 || info.Snapshots != 3 {
		t.Errorf("the refused rollback changed something: %+v", info)
	}
	_, err = p.DeleteLUN(bg, "b", false)
	must(t, err)
	must(t, p.Reclaim())
	_, err = p.Rollback(bg, "a", "large", RollbackOptions{})
	must(t, err)
	if got := p.Status().PromisedBytes; got != promised {
		t.Errorf("promised %d, before it was %d", got, promised)
	}
	checkT(t, p)
}

// Percentages of an area follow the size, also through a rollback.
func TestRollbackAcrossResizeArea(t *testing.T) {
	p := openT(t, vfs.NewMem(), Options{Manual: true})
	newLUNT(t, p, CreateLUN{Name: "a", SizeBytes: 100 << 20, Reserve: &Amount{Percent: 10}, Limit: &Amount{Percent: 50}})
	snapT(t, p, "a", "small")
	resizeT(t, p, "a", 200<<20)
	_, err := p.Rollback(bg, "a", "small", RollbackOptions{})
	must(t, err)
	info, err := p.LUN("a")
	must(t, err)
	a := p.reserved(p.tree.LUNs()[0].ID)
	if info.Area.ReserveBytes != 10<<20 || *info.Area.LimitBytes != 50<<20 || a.Reserve != 10<<8 || a.Limit != 50<<8 {
		t.Errorf("area %+v, ledger %+v; want 10 and 50 MiB", info.Area, a)
	}
}

// Who has to disconnect clients before a shrink takes the LUN offline.
func TestShrinkOffline(t *testing.T) {
	p := openT(t, vfs.NewMem(), Options{Manual: true})
	newLUNT(t, p, CreateLUN{Name: "a", SizeBytes: 8 << 20})
	_, err := p.SetOnline(bg, "a", false)
	must(t, err)
	resizeT(t, p, "a", 4<<20)
	resizeT(t, p, "a", 8<<20)
}

// A shrink needs no room: what a snapshot holds behind the new end goes to the
// area, above its limit if it must. What was cut off does not come back.
func TestShrinkWithFullArea(t *testing.T) {
	p := openT(t, vfs.NewMem(), Options{Manual: true})
	newLUNT(t, p, CreateLUN{Name: "a", SizeBytes: 16 << 20, Limit: &Amount{Bytes: 1 << 20}, OnFull: OnFullFreeze})
	v := vol(t, p, "a")
	must(t, v.WriteAt(pat(4096, 7), 0, true))
	v.Close()
	snapT(t, p, "a", "s")
	resizeT(t, p, "a", 2<<20)
	info, err := p.LUN("a")
	must(t, err)
	if info.UsedBytes != 2<<20 || info.Area.UsedBytes != 14<<20 {
		t.Errorf("used %d, area %d; want 2 and 14 MiB", info.UsedBytes, info.Area.UsedBytes)
	}
	resizeT(t, p, "a", 16<<20)
	wantHole(t, p, "a", 2<<20, 14<<20)
	checkT(t, p)
	s, err := p.OpenVolume("a", "s")
	must(t, err)
	defer s.Close()
	got := make([]byte, 16<<20)
	must(t, s.ReadAt(got, 0))
	if !bytes.Equal(got, pat(4096, 7)) {
		t.Error("the snapshot has changed")
	}
}

// Sizes need not be whole blocks.
func TestResizeWithinBlock(t *testing.T) {
	p := openT(t, vfs.NewMem(), Options{Manual: true})
	newLUNT(t, p, CreateLUN{Name: "a", SizeBytes: 5 * 4096})
	v := vol(t, p, "a")
	must(t, v.WriteAt(pat(5, 7), 0, true))
	v.Close()
	snapT(t, p, "a", "s")
	resizeT(t, p, "a", 2*4096+512)
	snapT(t, p, "a", "cut")
	resizeT(t, p, "a", 3*4096+1024)
	wantHole(t, p, "a", 2*4096+512, 4096+512)
	_, err := p.Clone(bg, "a", "cut", "c", false)
	must(t, err)
	resizeT(t, p, "c", 5*4096)
	wantHole(t, p, "c", 2*4096+512, 3*4096-512)
	_, err = p.Rollback(bg, "a", "s", RollbackOptions{})
	must(t, err)
	expect(t, p, "a", 4, 7, "rolled back to the size before")
	_, err = p.Rollback(bg, "a", "cut", RollbackOptions{})
	must(t, err)
	resizeT(t, p, "a", 5*4096)
	wantHole(t, p, "a", 2*4096+512, 3*4096-512)
	checkT(t, p)
}

// An open volume goes on while its LUN grows.
func TestGrowWhileOpen(t *testing.T) {
	p := openT(t, vfs.NewMem(), Options{Manual: true})
	newLUNT(t, p, CreateLUN{Name: "a", SizeBytes: 4 << 20})
	v := vol(t, p, "a")
	defer v.Close()
	must(t, v.WriteAt(pat(1, 7), 4<<20-4096, false))
	if err := v.WriteAt(pat(1, 8), 4<<20, false); !errors.Is(err, ErrInvalid) {
		t.Errorf("write behind the end: %v", err)
	}
	resizeT(t, p, "a", 8<<20)
	must(t, v.WriteAt(pat(1, 8), 4<<20, false))
	expect(t, p, "a", 1023, 7, "written before")
	expect(t, p, "a", 1024, 8, "written behind the old end")
	checkT(t, p)
}
