package lun

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lunar/store/crashfs"
)

// The model test: random operations on a pool whose whole file system can be
// crashed, against plain maps. A seed repeats a run.

var (
	modelSeed = flag.Uint64("model.seed", 0, "seed of the model test; 0 takes the default seeds")
	modelRuns = flag.Int("model.runs", 12, "how many seeds the model test runs")
	modelOps  = flag.Int("model.ops", 400, "operations of one run")
)

const modelBlocks = 3*512 + 40 // of a LUN: four pages, the last one short

// stamps is the content of a LUN or snapshot: a stamp for each block, 0 a hole.
type stamps []uint64

func (s stamps) clone() stamps { return append(stamps(nil), s...) }

// fill makes the 4096 bytes of a stamp: it stands at the begin of each sector.
func fill(b []byte, stamp uint64) {
	clear(b)
	for i := 0; i < len(b); i += 512 {
		binary.LittleEndian.PutUint64(b[i:], stamp)
	}
}

func stampOf(t testing.TB, b []byte) uint64 {
	s := binary.LittleEndian.Uint64(b)
	var want [blockSize]byte
	fill(want[:], s)
	if !bytes.Equal(want[:], b) {
		t.Fatalf("torn block: begins with stamp %d but holds other bytes", s)
	}
	return s
}

// delta is one block change that is not durable yet.
type delta struct {
	lun   string
	block int
	stamp uint64
}

type model struct {
	t     *testing.T
	rng   *rand.Rand
	fs    *crashfs.FS
	p     *Pool
	o     Options
	next  uint64
	heads map[string]stamps            // durable state plus nothing of pend
	snaps map[string]map[string]stamps // by LUN, by name
	pend  []delta                      // acknowledged since the last flush
	names int
	trace []string
}

func (m *model) logf(format string, args ...any) {
	m.trace = append(m.trace, fmt.Sprintf(format, args...))
}

func (m *model) check(err error, format string, args ...any) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
}

// head is the content of a LUN's head as acknowledged.
func (m *model) head(lun string) stamps {
	s := m.heads[lun].clone()
	for _, d := range m.pend {
		if d.lun == lun {
			s[d.block] = d.stamp
		}
	}
	return s
}

// settle takes everything pending as durable.
func (m *model) settle() {
	for _, d := range m.pend {
		m.heads[d.lun][d.block] = d.stamp
	}
	m.pend = nil
}

func (m *model) pick() string {
	var names []string
	for n := range m.heads {
		names = append(names, n)
	}
	if len(names) == 0 {
		return ""
	}
	sortStrings(names)
	return names[m.rng.IntN(len(names))]
}

func (m *model) pickSnap(lun string) string {
	var names []string
	for n := range m.snaps[lun] {
		names = append(names, n)
	}
	if len(names) == 0 {
		return ""
	}
	sortStrings(names)
	return names[m.rng.IntN(len(names))]
}

func sortStrings(s []string) {
	for i := range s {
		for j := i; j > 0 && s[j] < s[j-1]; j-- {
			s[j], s[j-1] = s[j-1], s[j]
		}
	}
}

func newModel(t *testing.T, seed uint64) *model {
	rng := rand.New(rand.NewPCG(seed, 1))
	m := &model{t: t, rng: rng, fs: crashfs.New(), heads: map[string]stamps{}, snaps: map[string]map[string]stamps{}}
	m.o = Options{
		Dir: "pool", Capacity: 1 << 30, Manual: true, Now: steppingClock(),
		SegmentBytes: []int64{64 << 10, 128 << 10, 512 << 10}[rng.IntN(3)],
		RecordBlocks: []int{4, 16, 64}[rng.IntN(3)],
		IndexCache:   []int64{64 * pageBytes, 1 << 20, 16 << 20}[rng.IntN(3)],
	}
	t.Cleanup(func() {
		if t.Failed() {
			from := max(0, len(m.trace)-60)
			t.Logf("seed %d, segment %d, record %d, cache %d; last operations:\n%s", seed, m.o.SegmentBytes, m.o.RecordBlocks, m.o.IndexCache, strings.Join(m.trace[from:], "\n"))
		}
	})
	m.open()
	return m
}

// steppingClock gives each call a later second, so that names by time differ.
func steppingClock() func() time.Time {
	var n atomic.Int64
	return func() time.Time {
		return time.Date(2026, 11, 22, 0, 0, int(n.Add(1)), 0, time.UTC)
	}
}

func (m *model) open() {
	m.o.FS = m.fs
	p, err := Open(context.Background(), m.o)
	m.check(err, "open")
	m.p = p
}

