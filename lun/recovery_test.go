package lun

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"lunar/store/crashfs"
	"lunar/store/segment"
)

// Crashes at places that were chosen, where the model test chooses by chance.

// scripted is a model that a test drives step by step: small segments, one LUN.
func scripted(t *testing.T) *model { return scriptedIn(t, 64<<10) }

func scriptedIn(t *testing.T, segmentBytes int64) *model {
	m := &model{
		t: t, rng: rand.New(rand.NewPCG(1, 2)), fs: crashfs.New(),
		heads: map[string]stamps{}, snaps: map[string]map[string]stamps{},
		o: Options{
			Dir: "pool", Capacity: 1 << 30, Manual: true, Now: steppingClock(),
			SegmentBytes: segmentBytes, RecordBlocks: 8, IndexCache: 1 << 20,
		},
	}
	m.open()
	t.Cleanup(func() { m.p.Abandon() })
	m.addLUN("a")
	return m
}

func (m *model) addLUN(name string) {
	m.t.Helper()
	_, err := m.p.CreateLUN(context.Background(), CreateLUN{Name: name, SizeBytes: modelBlocks * blockSize})
	m.check(err, "create")
	m.settle()
	m.heads[name], m.snaps[name] = make(stamps, modelBlocks), map[string]stamps{}
}

// put writes n new stamps from block at on.
func (m *model) put(lun string, at, n int) {
	m.t.Helper()
	m.volume(lun, func(v *Volume) error {
		b := make([]byte, n*blockSize)
		for i := range n {
			m.next++
			fill(b[i*blockSize:(i+1)*blockSize], m.next)
			m.pend = append(m.pend, delta{lun, at + i, m.next})
		}
		return v.WriteAt(b, int64(at)*blockSize, false)
	})
}

func (m *model) sync(lun string) {
	m.t.Helper()
	m.volume(lun, func(v *Volume) error { return v.Flush() })
	m.settle()
}

func (m *model) snap(lun, name string) {
	m.t.Helper()
	_, err := m.p.CreateSnapshots(context.Background(), []SnapshotRequest{{LUN: lun, Name: name}}, SnapshotOptions{})
	m.check(err, "snapshot")
	m.settle()
	m.snaps[lun][name] = m.heads[lun].clone()
}

func (m *model) checkpoint() {
	m.t.Helper()
	m.check(m.p.Checkpoint(), "checkpoint")
	m.settle()
}

// loss is that of 0 or 100 percent, and of a random part where it is neither.
func (m *model) loss(percent int) crashfs.Loss {
	switch percent {
	case 0:
		return crashfs.LoseAll()
	case 100:
		return crashfs.KeepAll()
	}
	return crashfs.KeepSome(m.rng.Uint64())
}

// cut cuts the power, keeping percent of what was not synced, and verifies.
func (m *model) cut(percent int) {
	m.t.Helper()
	fs := m.fs.Image(m.loss(percent))
	m.p.Abandon()
	m.fs = fs
	m.open()
	m.prefix(m.compare())
	m.consistent()
}

// headers lists the records of the segment files, oldest first.
func (m *model) headers() (out []recordAt) {
	m.t.Helper()
	o := m.p.logOptions()
	numbers, err := segment.Segments(o)
	m.check(err, "segments")
	for _, n := range numbers {
		m.check(segment.ScanFile(o, n, func(h *segment.Header, at int64) error {
			out = append(out, recordAt{n, at, h.First, h.Last(), h.Epoch})
			return nil
		}), "scan of segment %d", n)
	}
	return out
}

type recordAt struct {
	number      uint64
	at          int64
	first, last segment.Seq
	epoch       uint64
}

// damage overwrites bytes of a segment file below the file system.
func (m *model) damage(number uint64, at int64, n int) {
	m.t.Helper()
	m.check(m.fs.Damage(m.fs.PathJoin(m.o.Dir, segmentDir, segment.Name(number)), at, n, func(b []byte) {
		for i := range b {
			b[i] ^= 0x5a
		}
	}), "damage")
}

// reuseScript makes segments die by overwriting, be released by a checkpoint,
// and be used again, with and without a snapshot that holds them.
var reuseScript = []func(m *model){
	func(m *model) { m.put("a", 0, 40) },
	func(m *model) { m.sync("a") },
	func(m *model) { m.put("a", 0, 40) }, // the first segments are dead
	func(m *model) { m.sync("a") },
	func(m *model) { m.checkpoint() }, // released
	func(m *model) { m.put("a", 100, 30) },
	func(m *model) { m.sync("a") }, // used again
	func(m *model) { m.put("a", 90, 45) },
	func(m *model) { m.sync("a") },
	func(m *model) { m.snap("a", "s") },
	func(m *model) { m.put("a", 90, 45) },
	func(m *model) { m.checkpoint() },
	func(m *model) { m.put("a", 85, 60) },
	func(m *model) { m.checkpoint() },
	func(m *model) { m.put("a", 0, 60) },
	func(m *model) { m.sync("a") },
}

func TestReusedSegmentsSurviveACrashAtEachStep(t *testing.T) {
	for k := 1; k <= len(reuseScript); k++ {
		for _, percent := range []int{0, 100} {
			t.Run(fmt.Sprintf("step=%d/kept=%d", k, percent), func(t *testing.T) {
				m := scripted(t)
				for _, step := range reuseScript[:k] {
					step(m)
				}
				m.cut(percent)
				m.put("a", 0, 20) // recovery left a pool that goes on
				m.sync("a")
				m.cut(0)
			})
		}
	}
}

