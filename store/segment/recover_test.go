package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// writeNow writes the current record without a sync.
func writeNow(t testing.TB, l *Log) {
	t.Helper()
	l.mu.Lock()
	l.closeRecordLocked()
	last := l.next - 1
	l.mu.Unlock()
	if err := l.writeOut(last); err != nil {
		t.Fatal(err)
	}
}

// disk is what the tests of recovery damage. Each line is a record.
//
//	segment 1: block 0   entry 1, 2 blocks     synced
//	           block 3   entry 2, 2 blocks     synced, carries 1
//	           block 6   entry 3, structural   synced, carries 2
//	           block 9   entry 4, 3 blocks     synced, carries 3
//	           block 13  entry 5, 2 blocks     synced, carries 4
//	segment 2: block 0   entry 6, 2 blocks     synced, carries 4
//	           block 3   entry 7, 1 block      written, carries 6
//	           block 5   entry 8, structural   written, carries 6
//	           block 7   entry 9, 1 block      written, carries 6
type disk struct {
	t     testing.TB
	files map[uint64][]byte
}

func newDisk(t testing.TB) *disk {
	opts := memOptions(crashable(t))
	l := mustOpen(t, opts, 1, nil, 0)
	sync := func() {
		if err := l.Sync(l.Next() - 1); err != nil {
			t.Fatal(err)
		}
	}
	change := pattern(7, 7, 2, 7)[:5000]
	putBlocks(t, l, 1, 100, 2, 1)
	sync()
	putBlocks(t, l, 1, 200, 2, 2)
	sync()
	put(t, l, Entry{Kind: Struct, Version: 3}, change)
	sync()
	putBlocks(t, l, 1, 400, 3, 4)
	sync()
	putBlocks(t, l, 1, 500, 4, 5)
	sync()
	putBlocks(t, l, 1, 700, 1, 7)
	writeNow(t, l)
	put(t, l, Entry{Kind: Struct, Version: 8}, change[:100])
	writeNow(t, l)
	putBlocks(t, l, 1, 900, 1, 9)
	writeNow(t, l)
	mem := opts.FS.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: testRNG()})
	d := &disk{t, map[uint64][]byte{}}
	for n := uint64(1); n <= 3; n++ {
		d.files[n] = make([]byte, 64<<10)
		if n < 3 {
			copy(d.files[n], contents(t, mem, Name(n)))
		}
	}
	return d
}

func (d *disk) block(segment uint64, block int) []byte {
	return d.files[segment][block*BlockSize : (block+1)*BlockSize]
}

// options puts the disk on a file system.
func (d *disk) options() Options {
	fs := crashable(d.t)
	for n, b := range d.files {
		writeFile(d.t, fs, Name(n), b)
	}
	return memOptions(fs)
}

// header changes a header and gives it a good checksum again.
func (d *disk) header(segment uint64, block int, change func(b []byte)) {
	b := d.block(segment, block)
	change(b)
	binary.LittleEndian.PutUint32(b[offCRC:], headerCRC(b))
}

type recoverCase struct {
	name    string
	damage  func(d *disk)
	from    Seq      // 1 if 0
	last    Seq      // replayed
	next    Seq      // last+1 if 0
	torn    bool     //
	corrupt SeqRange // the error's range, if any
	accept  []Seq    // what is replayed if loss is accepted
	lost    []SeqRange
}

