package segment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// errPowerCut is what every operation after the crash returns.
var errPowerCut = errors.New("the power is off")

// index is what the log's owner would have in its index: durable at once.
type index struct {
	epoch   uint64
	from    Seq
	sealed  map[uint64]bool // segments that recovery leaves alone
	highest uint64
}

func (x index) clone() index {
	sealed := map[uint64]bool{}
	for n := range x.sealed {
		sealed[n] = true
	}
	x.sealed = sealed
	return x
}

// life is one run of a log on a file system that loses its power at the k-th
// operation that writes.
type life struct {
	t    testing.TB
	opts Options
	rng  *rand.Rand

	mu    sync.Mutex // index and acked, against the power cut
	index index
	acked Seq

	countdown int
	cut       bool
	op        errorfs.Op
	none, all *vfs.MemFS // the disk without and with all that was not synced
	at        index      // at the cut
	promised  Seq

	model map[Seq]replayed
	last  Seq
	dead  []SegmentInfo // sealed, to be released by the next checkpoint
}

// MaybeError counts the operations that write, and cuts the power at one.
func (v *life) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.cut {
		return errPowerCut
	}
	if v.countdown--; v.countdown > 0 {
		return nil
	}
	v.cut, v.op = true, op
	v.at, v.promised = v.index.clone(), v.acked
	mem := vfs.Root(v.opts.FS).(*vfs.MemFS)
	v.none = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0, RNG: testRNG()})
	v.all = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: testRNG()})
	return errPowerCut
}

// testRNG is for clones of nothing or all, which draw nothing from it.
func testRNG() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

func (v *life) String() string { return "power cut" }

// run lets the log live until the power cut, or for so many steps. It returns
// false if the power was never cut.
func (v *life) run(fs *vfs.MemFS, next Seq, free []uint64, steps int) bool {
	v.opts.FS = errorfs.Wrap(fs, v)
	v.opts.Epoch = v.index.epoch
	v.opts.OnSeal = func(i SegmentInfo) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.dead = append(v.dead, i)
	}
	v.model = map[Seq]replayed{}
	l, err := Open(v.opts, next, free, v.index.highest)
	if err != nil {
		return v.cut
	}
	for range steps {
		if v.step(l) != nil {
			break
		}
	}
	l.Close()
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.cut
}

func (v *life) step(l *Log) error {
	switch n := v.rng.IntN(21); {
	case n < 9:
		return v.write(l, Data, 1+v.rng.IntN(3))
	case n < 11:
		return v.write(l, Data, 1+v.rng.IntN(20))
	case n < 12:
		return v.write(l, Trim, 0)
	case n < 13:
		return v.write(l, Struct, 1+v.rng.IntN(2))
	case n < 14:
		return v.write(l, Moved, 2)
	case n < 18:
		return v.sync(l)
	case n < 19:
		return l.Mark()
	case n < 20:
		return l.Rotate()
	}
	return v.checkpoint(l)
}

func (v *life) write(l *Log, kind Kind, n int) error {
	block := uint64(v.rng.IntN(1 << 20))
	p := pattern(v.index.epoch, block, n, uint64(v.rng.Int64()))
	e := Entry{Kind: kind, Version: v.index.epoch, Block: block, Count: uint64(n)}
	switch kind {
	case Data, Moved:
		e.CRCs = sums(p)
	case Trim:
		e.Count = 5
	case Struct:
		p = p[:len(p)-100]
	}
	if kind == Moved {
		e.Birth = 1
	}
	if err := l.Admit(context.Background(), n, 1); err != nil {
		return err
	}
	out, err := l.Append(e, p, false, nil)
	if err != nil {
		return err
	}
	for _, x := range out {
		part := e
		switch kind {
		case Data, Moved:
			part.Block, part.Count, part.CRCs = block+uint64(x.First), uint64(x.Count), e.CRCs[x.First:x.First+x.Count]
		case Struct:
			part.Block, part.Count = uint64(len(p)), uint64(n)
		}
		r := replayed{Entry: part, Seq: x.Seq, Loc: x.Loc}
		if kind == Struct {
			r.Payload = p
		}
		v.model[x.Seq] = r
		v.last = x.Seq
	}
	return nil
}

