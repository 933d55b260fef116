package lun

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// backUp copies the index twice, so that both slots are of now, unless once is asked for.
func (m *model) backUp(times int) {
	m.t.Helper()
	for range times {
		m.check(m.p.BackUp(), "backup")
	}
	m.settle()
	m.p.releasePinned()
}

// files lists the files of a folder of the pool.
func (m *model) files(dir string) (out []string) {
	m.t.Helper()
	names, err := m.fs.List(m.fs.PathJoin(m.o.Dir, dir))
	m.check(err, "list %s", dir)
	for _, n := range names {
		out = append(out, m.fs.PathJoin(m.o.Dir, dir, n))
	}
	return out
}

// each does something to the files of a folder whose name has a part; there must be one.
func (m *model) each(dir, part string, fn func(path string)) {
	m.t.Helper()
	n := 0
	for _, path := range m.files(dir) {
		if strings.Contains(path[strings.LastIndex(path, "/")+1:], part) {
			fn(path)
			n++
		}
	}
	if n == 0 {
		m.t.Fatalf("%s has no file with %q: %v", dir, part, m.files(dir))
	}
}

func (m *model) flip(path string) {
	m.t.Helper()
	info, err := m.fs.Stat(path)
	m.check(err, "file %s", path)
	size := info.Size()
	for i := size / 5; i < size; i += max(size/3, 1) {
		m.check(m.fs.Damage(path, i, 1, func(b []byte) { b[0] ^= 0x5a }), "damage")
	}
}

func (m *model) remove(path string) { m.check(m.fs.Remove(path), "remove %s", path) }

// harms are the ways in which an index is lost or damaged.
var harms = []struct {
	name string
	do   func(m *model)
}{
	{"folder gone", func(m *model) { m.check(m.fs.RemoveAll(m.fs.PathJoin(m.o.Dir, indexDir)), "remove") }},
	{"manifest gone", func(m *model) { m.each(indexDir, "MANIFEST-", m.remove) }},
	{"manifest flipped", func(m *model) { m.each(indexDir, "MANIFEST-", m.flip) }},
	{"marker of the manifest gone", func(m *model) { m.each(indexDir, "marker.manifest", m.remove) }},
	{"marker of our format gone", func(m *model) { m.each(indexDir, "marker.lunar-index", m.remove) }},
	{"table flipped", func(m *model) { m.each(indexDir, ".sst", m.flip) }},
	{"table gone", func(m *model) { m.each(indexDir, ".sst", m.remove) }},
	{"log flipped", func(m *model) { m.each(indexDir, ".log", m.flip) }},
}

func (m *model) repair(r RepairOptions) ([]string, error) {
	o := m.o
	o.FS = m.fs
	return Repair(context.Background(), o, r)
}

// busy makes a pool with branches, clones, deleted and merged snapshots, in
// several sessions, with a copy of the index in the middle of it and another
// later; the log goes on behind both. Everything is flushed at the end.
func busy(t *testing.T) *model {
	m := scripted(t)
	m.addLUN("b")
	m.put("a", 0, 600)
	m.put("b", 0, 100)
	m.snap("a", "s1")
	m.put("a", 100, 300)
	m.snap("a", "s2")
	m.put("a", 200, 200)
	m.snap("a", "s3")
	m.backUp(1)
	m.put("a", 0, 50)
	m.snap("a", "s4")
	m.dropSnap("a", "s2")
	m.check(m.p.Reclaim(), "reclaim") // merged: the first copy knows nothing of it
	m.cloneOf("a", "s3", "c")
	m.put("c", 300, 100)
	m.put("b", 0, 100)
	m.tidy()
	m.cut(0) // another session
	m.put("a", 500, 100)
	m.snap("c", "t")
	m.put("c", 310, 20)
	m.backUp(1)
	m.dropSnap("a", "s1")
	m.dropSnap("a", "s3")
	m.check(m.p.Reclaim(), "reclaim")
	m.put("a", 0, 200)
	m.back("a", "s4")
	m.put("a", 20, 5)
	m.volume("b", func(v *Volume) error { return v.Trim(0, 50*blockSize, false) })
	for i := range 50 {
		m.pend = append(m.pend, delta{"b", i, 0})
	}
	m.sync("b")
	m.tidy()
	m.put("c", 0, 60)
	m.sync("c")
	return m
}

func (m *model) dropSnap(lun, name string) {
	m.t.Helper()
	m.check(deleteSnap(m.p, lun, name), "delete")
	m.settle()
	delete(m.snaps[lun], name)
}

func (m *model) cloneOf(lun, snap, name string) {
	m.t.Helper()
	_, err := m.p.Clone(context.Background(), lun, snap, name, false)
	m.check(err, "clone")
	m.settle()
	m.heads[name], m.snaps[name] = m.snaps[lun][snap].clone(), map[string]stamps{}
}