var recoverCases = []recoverCase{
	{name: "nothing", damage: func(*disk) {}, last: 9},
	{name: "from the middle", damage: func(*disk) {}, from: 5, last: 9},
	{name: "from behind", damage: func(*disk) {}, from: 10, last: 9, next: 10},
	{name: "last header", damage: func(d *disk) { d.block(2, 7)[100]++ }, last: 8},
	{name: "last header zero", damage: func(d *disk) { clear(d.block(2, 7)) }, last: 8},
	{name: "last payload", damage: func(d *disk) { d.block(2, 8)[4000]++ }, last: 8, next: 10, torn: true},
	{name: "unsynced structural payload", damage: func(d *disk) { d.block(2, 6)[50]++ }, last: 7, next: 10, torn: true},
	{name: "unsynced header", damage: func(d *disk) { d.block(2, 5)[70]++ }, last: 7, next: 10, torn: true},
	{name: "unsynced padding", damage: func(d *disk) { d.block(2, 6)[BlockSize-1]++ }, last: 7, next: 10, torn: true},
	{name: "first unsynced header", damage: func(d *disk) { clear(d.block(2, 3)) }, last: 6, next: 10, torn: true},
	{name: "synced payload", damage: func(d *disk) { d.block(1, 1)[0]++ }, last: 9}, // found when it is read
	{name: "synced header", damage: func(d *disk) { d.block(1, 3)[5]++ },
		corrupt: SeqRange{2, 2}, accept: []Seq{1, 3, 4, 5, 6, 7, 8, 9}, lost: []SeqRange{{2, 2}}},
	{name: "synced header zero", damage: func(d *disk) { clear(d.block(1, 9)) },
		corrupt: SeqRange{4, 4}, accept: []Seq{1, 2, 3, 5, 6, 7, 8, 9}, lost: []SeqRange{{4, 4}}},
	{name: "two holes", damage: func(d *disk) { clear(d.block(1, 3)); clear(d.block(1, 9)) },
		corrupt: SeqRange{2, 2}, accept: []Seq{1, 3, 5, 6, 7, 8, 9}, lost: []SeqRange{{2, 2}, {4, 4}}},
	{name: "synced structural payload", damage: func(d *disk) { d.block(1, 7)[9]++ },
		corrupt: SeqRange{3, 3}, accept: []Seq{1, 2, 4, 5, 6, 7, 8, 9}, lost: []SeqRange{{3, 3}}},
	{name: "first header", damage: func(d *disk) { d.block(1, 0)[0]++ },
		corrupt: SeqRange{1, 1}, accept: []Seq{2, 3, 4, 5, 6, 7, 8, 9}, lost: []SeqRange{{1, 1}}},
	{name: "first header of the second segment", damage: func(d *disk) { d.block(2, 0)[0]++ },
		corrupt: SeqRange{6, 6}, accept: []Seq{1, 2, 3, 4, 5, 7, 8, 9}, lost: []SeqRange{{6, 6}}},
	{name: "first segment is gone", damage: func(d *disk) { delete(d.files, 1) },
		corrupt: SeqRange{1, 5}, accept: []Seq{6, 7, 8, 9}, lost: []SeqRange{{1, 5}}},
	{name: "second segment is gone", damage: func(d *disk) { delete(d.files, 2) }, last: 5}, // no header says that 6 was durable
	{name: "last synced header", damage: func(d *disk) { clear(d.block(2, 0)); clear(d.block(2, 3)); clear(d.block(2, 5)) },
		corrupt: SeqRange{6, 6}, accept: []Seq{1, 2, 3, 4, 5}, lost: []SeqRange{{6, 6}}},
	{name: "before from", damage: func(d *disk) { clear(d.block(1, 3)); clear(d.block(1, 0)) }, from: 5, last: 9},
	{name: "before and at from", damage: func(d *disk) { clear(d.block(1, 3)); clear(d.block(1, 6)) }, from: 3,
		corrupt: SeqRange{3, 3}, accept: []Seq{4, 5, 6, 7, 8, 9}, lost: []SeqRange{{3, 3}}},
	{name: "structural payload before from", damage: func(d *disk) { d.block(1, 7)[9]++ }, from: 4, last: 9},
	{name: "a header at another place", damage: func(d *disk) { copy(d.block(2, 9), d.block(1, 13)); copy(d.block(3, 0), d.block(1, 0)) }, last: 9},
	{name: "a later header at another place", damage: func(d *disk) { copy(d.block(3, 4), d.block(2, 7)); clear(d.block(2, 7)) }, last: 8},
	{name: "another pool", damage: func(d *disk) {
		d.header(2, 5, func(b []byte) { b[offPool]++ })
		d.header(2, 7, func(b []byte) { b[offPool]++ })
	}, last: 7},
	{name: "another epoch", damage: func(d *disk) {
		d.header(2, 5, func(b []byte) { b[offEpoch]++ })
		d.header(2, 7, func(b []byte) { b[offEpoch]++ })
	}, last: 7},
	{name: "a jump ahead", damage: func(d *disk) { d.header(2, 7, func(b []byte) { b[offFirst] = 11 }) }, last: 8, next: 12, torn: true},
	{name: "payload beyond the segment", damage: func(d *disk) {
		d.header(2, 7, func(b []byte) { b[offPayload] = 200 })
	}, last: 8},
}

