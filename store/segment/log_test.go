package segment

import (
	"bytes"
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// eachFS runs a test on the memory file system and on a real one, where records
// are written by vectors.
func eachFS(t *testing.T, test func(t *testing.T, opts Options)) {
	t.Run("mem", func(t *testing.T) { test(t, memOptions(crashable(t))) })
	t.Run("disk", func(t *testing.T) {
		opts := memOptions(vfs.Default)
		opts.Dir = t.TempDir()
		test(t, opts)
	})
}

func TestAppendReadRecover(t *testing.T) {
	eachFS(t, func(t *testing.T, opts Options) {
		l := mustOpen(t, opts, 1, nil, 0)
		var writes []busyWrite
		for i, n := range []int{1, 3, 1, 5, 8, 2, 20, 1, 1, 40, 7} {
			p := pattern(1, uint64(i*100), n, uint64(i))
			e := dataEntry(1, uint64(i*100), p)
			owned := i%2 == 1
			given := p
			if owned {
				given = l.Buffers().Get(len(p))
				copy(given, p)
			}
			if err := l.Admit(testContext(t), n, 1); err != nil {
				t.Fatal(err)
			}
			out, err := l.Append(e, given, owned, nil)
			if err != nil {
				t.Fatal(err)
			}
			writes = append(writes, busyWrite{out, p})
			for _, w := range writes {
				wantBlocks(t, l, w.extents, w.data)
			}
		}
		change := putOthers(t, l)
		last := l.Next() - 1
		if err := l.Sync(last); err != nil {
			t.Fatal(err)
		}
		if l.Synced() != last {
			t.Fatalf("synced %d, want %d", l.Synced(), last)
		}
		for _, w := range writes {
			wantBlocks(t, l, w.extents, w.data)
		}
		if err := l.Mark(); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}

		checkReplay(t, opts, writes, change, last)
	})
}

// putOthers appends one entry of each other kind.
func putOthers(t *testing.T, l *Log) (change []byte) {
	t.Helper()
	change = bytes.Repeat([]byte("change"), 1000)
	put(t, l, Entry{Kind: Struct, Version: 9}, change)
	put(t, l, Entry{Kind: Trim, Version: 1, Block: 5, Count: 1 << 40}, nil)
	put(t, l, Entry{Kind: Zero, Version: 2, Block: 6, Count: 7}, nil)
	moved := pattern(1, 0, 1, 0)
	put(t, l, Entry{Kind: Moved, Version: 1, Block: 0, Count: 1, Birth: 1, CRCs: sums(moved)}, moved)
	return change
}

// checkReplay replays what TestAppendReadRecover wrote.
func checkReplay(t *testing.T, opts Options, writes []busyWrite, change []byte, last Seq) {
	t.Helper()
	all, got := mustRecover(t, opts, 1)
	if got.Next != last+2 || got.LastReplayed != last+1 || got.Synced != last || got.Torn {
		t.Fatalf("recovered %+v, want last %d", got, last+1)
	}
	var extents []Extent
	for _, w := range writes {
		extents = append(extents, w.extents...)
	}
	for i, x := range extents {
		if r := all[i]; r.Kind != Data || r.Loc != x.Loc || int(r.Count) != x.Count || r.Seq != x.Seq {
			t.Fatalf("entry %v, want %+v", r, x)
		}
	}
	rest := all[len(extents):]
	if len(rest) != 5 || !bytes.Equal(rest[0].Payload, change) || rest[0].Version != 9 || rest[1].Count != 1<<40 || rest[2].Kind != Zero || rest[3].Birth != 1 || rest[4].Kind != Mark {
		t.Fatalf("the rest is %v", rest)
	}
	// From the middle.
	all, _ = mustRecover(t, opts, last-3)
	if len(all) != 5 || all[0].Kind != Struct {
		t.Fatalf("from the middle: %v", all)
	}
}

func TestReadFromMemoryOnly(t *testing.T) {
	opts := memOptions(crashable(t))
	l := mustOpen(t, opts, 1, nil, 0)
	out := putBlocks(t, l, 1, 0, 3, 1)
	if w := l.Stats().Written; w != 0 {
		t.Fatalf("written %d before anyone asked", w)
	}
	wantBlocks(t, l, out, pattern(1, 0, 3, 1))
	if err := l.Read(make([]byte, BlockSize), out[0].Loc+3); !errors.Is(err, ErrRead) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("read of a block that never was: %v", err)
	}
	if err := l.Read(make([]byte, 100), out[0].Loc); !errors.Is(err, ErrInvalid) {
		t.Fatalf("read of 100 bytes: %v", err)
	}
}

func TestWriteDelay(t *testing.T) {
	opts := memOptions(crashable(t))
	opts.WriteDelay = time.Millisecond
	l := mustOpen(t, opts, 1, nil, 0)
	for i := range 3 {
		out := putBlocks(t, l, 1, uint64(i), 1, 1)
		for deadline := time.Now().Add(60 * time.Second); l.Stats().Written < out[0].Seq; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the record was not written by itself")
			}
		}
		time.Sleep(5 * time.Millisecond) // lets the writer's clock stop
	}
	if l.Synced() != 0 {
		t.Fatalf("synced %d without a sync", l.Synced())
	}
}