// volume opens a LUN for one operation.
func (m *model) volume(lun string, fn func(v *Volume) error) {
	m.t.Helper()
	v, err := m.p.OpenVolume(lun, "")
	m.check(err, "open volume %s", lun)
	defer v.Close()
	m.check(fn(v), "operation on %s", lun)
}

func (m *model) write() {
	lun := m.pick()
	if lun == "" {
		return
	}
	n := 1 + m.rng.IntN(8)
	if m.rng.IntN(8) == 0 {
		n = 1 + m.rng.IntN(700)
	}
	at := m.rng.IntN(modelBlocks)
	n = min(n, modelBlocks-at)
	fua := m.rng.IntN(10) == 0
	owned := m.rng.IntN(2) == 0
	m.logf("write %s %d+%d fua %v", lun, at, n, fua)
	m.volume(lun, func(v *Volume) error {
		b := v.Buffer(n * blockSize)[:n*blockSize]
		for i := range n {
			m.next++
			fill(b[i*blockSize:(i+1)*blockSize], m.next)
			m.pend = append(m.pend, delta{lun, at + i, m.next})
		}
		if owned {
			return v.WriteOwned(b, int64(at)*blockSize, fua)
		}
		defer v.Discard(b)
		return v.WriteAt(b, int64(at)*blockSize, fua)
	})
	if fua {
		m.settle()
	}
}

// rewrite writes a part of a block with the bytes that it has, through the
// read-modify-write path: nothing may change.
func (m *model) rewrite() {
	lun := m.pick()
	if lun == "" {
		return
	}
	at := int64(m.rng.IntN(modelBlocks*blockSize - 9000))
	n := 1 + m.rng.IntN(8999)
	m.logf("rewrite %s bytes %d+%d", lun, at, n)
	m.volume(lun, func(v *Volume) error {
		b := make([]byte, n)
		if err := v.ReadAt(b, at); err != nil {
			return err
		}
		return v.WriteAt(b, at, false)
	})
}

func (m *model) erase(zero bool) {
	lun := m.pick()
	if lun == "" {
		return
	}
	at := m.rng.IntN(modelBlocks)
	n := min(1+m.rng.IntN(1200), modelBlocks-at)
	noHole := m.rng.IntN(2) == 0
	m.logf("erase %s %d+%d zero %v", lun, at, n, zero)
	m.volume(lun, func(v *Volume) error {
		if zero {
			return v.Zero(int64(at)*blockSize, int64(n)*blockSize, noHole, false)
		}
		return v.Trim(int64(at)*blockSize, int64(n)*blockSize, false)
	})
	for i := range n {
		m.pend = append(m.pend, delta{lun, at + i, 0})
	}
}

func (m *model) flush() {
	if lun := m.pick(); lun != "" {
		m.logf("flush")
		m.volume(lun, func(v *Volume) error { return v.Flush() })
		m.settle()
	}
}

func (m *model) create() {
	if len(m.heads) >= 4 {
		return
	}
	m.names++
	name := fmt.Sprintf("lun%d", m.names)
	thick := m.rng.IntN(3) == 0
	m.logf("create %s thick %v", name, thick)
	_, err := m.p.CreateLUN(context.Background(), CreateLUN{Name: name, SizeBytes: modelBlocks * blockSize, Thick: thick})
	m.check(err, "create")
	m.settle()
	m.heads[name], m.snaps[name] = make(stamps, modelBlocks), map[string]stamps{}
}

func (m *model) snapshot() {
	var reqs []SnapshotRequest
	seen := map[string]bool{}
	for range 1 + m.rng.IntN(2) {
		if lun := m.pick(); lun != "" && !seen[lun] && len(m.snaps[lun]) < 6 {
			seen[lun] = true
			m.names++
			reqs = append(reqs, SnapshotRequest{LUN: lun, Name: fmt.Sprintf("s%d", m.names)})
		}
	}
	if len(reqs) == 0 {
		return
	}
	m.logf("snapshot %v", reqs)
	_, err := m.p.CreateSnapshots(context.Background(), reqs, SnapshotOptions{})
	m.check(err, "snapshot")
	m.settle()
	for _, r := range reqs {
		m.snaps[r.LUN][r.Name] = m.heads[r.LUN].clone()
	}
}

func (m *model) rollback() {
	lun := m.pick()
	snap := m.pickSnap(lun)
	if snap == "" {
		return
	}
	discard := m.rng.IntN(2) == 0
	m.logf("rollback %s@%s discard %v", lun, snap, discard)
	r, err := m.p.Rollback(context.Background(), lun, snap, RollbackOptions{Discard: discard})
	m.check(err, "rollback")
	m.settle()
	if r.Kept != nil {
		_, name, _ := strings.Cut(*r.Kept, "@")
		m.snaps[lun][name] = m.heads[lun]
	}
	m.heads[lun] = m.snaps[lun][snap].clone()
}