func (m *model) back(lun, snap string) {
	m.t.Helper()
	_, err := m.p.Rollback(context.Background(), lun, snap, RollbackOptions{Discard: true})
	m.check(err, "rollback")
	m.settle()
	m.heads[lun] = m.snaps[lun][snap].clone()
}

// tidy moves what is live out of every segment, without touching the copies of
// the index: Clean would make new ones.
func (m *model) tidy() {
	m.t.Helper()
	m.check(m.p.log.Rotate(), "rotate")
	m.check(m.p.Checkpoint(), "checkpoint")
	_, moved, err := m.p.cleanSegments(bestVictims(m.p.victims(), 97, true, 1<<30))
	m.check(err, "clean")
	m.settle()
	m.logf("moved %d", moved)
}

func TestRepairOfAnIndex(t *testing.T) {
	for i, h := range harms {
		if raceEnabled && i%3 != 0 {
			continue // nothing here runs beside another thing
		}
		for _, slotGone := range []bool{false, true} {
			if slotGone && h.name != "folder gone" && h.name != "table flipped" {
				continue
			}
			t.Run(fmt.Sprintf("%s, newest copy damaged %v", h.name, slotGone), func(t *testing.T) {
				m := busy(t)
				m.p.Abandon()
				h.do(m)
				if slotGone {
					m.each(backupDir+"/2", ".sst", m.flip)
				}
				before := m.everything()
				said, err := m.repair(RepairOptions{DryRun: true})
				m.check(err, "dry run")
				if !strings.Contains(strings.Join(said, "\n"), "to be done: ") {
					t.Errorf("dry run says %q", said)
				}
				if after := m.everything(); after != before {
					t.Errorf("the dry run changed files:\n%s\nwas\n%s", after, before)
				}
				said, err = m.repair(RepairOptions{})
				m.check(err, "repair")
				t.Logf("%s", strings.Join(said, "\n"))
				m.open()
				m.verify()
				m.put("a", 0, 30)
				m.sync("a")
				m.cut(0)
			})
		}
	}
}

// everything describes all files of the pool, but for the lock's.
func (m *model) everything() string {
	var b strings.Builder
	var walk func(dir string)
	walk = func(dir string) {
		names, err := m.fs.List(dir)
		m.check(err, "list")
		sortStrings(names)
		for _, n := range names {
			path := m.fs.PathJoin(dir, n)
			info, err := m.fs.Stat(path)
			m.check(err, "stat")
			if info.IsDir() {
				walk(path)
			} else if !strings.HasPrefix(strings.ToLower(n), "lock") {
				body, err := readFile(m.fs, path)
				m.check(err, "read")
				fmt.Fprintf(&b, "%s %d %x\n", path, len(body), sumOf(body))
			}
		}
	}
	walk(m.o.Dir)
	return b.String()
}

func sumOf(b []byte) (h uint64) {
	for _, c := range b {
		h = h*1099511628211 + uint64(c) + 1
	}
	return h
}

// An intact index is left alone; a folder that is no pool is not made one.
func TestRepairOfNothing(t *testing.T) {
	m := busy(t)
	m.p.Abandon()
	said, err := m.repair(RepairOptions{})
	m.check(err, "repair")
	if len(said) != 1 || !strings.Contains(said[0], "is consistent") {
		t.Errorf("repair of an intact pool says %q", said)
	}
	m.open()
	m.verify()
	fs := vfs.NewMem()
	if _, err := Repair(context.Background(), Options{Dir: "none", FS: fs}, RepairOptions{}); err == nil {
		t.Error("a repair of nothing succeeded")
	}
	if names, _ := fs.List("."); len(names) > 0 {
		t.Errorf("it left %v", names)
	}
}

// Random operations with copies of the index at random moments; in the end, and
// on the way, the index is lost and the content compared.
func TestRepairModel(t *testing.T) {
	runs, ops := 3, 200
	if raceEnabled {
		runs, ops = 1, 80
	}
	if os.Getenv("LUNAR_LONG") != "" {
		runs, ops = 40, 400
	}
	for i := range runs {
		seed := uint64(i + 1)
		if *modelSeed != 0 {
			seed = *modelSeed
		}
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			m := newModel(t, seed)
			defer func() { m.p.Abandon() }()
			rng := rand.New(rand.NewPCG(seed, 7))
			for n := range ops {
				m.step()
				switch k := rng.IntN(40); {
				case k == 0:
					m.logf("backup")
					m.backUp(1)
				case k == 1:
					m.logf("move everything")
					m.tidy()
				case k == 2 && n > 20 && len(m.p.Backups()) > 0:
					m.loseIndex()
				}
			}
			m.backUp(1)
			for range 20 {
				m.step()
			}
			m.loseIndex()
		})
	}
}