func (v *life) sync(l *Log) error {
	last := l.Next() - 1
	if err := l.Sync(last); err != nil {
		return err
	}
	v.mu.Lock()
	v.acked = max(v.acked, last)
	v.mu.Unlock()
	return nil
}

// checkpoint moves from, and gives back segments that lie wholly before it:
// the model takes their blocks for overwritten.
func (v *life) checkpoint(l *Log) error {
	if err := v.sync(l); err != nil {
		return err
	}
	v.mu.Lock()
	v.index.from = v.acked + 1
	v.index.highest = l.Highest()
	var gone []uint64
	for _, s := range v.dead {
		if v.rng.IntN(4) == 0 {
			v.index.sealed[s.Number] = true // stays in use
		} else {
			gone = append(gone, s.Number)
		}
	}
	v.dead = nil
	v.mu.Unlock()
	for _, n := range gone {
		if err := l.Release(n, v.rng.IntN(4) == 0); err != nil {
			return err
		}
	}
	return nil
}

// mix is the disk as a power cut may leave it: of each file's sectors that were
// not synced, some.
func mix(t testing.TB, rng *rand.Rand, none, all *vfs.MemFS) *vfs.MemFS {
	fs := crashable(t)
	names, err := all.List(testDir)
	if err != nil {
		t.Fatal(err)
	}
	old, _ := none.List(testDir)
	slices.Sort(names)
	percent := []int{10, 50, 90, 97}[rng.IntN(4)]
	sector := []int{512, BlockSize}[rng.IntN(2)]
	for _, name := range names {
		durable := slices.Contains(old, name)
		if !durable && rng.IntN(2) == 0 {
			continue
		}
		now := contents(t, all, name)
		mixed := make([]byte, len(now))
		if durable {
			copy(mixed, contents(t, none, name))
		}
		for at := 0; at < len(now); at += sector {
			if end := min(at+sector, len(now)); rng.IntN(100) < percent {
				copy(mixed[at:end], now[at:end])
			}
		}
		writeFile(t, fs, name, mixed)
	}
	return fs
}

func contents(t testing.TB, fs vfs.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open(fs.PathJoin(testDir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, fs vfs.FS, name string, b []byte) {
	t.Helper()
	f, err := fs.Create(fs.PathJoin(testDir, name), fileCategory)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil { // WriteAt appends byte by byte
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), syncFolder(fs, testDir)); err != nil {
		t.Fatal(err)
	}
}

// verify recovers a disk and compares it with what was written before the cut.
func (v *life) verify(fs *vfs.MemFS) (Recovered, error) {
	opts := v.opts
	opts.FS, opts.Epoch = fs, v.at.epoch
	want := v.at.from
	got, err := Recover(opts, v.at.from, func(n uint64) bool { return v.at.sealed[n] }, false, func(e Entry, seq Seq, loc Loc, payload []byte) error {
		m, ok := v.model[seq]
		if !ok && e.Kind != Mark {
			return fmt.Errorf("entry %d was never written", seq)
		}
		if seq != want {
			return fmt.Errorf("entry %d follows %d", seq, want-1)
		}
		want++
		if e.Kind == Mark {
			return nil
		}
		if e.Kind != m.Kind || e.Block != m.Block || e.Count != m.Count || loc != m.Loc || e.Birth != m.Birth || !bytes.Equal(payload, m.Payload) {
			return fmt.Errorf("entry %d is %+v at %d, was %+v", seq, e, loc, m)
		}
		return checkPayload(&opts, e, loc)
	})
	if err != nil {
		return got, err
	}
	if got.LastReplayed < v.promised {
		return got, fmt.Errorf("entries up to %d were durable, recovered are %d", v.promised, got.LastReplayed)
	}
	if got.Next <= got.LastReplayed {
		return got, fmt.Errorf("next is %d after %d", got.Next, got.LastReplayed)
	}
	return got, nil
}

func checkPayload(opts *Options, e Entry, loc Loc) error {
	if len(e.CRCs) == 0 {
		return nil
	}
	number, block := uint64(loc)/uint64(opts.segmentBlocks()), int(uint64(loc)%uint64(opts.segmentBlocks()))
	f, err := opts.FS.Open(opts.path(number))
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, BlockSize)
	for i, crc := range e.CRCs {
		if _, err := f.ReadAt(b, int64(block+i)*BlockSize); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if Checksum(b) != crc {
			return fmt.Errorf("block %d of segment %d is not what was written", block+i, number)
		}
	}
	return nil
}

