package lun_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"

	"lunar/lun"
)

// changed asks for a range and holds the answer to its form: in order, without
// gaps, neighbours different.
func changed(t *testing.T, v *lun.Volume, since string, off, n int64) (list [][2]int64) {
	t.Helper()
	at, last := off, false
	err := v.Changed(since, off, n, func(o, l int64, yes bool) bool {
		if o != at || l <= 0 || at > off && yes == last {
			t.Errorf("since %s, %d+%d: %d+%d %v follows on %d", since, off, n, o, l, yes, at)
		}
		at, last = o+l, yes
		if yes {
			list = append(list, [2]int64{o, l})
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	if at != off+n {
		t.Errorf("since %s, %d+%d: ends at %d", since, off, n, at)
	}
	return list
}

func changePool(t *testing.T, size int64) (*lun.Pool, *lun.Volume) {
	t.Helper()
	p, err := lun.Open(context.Background(), lun.Options{Dir: filepath.Join(t.TempDir(), "pool"), Capacity: 1 << 30, SegmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	if _, err := p.CreateLUN(context.Background(), lun.CreateLUN{Name: "v", SizeBytes: size}); err != nil {
		t.Fatal(err)
	}
	return p, openVolume(t, p, "v", "")
}

func openVolume(t *testing.T, p *lun.Pool, name, snap string) *lun.Volume {
	t.Helper()
	v, err := p.OpenVolume(name, snap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	return v
}

func snap(t *testing.T, p *lun.Pool, name string) {
	t.Helper()
	if _, err := p.CreateSnapshots(context.Background(), []lun.SnapshotRequest{{LUN: "v", Name: name}}, lun.SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, p *lun.Pool, name string) {
	t.Helper()
	if _, err := p.DeleteSnapshots(context.Background(), []lun.SnapshotRef{{LUN: "v", Name: name}}, lun.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestChanged: whatever was done between two versions, what is not reported as
// changed is the same, asked for as a whole and in parts; what nobody touched is
// not reported.
func TestChanged(t *testing.T) {
	const size, quiet = 16 << 20, 8 << 20 // the second half is left alone
	p, v := changePool(t, size)
	rng := rand.New(rand.NewPCG(1, 2))
	contents := map[string][]byte{}
	read := func(name string) {
		content := make([]byte, size)
		w := v
		if name != "" {
			w = openVolume(t, p, "v", name)
		}
		if err := w.ReadAt(content, 0); err != nil {
			t.Fatal(err)
		}
		contents[name] = content
	}
	if err := v.WriteAt(bytes.Repeat([]byte{7}, 64<<10), quiet, false); err != nil {
		t.Fatal(err)
	}
	for round := range 6 {
		name := fmt.Sprint("s", round)
		snap(t, p, name)
		read(name)
		for range 20 {
			off := rng.Int64N(quiet - 300<<10)
			n := 1 + rng.Int64N(200<<10)
			var err error
			switch rng.IntN(4) {
			case 0:
				err = v.Trim(off, n, false)
			case 1:
				err = v.Zero(off, n, rng.IntN(2) == 0, false)
			default:
				err = v.WriteAt(bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, int(n)), off, false)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if round == 3 {
			remove(t, p, "s1") // merged while the others are compared
			delete(contents, "s1")
		}
	}
	read("")
	for name, content := range contents {
		w := v
		if name != "" {
			w = openVolume(t, p, "v", name)
		}
		for since, old := range contents {
			if since == "" {
				continue
			}
			whole := changed(t, w, since, 0, size)
			same := bytes.Clone(content)
			for _, r := range whole {
				copy(same[r[0]:r[0]+r[1]], old[r[0]:r[0]+r[1]])
				if r[0]+r[1] > quiet {
					t.Errorf("%q since %s: %v was not touched", name, since, r)
				}
			}
			if !bytes.Equal(same, old) {
				t.Errorf("%q since %s: a difference is not reported", name, since)
			}
			if name == since && len(whole) > 0 {
				t.Errorf("%s differs from itself: %v", name, whole)
			}
			var parts int64
			for off := int64(0); off < size; off += 3<<20 + 512 {
				for _, r := range changed(t, w, since, off, min(3<<20+512, size-off)) {
					parts += r[1]
				}
			}
			for _, r := range whole {
				parts -= r[1]
			}
			if parts != 0 {
				t.Errorf("%q since %s: asked for in parts, %d bytes more", name, since, parts)
			}
		}
	}
}

// TestChangedSize: what a LUN has grown by differs, in whatever part one asks.
func TestChangedSize(t *testing.T) {
	p, v := changePool(t, 4<<20)
	snap(t, p, "small")
	if _, err := p.ResizeLUN(context.Background(), "v", 16<<20, false); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][4]int64{{0, 16 << 20, 4 << 20, 12 << 20}, {6 << 20, 1 << 20, 6 << 20, 1 << 20}, {3 << 20, 2 << 20, 4 << 20, 1 << 20}, {15<<20 + 512, 512, 15<<20 + 512, 512}} {
		list := changed(t, v, "small", c[0], c[1])
		if len(list) != 1 || list[0] != [2]int64{c[2], c[3]} {
			t.Errorf("%d+%d: %v", c[0], c[1], list)
		}
	}
	if list := changed(t, v, "small", 0, 4<<20); len(list) != 0 {
		t.Errorf("%v", list)
	}
}

// TestChangedKeepsItsSnapshot: a handle goes on comparing with the snapshot that
// it began with, deleted and made anew or not.
func TestChangedKeepsItsSnapshot(t *testing.T) {
	p, v := changePool(t, 4<<20)
	snap(t, p, "s")
	block := bytes.Repeat([]byte{1}, 4096)
	if err := v.WriteAt(block, 0, false); err != nil {
		t.Fatal(err)
	}
	want := func(what string, w *lun.Volume, blocks ...int64) {
		t.Helper()
		list := changed(t, w, "s", 0, 4<<20)
		ok := len(list) == len(blocks)
		for i := range list {
			ok = ok && list[i] == [2]int64{blocks[i] * 4096, 4096}
		}
		if !ok {
			t.Errorf("%s: %v, want blocks %v", what, list, blocks)
		}
	}
	want("first", v, 0)
	if got := v.ChangedContexts(); len(got) != 1 || got[0] != "s" {
		t.Errorf("contexts: %v", got)
	}
	remove(t, p, "s")
	want("deleted", v, 0)
	if got := v.ChangedContexts(); len(got) != 0 {
		t.Errorf("contexts: %v", got)
	}
	snap(t, p, "s")
	if err := v.WriteAt(block, 8192, false); err != nil {
		t.Fatal(err)
	}
	want("made anew, the old handle", v, 0, 2)
	want("made anew, a new handle", openVolume(t, p, "v", ""), 2)
	if err := v.Changed("nothing", 0, 4096, nil); !errors.Is(err, lun.ErrNotFound) {
		t.Errorf("a snapshot that is not there: %v", err)
	}

	// A new name of the LUN changes nothing, and a rollback ends the handle.
	frozen := openVolume(t, p, "v", "s")
	if _, err := p.RenameLUN(context.Background(), "v", "w"); err != nil {
		t.Fatal(err)
	}
	if list := changed(t, frozen, "s", 0, 4<<20); len(list) != 0 {
		t.Errorf("after a new name: %v", list)
	}
	if _, err := p.Rollback(context.Background(), "w", "s", lun.RollbackOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := v.Changed("s", 0, 4096, func(int64, int64, bool) bool { return true }); err == nil {
		t.Error("a LUN that was rolled back still answers")
	}
}

func TestPrefetch(t *testing.T) {
	p, v := changePool(t, 64<<20)
	if err := v.WriteAt(bytes.Repeat([]byte{1}, 8<<20), 4096, true); err != nil {
		t.Fatal(err)
	}
	snap(t, p, "s")
	for _, w := range []*lun.Volume{v, openVolume(t, p, "v", "s")} {
		for _, r := range [][2]int64{{0, 64 << 20}, {0, 0}, {64<<20 - 1, 1}, {5000, 10}, {4096, 8 << 20}} {
			if err := w.Prefetch(r[0], r[1]); err != nil {
				t.Errorf("%v: %v", r, err)
			}
		}
		if err := w.Prefetch(64<<20, 1); !errors.Is(err, lun.ErrInvalid) {
			t.Errorf("beyond the end: %v", err)
		}
	}
}

func TestFastZero(t *testing.T) {
	_, v := changePool(t, 1<<20+512)
	for r, want := range map[[2]int64]bool{{0, 64 << 10}: true, {4096, 1<<20 - 4096}: true, {1<<20 - 64<<10, 64<<10 + 512}: true, {0, 1<<20 + 512}: true, {0, 60 << 10}: false, {1 << 20, 512}: false, {512, 1 << 19}: false, {0, 1<<19 + 512}: false} {
		if got := v.FastZero(r[0], r[1]); got != want {
			t.Errorf("%v: %v", r, got)
		}
	}
}

// TestChangedUnderMerges: while snapshots between the two come and go and are
// merged, no difference that was there before the question is missed.
func TestChangedUnderMerges(t *testing.T) {
	const blocks = 2048 // four pages
	p, v := changePool(t, blocks*4096)
	snap(t, p, "base")
	reader := openVolume(t, p, "v", "")
	changed(t, reader, "base", 0, 4096) // from here on it keeps its snapshot
	var mu sync.Mutex
	written := map[int64]bool{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		rng := rand.New(rand.NewPCG(3, 4))
		var names []string
		for i := range 150 {
			for range 8 {
				b := rng.Int64N(blocks)
				if err := v.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 4096), b*4096, false); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				written[b] = true
				mu.Unlock()
			}
			name := fmt.Sprint("s", i)
			snap(t, p, name)
			if names = append(names, name); len(names) > 3 {
				k := rng.IntN(len(names))
				remove(t, p, names[k])
				names = append(names[:k], names[k+1:]...)
			}
		}
	}()
	for running, rounds := true, 0; running; rounds++ {
		select {
		case <-done:
			running = false
		default:
		}
		mu.Lock()
		want := maps.Clone(written)
		mu.Unlock()
		for _, r := range changed(t, reader, "base", 0, blocks*4096) {
			for b := r[0] / 4096; b < (r[0]+r[1])/4096; b++ {
				delete(want, b)
			}
		}
		if len(want) > 0 {
			t.Fatalf("round %d: changes of blocks %v are missing", rounds, want)
		}
	}
}