// loseIndex flushes, loses the index, repairs and compares.
func (m *model) loseIndex() {
	m.t.Helper()
	m.logf("the index is lost; copies: %+v", m.p.Backups())
	m.settle0()
	if len(m.heads) == 0 {
		return
	}
	m.p.Abandon()
	if len(m.p.Backups()) == 0 {
		m.open()
		return
	}
	m.check(m.fs.RemoveAll(m.fs.PathJoin(m.o.Dir, indexDir)), "remove")
	said, err := m.repair(RepairOptions{})
	m.check(err, "repair")
	m.logf("%s", strings.Join(said, "\n"))
	m.open()
	m.verify()
	m.settle()
}

// Without index and copies the segments still tell what the LUNs hold: with their
// names where the records that gave them are there, and never made up bytes.
func TestSalvage(t *testing.T) {
	m := scripted(t)
	m.addLUN("b")
	m.put("a", 0, 600)
	m.snap("a", "s1")
	m.put("a", 100, 300)
	m.put("b", 5, 20)
	m.snap("a", "s2")
	m.cloneOf("a", "s1", "c")
	m.put("c", 590, 20)
	m.cut(0)
	m.put("a", 0, 10)
	m.back("a", "s2")
	m.put("a", 3, 4)
	m.volume("b", func(v *Volume) error { return v.Trim(10*blockSize, 5*blockSize, false) })
	for i := range 5 {
		m.pend = append(m.pend, delta{"b", 10 + i, 0})
	}
	m.sync("b")
	m.p.Abandon()
	m.check(m.fs.RemoveAll(m.fs.PathJoin(m.o.Dir, indexDir)), "remove")
	before := m.everything()
	if _, err := m.repair(RepairOptions{}); err == nil || !strings.Contains(err.Error(), "--salvage") {
		t.Errorf("repair without a copy: %v", err)
	}
	if m.everything() != before {
		t.Error("a repair that failed changed something")
	}
	said, err := m.repair(RepairOptions{Salvage: true})
	m.check(err, "salvage")
	t.Logf("%s", strings.Join(said, "\n"))
	m.open()
	if st := m.p.Status(); st.State != "read-only" || !strings.Contains(*st.Reason, "without an index") {
		t.Errorf("%+v", st)
	}
	for lun, got := range m.compare() { // nothing was recycled: all of it is there
		for i := range got {
			if got[i] != m.heads[lun][i] {
				t.Fatalf("%s block %d holds stamp %d, want %d", lun, i, got[i], m.heads[lun][i])
			}
		}
	}
	v, err := m.p.OpenVolume("a", "")
	m.check(err, "open")
	if err := v.WriteAt(make([]byte, blockSize), 0, false); err == nil {
		t.Error("a write was taken")
	}
	m.check(v.Close(), "close")
}

// After cleaning, with the records of creation gone, the data is found under
// names that say so.
func TestSalvageWithoutNames(t *testing.T) {
	m := scripted(t)
	m.addLUN("b")
	m.put("a", 0, 600)
	m.put("b", 0, 100)
	m.snap("a", "s")
	m.put("a", 100, 300)
	for range 2 { // every record is a copy by now
		m.put("b", 50, 20)
		m.tidy()
		_, err := m.p.Clean(context.Background())
		m.check(err, "clean")
		m.settle()
	}
	m.p.Abandon()
	m.check(m.fs.RemoveAll(m.fs.PathJoin(m.o.Dir, indexDir)), "remove")
	said, err := m.repair(RepairOptions{Salvage: true})
	m.check(err, "salvage")
	t.Logf("%s", strings.Join(said, "\n"))
	if !strings.Contains(strings.Join(said, " "), "without their name: lost-") {
		t.Errorf("salvage says %q", said)
	}
	m.open()
	stamps := map[uint64]bool{}
	for _, l := range m.p.LUNs() {
		v, err := m.p.OpenVolume(l.Name, "")
		m.check(err, "open")
		b := make([]byte, blockSize)
		for at := int64(0); at+blockSize <= v.Size(); at += blockSize {
			if v.ReadAt(b, at) == nil {
				stamps[stampOf(t, b)] = true
			}
		}
		m.check(v.Close(), "close")
	}
	missing := 0
	for _, want := range m.heads {
		for _, s := range want {
			if s != 0 && !stamps[s] {
				missing++
			}
		}
	}
	if missing > 0 {
		t.Errorf("%d blocks of the heads are nowhere to be read", missing)
	}
}