// Records of equal length: after a crash the new record would lie exactly over
// the torn one, and the intact one behind it must not come back.
func TestRecordsBehindATearDoNotComeBack(t *testing.T) {
	for _, second := range []int{0, 100} {
		t.Run(fmt.Sprintf("kept=%d", second), func(t *testing.T) {
			m := scriptedIn(t, 512<<10) // a segment that is full would be synced
			m.put("a", 0, 4)
			m.sync("a")
			m.checkpoint()
			durable := m.p.log.Synced()
			for range 3 { // written out one by one, none synced
				m.put("a", 0, 4)
				m.check(m.p.log.Mark(), "mark")
			}
			if m.p.log.Synced() != durable {
				t.Fatal("writing a mark synced the log")
			}
			var loose []recordAt
			for _, h := range m.headers() {
				if h.first > durable {
					loose = append(loose, h)
				}
			}
			if len(loose) < 3 {
				t.Fatalf("%d records are not durable, want 3", len(loose))
			}
			fs := m.fs.Image(crashfs.KeepAll())
			m.p.Abandon()
			m.fs = fs
			m.damage(loose[1].number, loose[1].at, blockSize)
			m.open()
			m.prefix(m.compare())
			for range 3 { // the same lengths again
				m.put("a", 0, 4)
				m.sync("a")
				m.put("a", 0, 4)
				m.cut(second)
			}
		})
	}
}

func TestCrashAfterCrash(t *testing.T) {
	m := scripted(t)
	for i := range 24 {
		m.put("a", 0, 4)
		if i%3 == 0 {
			m.sync("a")
		}
		m.put("a", 2, 4)
		m.put("a", 8, 4)
		m.cut([]int{100, 0, 50}[i%3])
	}
}

// kill -9 leaves unsynced data in the page cache. What is visible after the
// restart, and was then flushed, must survive a power cut.
func TestFlushAfterKillCoversThePageCache(t *testing.T) {
	m := scripted(t)
	for range 4 {
		m.put("a", 0, 30)
		m.check(m.p.log.Mark(), "mark") // written out, not synced
		m.put("a", 10, 30)
		m.p.Abandon()
		m.open()
		m.prefix(m.compare())
		m.sync("a")
		m.cut(0)
	}
}

// cutter is a file system under a pool that cuts the power at an operation.
type cutter struct {
	mem   *crashfs.FS
	armed func(errorfs.Op) bool
	saved *crashfs.FS // as the power cut left it
}

func (c *cutter) String() string { return "cutter" }

func (c *cutter) MaybeError(op errorfs.Op) error {
	if c.saved != nil {
		return errIO
	}
	if c.armed != nil && c.armed(op) {
		c.saved = c.mem.Image(crashfs.LoseAll())
		return errIO
	}
	return nil
}

// A snapshot whose record was lost has given out identifiers: they must not be
// given out again, or replay would take old records for new ones.
func TestIdentifiersOfALostSnapshotDoNotComeBack(t *testing.T) {
	m := scripted(t)
	m.put("a", 0, 10)
	m.checkpoint()
	m.put("a", 5, 10)
	m.sync("a")
	m.p.Abandon()
	for range 3 {
		c := &cutter{mem: m.fs}
		o := m.o
		o.FS, o.PlainWrites = errorfs.Wrap(m.fs, c), true
		p, err := Open(context.Background(), o)
		m.check(err, "open")
		l, err := p.tree.LUNByName("a")
		m.check(err, "LUN")
		head := l.Head
		written := false // the snapshot's record, which the sync behind it makes durable
		c.armed = func(op errorfs.Op) bool {
			inLog := strings.HasSuffix(op.Path, ".seg")
			written = written || inLog && op.Kind == errorfs.OpFileWriteAt
			return written && inLog && (op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSync)
		}
		if _, err := p.CreateSnapshots(context.Background(), []SnapshotRequest{{LUN: "a", Name: "lost"}}, SnapshotOptions{}); err == nil {
			t.Fatal("a snapshot whose sync failed was reported as taken")
		}
		l, err = p.tree.LUNByName("a")
		m.check(err, "LUN")
		lost := l.Head
		if lost == head {
			t.Fatal("no identifier was handed out")
		}
		p.Abandon()
		if c.saved == nil {
			t.Fatal("the snapshot did not sync")
		}
		m.fs = c.saved
		m.open()
		m.verify() // the snapshot is not there, everything flushed is
		m.snap("a", fmt.Sprintf("s%d", m.next))
		l, err = m.p.tree.LUNByName("a")
		m.check(err, "LUN")
		if l.Head <= lost {
			t.Errorf("head %d after the crash, %d was given out before", l.Head, lost)
		}
		m.put("a", 3, 10)
		m.sync("a")
		m.cut(0)
		m.p.Abandon()
	}
	m.open()
	m.verify()
}

// A checkpoint is due by what a recovery has to read: with a flush behind each write half of that are headers.
func TestHeadersMakeACheckpointDue(t *testing.T) {
	p := openT(t, crashfs.New(), Options{Manual: true})
	defer p.Close()
	_, err := p.CreateLUN(bg, CreateLUN{Name: "a", SizeBytes: 1 << 20})
	must(t, err)
	v := vol(t, p, "a")
	defer v.Close()
	must(t, p.Checkpoint())
	before := p.appended.Load()
	for i := range 20 {
		must(t, v.WriteAt(pat(1, 1), int64(i)*blockSize, true))
	}
	if n := p.appended.Load() - before; n < 40 {
		t.Errorf("20 writes of a block, each with FUA, count as %d blocks of log, want 40", n)
	}
}