func (m *model) clone() {
	lun := m.pick()
	if lun == "" || len(m.heads) >= 5 {
		return
	}
	snap := m.pickSnap(lun)
	if m.rng.IntN(2) == 0 {
		snap = ""
	}
	m.names++
	name := fmt.Sprintf("clone%d", m.names)
	m.logf("clone %s@%s %s", lun, snap, name)
	_, err := m.p.Clone(context.Background(), lun, snap, name, false)
	m.check(err, "clone")
	m.settle()
	if snap == "" {
		m.heads[name] = m.heads[lun].clone()
	} else {
		m.heads[name] = m.snaps[lun][snap].clone()
	}
	m.snaps[name] = map[string]stamps{}
}

func (m *model) deleteSnap() {
	lun := m.pick()
	snap := m.pickSnap(lun)
	if snap == "" {
		return
	}
	m.logf("delete %s@%s", lun, snap)
	_, err := m.p.DeleteSnapshots(context.Background(), []SnapshotRef{{lun, snap}}, DeleteOptions{})
	m.check(err, "delete snapshot")
	m.settle()
	delete(m.snaps[lun], snap)
}

// foresee deletes some snapshots at once, with nothing else on its way: what the
// dry run says is what comes back, to the block.
func (m *model) foresee() {
	m.check(m.p.Reclaim(), "reclaim")
	var refs []SnapshotRef
	for range 1 + m.rng.IntN(4) {
		lun := m.pick()
		if snap := m.pickSnap(lun); snap != "" && !slices.Contains(refs, SnapshotRef{lun, snap}) {
			refs = append(refs, SnapshotRef{lun, snap})
		}
	}
	m.logf("delete, foreseen, %v", refs)
	if len(refs) == 0 {
		m.settle0()
		return
	}
	for _, r := range refs[:1] {
		s, err := m.p.Snapshot(r.LUN, r.Name)
		m.check(err, "show")
		one, err := m.p.DeleteSnapshots(context.Background(), []SnapshotRef{r}, DeleteOptions{DryRun: true})
		m.check(err, "dry run")
		if s.UniqueBytes != one.FreedBytes && s.UniqueBytes != 0 {
			m.t.Fatalf("%s: unique are %d bytes, its delete would free %d", r, s.UniqueBytes, one.FreedBytes)
		}
	}
	before := m.charged()
	said, err := m.p.DeleteSnapshots(context.Background(), refs, DeleteOptions{Wait: true})
	m.check(err, "delete snapshots")
	if got := before - m.charged(); got != said.FreedBytes {
		m.t.Fatalf("deleting %v would free %d bytes and freed %d", refs, said.FreedBytes, got)
	}
	m.settle()
	for _, r := range refs {
		delete(m.snaps[r.LUN], r.Name)
	}
}

// charged is what all LUNs and nobody pay for, in bytes.
func (m *model) charged() (n int64) {
	for _, l := range m.p.LUNs() {
		n += l.UsedBytes + l.Area.UsedBytes
	}
	return n + m.p.Status().SharedBytes
}

func (m *model) deleteLUN() {
	lun := m.pick()
	if lun == "" || m.rng.IntN(3) > 0 {
		return
	}
	m.logf("delete LUN %s", lun)
	_, err := m.p.DeleteLUN(context.Background(), lun, true)
	m.check(err, "delete LUN")
	m.settle()
	delete(m.heads, lun)
	delete(m.snaps, lun)
}

// compare reads everything and returns the heads as they are; snapshots must
// be exactly as the model says.
func (m *model) compare() map[string]stamps {
	m.t.Helper()
	infos := m.p.LUNs()
	if len(infos) != len(m.heads) {
		m.t.Fatalf("pool has %d LUNs, want %d", len(infos), len(m.heads))
	}
	got := map[string]stamps{}
	for lun, snaps := range m.snaps {
		got[lun] = m.read(lun, "")
		list, err := m.p.Snapshots(lun)
		m.check(err, "list")
		if len(list) != len(snaps) {
			m.t.Fatalf("LUN %s has %d snapshots, want %d", lun, len(list), len(snaps))
		}
		for name, want := range snaps {
			for i, s := range m.read(lun, name) {
				if s != want[i] {
					m.t.Fatalf("%s@%s block %d holds stamp %d, want %d", lun, name, i, s, want[i])
				}
			}
		}
	}
	return got
}

func (m *model) read(lun, snap string) stamps {
	m.t.Helper()
	v, err := m.p.OpenVolume(lun, snap)
	m.check(err, "open %s@%s", lun, snap)
	defer v.Close()
	b := make([]byte, modelBlocks*blockSize)
	m.check(v.ReadAt(b, 0), "read %s@%s", lun, snap)
	out := make(stamps, modelBlocks)
	for i := range out {
		out[i] = stampOf(m.t, b[i*blockSize:(i+1)*blockSize])
	}
	return out
}