func TestRecoverDamage(t *testing.T) {
	for _, c := range recoverCases {
		t.Run(c.name, func(t *testing.T) {
			d := newDisk(t)
			c.damage(d)
			opts, from := d.options(), max(c.from, 1)
			all, got, err := recoverAll(opts, from, false)
			if c.corrupt.To > 0 {
				checkCorrupt(t, opts, from, c, err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			next := c.next
			if next == 0 {
				next = c.last + 1
			}
			if got.LastReplayed != c.last || len(all) != int(c.last+1-from) || got.Torn != c.torn || got.Next != next || (got.TornAt != "") != c.torn {
				t.Fatalf("replayed %v, %+v, want last %d, next %d, torn %v", all, got, c.last, next, c.torn)
			}
			checkInfos(t, got)
		})
	}
}

func checkCorrupt(t *testing.T, opts Options, from Seq, c recoverCase, err error) {
	t.Helper()
	var damage *CorruptError
	if !errors.Is(err, ErrCorrupt) || !errors.Is(err, syscall.EIO) || !errors.As(err, &damage) {
		t.Fatalf("got %v, want a CorruptError", err)
	}
	if (SeqRange{damage.From, damage.To}) != c.corrupt {
		t.Errorf("the error names %d to %d, want %v: %v", damage.From, damage.To, c.corrupt, err)
	}
	all, got, err := recoverAll(opts, from, true)
	if err != nil {
		t.Fatal(err)
	}
	var seqs []Seq
	for _, r := range all {
		seqs = append(seqs, r.Seq)
	}
	if !slices.Equal(seqs, c.accept) || !slices.Equal(got.Lost, c.lost) {
		t.Errorf("with loss accepted: replayed %v, lost %v, want %v and %v", seqs, got.Lost, c.accept, c.lost)
	}
}

// checkInfos: each file is either to be kept or free.
func checkInfos(t *testing.T, got Recovered) {
	t.Helper()
	seen := map[uint64]bool{}
	for _, s := range got.Segments {
		seen[s.Number] = true
		if s.First == 0 || s.Last < s.First || s.Blocks <= s.PayloadBlocks || s.Blocks > 16 {
			t.Errorf("segment %+v", s)
		}
	}
	for _, n := range got.Free {
		if seen[n] {
			t.Errorf("segment %d is used and free", n)
		}
	}
}

func TestRecoverInfos(t *testing.T) {
	opts := newDisk(t).options()
	_, got := mustRecover(t, opts, 1)
	want := []SegmentInfo{{Number: 1, First: 1, Last: 5, Blocks: 16, PayloadBlocks: 11}, {Number: 2, First: 6, Last: 9, Blocks: 9, PayloadBlocks: 5}}
	if !slices.Equal(got.Segments, want) || !slices.Equal(got.Free, []uint64{3}) || got.Highest != 3 || got.Synced != 6 {
		t.Errorf("recovered %+v", got)
	}
	// A segment that is sealed is left alone, whatever is in it.
	got, err := Recover(opts, 6, func(n uint64) bool { return n == 1 }, false, func(Entry, Seq, Loc, []byte) error { return nil })
	if err != nil || !slices.Equal(got.Segments, want[1:]) || got.LastReplayed != 9 {
		t.Errorf("recovered %+v: %v", got, err)
	}
}

func TestRecoverNothing(t *testing.T) {
	for _, opts := range []Options{memOptions(crashable(t)), {FS: vfs.Default, Dir: filepath.Join(t.TempDir(), "none")}} {
		all, got, err := recoverAll(opts, 1, false)
		if err != nil || len(all) != 0 || got.Next != 1 || got.LastReplayed != 0 {
			t.Errorf("recovered %+v, %v: %v", got, all, err)
		}
	}
}

func TestRecoverNewerFormat(t *testing.T) {
	d := newDisk(t)
	d.header(1, 3, func(b []byte) { b[offFormat] = 2 })
	if _, _, err := recoverAll(d.options(), 1, true); !errors.Is(err, ErrFormat) {
		t.Errorf("recovered with %v", err)
	}
}

// TestRecoverErrors fails each operation of a recovery in turn: it must say so, or
// have read everything.
func TestRecoverErrors(t *testing.T) {
	opts := newDisk(t).options()
	mem := opts.FS
	for k := 1; ; k++ {
		n := 0
		opts.FS = errorfs.Wrap(mem, errorfs.InjectorFunc(func(errorfs.Op) error {
			if n++; n == k {
				return syscall.EIO
			}
			return nil
		}))
		_, got, err := recoverAll(opts, 1, false)
		if n < k {
			if k < 20 {
				t.Errorf("a recovery has only %d operations", n)
			}
			break
		}
		if err == nil && got.LastReplayed != 9 {
			t.Errorf("operation %d failed, and %+v is what was recovered", k, got)
		}
	}
}

// TestRecoverCallback: the caller's error ends the replay.
func TestRecoverCallback(t *testing.T) {
	want := errors.New("enough")
	_, err := Recover(newDisk(t).options(), 1, noneSealed, false, func(_ Entry, seq Seq, _ Loc, _ []byte) error {
		if seq == 4 {
			return want
		}
		return nil
	})
	if !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}

// TestEqualLengths: crash, recover, write records of equal length over the
// same places, crash again. What the life before left behind must not appear.
func TestEqualLengths(t *testing.T) {
	for _, raise := range []bool{true, false} {
		t.Run(fmt.Sprintf("raise the epoch %v", raise), func(t *testing.T) {
			mem := crashable(t)
			opts := memOptions(mem)
			from, next, free := Seq(1), Seq(1), []uint64(nil)
			for life := range 6 {
				opts.FS = mem
				l := mustOpen(t, opts, next, free, 0)
				for i := range 7 { // they fit one segment
					putBlocks(t, l, uint64(life), uint64(i), 1, uint64(life))
					writeNow(t, l)
					if i == 3 && life%2 == 0 {
						if err := l.Sync(l.Next() - 1); err != nil {
							t.Fatal(err)
						}
					}
				}
				percent := 100 * (life % 3 % 2)
				mem = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: testRNG()})
				opts.FS = mem
				all, got := mustRecover(t, opts, from)
				for _, r := range all {
					if r.Version != uint64(life) {
						t.Fatalf("life %d replayed %v", life, r)
					}
				}
				if life%2 == 0 && len(all) < 4 || percent == 100 && len(all) != 7 {
					t.Fatalf("life %d: %d entries", life, len(all))
				}
				// All of it is overwritten later: every file may be used again.
				from, next, free = got.Next, got.Next, got.Free
				for _, s := range got.Segments {
					free = append(free, s.Number)
				}
				if raise {
					opts.Epoch++
				}
			}
		})
	}
}

// TestKilledThenPowerCut: what a killed process left in the page cache is
// durable after a recovery.
func TestKilledThenPowerCut(t *testing.T) {
	mem := crashable(t)
	opts := memOptions(mem)
	l := mustOpen(t, opts, 1, nil, 0)
	putBlocks(t, l, 1, 0, 3, 1)
	writeNow(t, l)
	if all, _ := mustRecover(t, opts, 1); len(all) != 1 {
		t.Fatalf("after the kill: %v", all)
	}
	opts.FS = mem.CrashClone(vfs.CrashCloneCfg{RNG: testRNG()})
	if all, _ := mustRecover(t, opts, 1); len(all) != 1 {
		t.Fatalf("after the power cut: %v", all)
	}
}