func TestSealRotateRelease(t *testing.T) {
	eachFS(t, func(t *testing.T, opts Options) {
		var sealed []SegmentInfo
		opts.OnSeal = func(i SegmentInfo) { sealed = append(sealed, i) }
		opts.Spares = 1
		l := mustOpen(t, opts, 1, nil, 0)
		var all []Extent
		for i := range 100 {
			all = append(all, putBlocks(t, l, 1, uint64(i), 1, 1)...)
		}
		if err := l.Rotate(); err != nil {
			t.Fatal(err)
		}
		if err := l.Rotate(); err != nil { // nothing is open
			t.Fatal(err)
		}
		if l.Open() != 0 || len(l.Unsealed()) != 0 || len(sealed) < 100/15 {
			t.Fatalf("open %d, unsealed %v, sealed %d", l.Open(), l.Unsealed(), len(sealed))
		}
		next, payload := Seq(1), 0
		for _, s := range sealed {
			if s.First != next {
				t.Fatalf("segment %d begins with %d, want %d", s.Number, s.First, next)
			}
			next, payload = s.Last+1, payload+s.PayloadBlocks
			got := SegmentInfo{Number: s.Number}
			err := l.Scan(s.Number, func(h *Header, at int64) error {
				if got.First == 0 {
					got.First = h.First
				}
				got.Last, got.Blocks = h.Last(), int(at/BlockSize)+h.Blocks()
				got.PayloadBlocks += h.Payload
				return nil
			})
			if err != nil || got != s {
				t.Fatalf("scan found %+v (%v), sealed was %+v", got, err, s)
			}
		}
		if next != l.Next() || payload != 100 {
			t.Fatalf("sealed up to %d with %d blocks", next-1, payload)
		}
		for i, x := range all {
			wantBlocks(t, l, []Extent{x}, pattern(1, uint64(i), 1, 1))
		}
		testRelease(t, l, opts, sealed)
	})
}

// testRelease releases three sealed segments: to the spares, removed for
// there are enough spares, removed at wish.
func testRelease(t *testing.T, l *Log, opts Options, sealed []SegmentInfo) {
	files := l.Stats().Files
	for i, remove := range []bool{false, false, true} {
		if err := l.Release(sealed[i].Number, remove); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Release(sealed[0].Number, false); !errors.Is(err, ErrInvalid) {
		t.Fatalf("released twice: %v", err)
	}
	if err := l.Release(12345, false); !errors.Is(err, ErrInvalid) {
		t.Fatalf("released what never was: %v", err)
	}
	numbers, err := list(opts)
	if err != nil || len(numbers) > files-2+1 {
		t.Fatalf("%d files after %d (%v)", len(numbers), files, err)
	}
	if slices.Contains(numbers, sealed[2].Number) {
		t.Fatal("a removed segment is still there")
	}
	for i := range 60 {
		putBlocks(t, l, 1, uint64(i), 1, 2)
	}
	if !slices.ContainsFunc(l.Unsealed(), func(s SegmentInfo) bool { return s.Number == sealed[0].Number }) {
		if _, again := l.Sealed(sealed[0].Number); !again {
			t.Fatal("the spare was not used again")
		}
	}
}

func TestInvalidCalls(t *testing.T) {
	opts := memOptions(crashable(t))
	l := mustOpen(t, opts, 1, nil, 0)
	p := pattern(1, 0, 1, 1)
	if _, err := l.Append(dataEntry(1, 0, p), p, false, nil); !errors.Is(err, ErrInvalid) {
		t.Fatalf("append without credit: %v", err)
	}
	if err := l.Admit(testContext(t), 64, 10); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		e    Entry
		data []byte
	}{
		"no kind":           {Entry{}, nil},
		"unknown kind":      {Entry{Kind: 9}, nil},
		"trim with payload": {Entry{Kind: Trim, Count: 1}, p},
		"empty trim":        {Entry{Kind: Trim}, nil},
		"no checksums":      {Entry{Kind: Data, Count: 1}, p},
		"wrong count":       {Entry{Kind: Data, Count: 2, CRCs: sums(p)}, p},
		"no payload":        {Entry{Kind: Data}, nil},
		"moved, no birth":   {Entry{Kind: Moved, Count: 1, CRCs: sums(p)}, p},
		"data with birth":   {Entry{Kind: Data, Count: 1, Birth: 1, CRCs: sums(p)}, p},
		"empty struct":      {Entry{Kind: Struct}, nil},
		"overflow":          {Entry{Kind: Data, Block: ^uint64(0), Count: 1, CRCs: sums(p)}, p},
		"mark with range":   {Entry{Kind: Mark, Count: 1}, nil},
	} {
		if _, err := l.Append(c.e, c.data, false, nil); err == nil {
			t.Errorf("%s was appended", name)
		}
	}
	if _, err := l.Append(Entry{Kind: Struct}, make([]byte, 16*BlockSize), false, nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a change larger than a segment: %v", err)
	}
	if l.Next() != 1 {
		t.Errorf("refused entries took numbers: next is %d", l.Next())
	}
	l.Unadmit(64, 10)
	if m := l.Stats().MemoryBytes; m != 0 {
		t.Errorf("%d bytes of memory are admitted at rest", m)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Admit(testContext(t), 1, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("admit after close: %v", err)
	}
	if err := l.Read(p, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
}