func (m *model) verify() {
	m.t.Helper()
	for lun, got := range m.compare() {
		want := m.head(lun)
		for i := range got {
			if got[i] != want[i] {
				m.t.Fatalf("%s block %d holds stamp %d, want %d", lun, i, got[i], want[i])
			}
		}
	}
	m.consistent()
}

func (m *model) consistent() {
	m.t.Helper()
	rep, err := m.p.Check(context.Background(), nil)
	m.check(err, "check")
	if !rep.OK {
		m.t.Fatalf("pool check: %d problems, first: %+v", len(rep.Problems), rep.Problems[:min(5, len(rep.Problems))])
	}
}

// crash cuts the power: what was not synced is lost in full or in part. What is
// there afterwards must be everything durable and a prefix of the rest.
func (m *model) crash() {
	loss := []crashfs.Loss{crashfs.LoseAll(), crashfs.KeepAll(), crashfs.KeepSome(m.rng.Uint64())}[m.rng.IntN(3)]
	m.logf("crash, %s", loss)
	fs := m.fs.Image(loss)
	m.p.Abandon()
	m.fs = fs
	m.open()
	if m.rng.IntN(4) == 0 { // a second crash right after recovery
		fs := m.fs.Image(crashfs.LoseAll())
		m.p.Abandon()
		m.fs = fs
		m.open()
	}
	m.prefix(m.compare())
	m.consistent()
}

// prefix finds how much of the pending changes survived and makes it the state.
func (m *model) prefix(got map[string]stamps) {
	m.t.Helper()
	wrong := 0
	for lun, s := range got {
		for i := range s {
			if s[i] != m.heads[lun][i] {
				wrong++
			}
		}
	}
	for k := 0; ; k++ {
		if wrong == 0 {
			m.pend = nil
			return
		}
		if k == len(m.pend) {
			break
		}
		d := m.pend[k]
		is := got[d.lun][d.block]
		if m.heads[d.lun][d.block] != is {
			wrong--
		}
		m.heads[d.lun][d.block] = d.stamp
		if d.stamp != is {
			wrong++
		}
	}
	m.t.Fatalf("after the crash the heads are no prefix of the %d acknowledged block changes behind the last flush", len(m.pend))
}

func (m *model) reopen() {
	m.logf("reopen")
	m.check(m.p.Close(), "close")
	m.settle()
	m.open()
}

func (m *model) step() {
	switch n := m.rng.IntN(100); {
	case n < 40:
		m.write()
	case n < 45:
		m.rewrite()
	case n < 50:
		m.erase(false)
	case n < 53:
		m.erase(true)
	case n < 60:
		m.flush()
	case n < 64:
		m.create()
	case n < 72:
		m.snapshot()
	case n < 75:
		m.rollback()
	case n < 78:
		m.clone()
	case n < 82:
		m.deleteSnap()
	case n < 83:
		m.foresee()
	case n < 85:
		m.deleteLUN()
	case n < 88:
		m.logf("checkpoint")
		m.check(m.p.Checkpoint(), "checkpoint")
		m.settle()
	case n < 91:
		m.logf("reclaim")
		m.check(m.p.Reclaim(), "reclaim")
		m.settle0()
	case n < 92:
		m.logf("defragment")
		m.check(m.p.defragment(func(time.Duration) bool { return false }), "defragment")
	case n < 93:
		m.logf("clean")
		_, err := m.p.Clean(context.Background())
		m.check(err, "clean")
		m.settle()
	case n < 95:
		m.verify()
		m.settle() // it checkpoints
	case n < 99:
		m.crash()
	default:
		m.reopen()
	}
}

// settle0 is for operations that may or may not have synced: a flush settles it.
func (m *model) settle0() {
	if lun := m.pick(); lun != "" {
		m.volume(lun, func(v *Volume) error { return v.Flush() })
		m.settle()
	}
}

func TestModel(t *testing.T) {
	first := *modelSeed
	runs, ops := *modelRuns, *modelOps
	if raceEnabled {
		runs, ops = min(runs, 4), min(ops, 120)
	}
	if first != 0 {
		runs = 1
	} else {
		first = 1
		if os.Getenv("LUNAR_MODEL_RANDOM") != "" {
			first = uint64(time.Now().UnixNano())
		}
	}
	for i := range runs {
		seed := first + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			m := newModel(t, seed)
			defer func() { m.p.Abandon() }()
			for range ops {
				m.step()
			}
			m.verify()
		})
	}
}