// afterwards is the index after a recovery: a checkpoint, and a new epoch.
func (v *life) afterwards(got Recovered) index {
	x := v.at.clone()
	x.epoch, x.from, x.highest = x.epoch+1, got.Next, max(x.highest, got.Highest)
	for _, s := range got.Segments {
		x.sealed[s.Number] = true
	}
	return x
}

// TestCrashEverywhere cuts the power at each operation in turn, and on what is
// left of the disk, in four ways, now and then lives two more lives that end
// the same way.
func TestCrashEverywhere(t *testing.T) {
	seeds := 1
	if n, err := strconv.Atoi(os.Getenv("LUNAR_CRASH_SEEDS")); err == nil {
		seeds = n // for the night
	}
	points, disks := 0, 0
	for seed := range uint64(seeds) {
		for k := 1 + int(seed); crashAt(t, seed, k, &disks); k += crashStride {
			points++
		}
	}
	if points < 80*seeds/crashStride {
		t.Fatalf("only %d crash points", points)
	}
	t.Logf("%d crash points, %d disks recovered", points, disks)
}

func crashAt(t *testing.T, seed uint64, k int, disks *int) bool {
	rng := rand.New(rand.NewPCG(seed, uint64(k)))
	opts := memOptions(nil)
	opts.Spares, opts.MaxUnsynced = rng.IntN(4), 2+rng.IntN(7)
	fs := crashable(t)
	first := &life{t: t, opts: opts, rng: rand.New(rand.NewPCG(seed, 0)), countdown: k}
	first.index = index{epoch: 1, from: 1, sealed: map[uint64]bool{}}
	if !first.run(fs, 1, nil, 60) {
		return false
	}
	for variant := range 4 {
		whole := vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rng}
		disk := first.none.CrashClone(whole)
		switch variant {
		case 1:
			disk = first.all.CrashClone(whole)
		case 2, 3:
			disk = mix(t, rng, first.none, first.all)
		}
		name := fmt.Sprintf("seed %d, power cut at operation %d (%v), disk %d", seed, k, first.op, variant)
		v := first
		for lives := 1; ; lives++ {
			*disks++
			got, err := v.verify(disk)
			if err != nil {
				t.Fatalf("%s, life %d: %v", name, lives, err)
			}
			// A second crash right after recovery, before anything was committed.
			again := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0, RNG: rng})
			if same, err := v.verify(again); err != nil || same.LastReplayed != got.LastReplayed || same.Next != got.Next {
				t.Fatalf("%s, life %d: recovered again: %v, %+v after %+v", name, lives, err, same, got)
			}
			if lives == 3 || lives == 1 && (k+variant)%4 != 0 {
				break
			}
			next := &life{t: t, opts: opts, rng: rng, countdown: 1 + rng.IntN(60), index: v.afterwards(got)}
			if rng.IntN(2) == 0 {
				next.rng = rand.New(rand.NewPCG(seed, 0)) // records of equal length, again
			}
			if !next.run(disk, got.Next, reusable(got, v.at), 60) {
				break // it lived on
			}
			v, disk = next, next.none
			if rng.IntN(2) == 0 {
				disk = mix(t, rng, next.none, next.all)
			}
		}
	}
	return true
}

// reusable are the free candidates; the model's maps point into none of them.
func reusable(got Recovered, at index) []uint64 {
	var free []uint64
	for _, n := range got.Free {
		if !at.sealed[n] {
			free = append(free, n)
		}
	}
	return free
}
