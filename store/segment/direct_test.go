package segment

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// putOwned appends patterned blocks in a buffer that the log takes.
func putOwned(t testing.TB, l *Log, block uint64, n int) []Extent {
	t.Helper()
	p := l.Buffers().Get(n * BlockSize)
	copy(p, pattern(1, block, n, 1))
	e := dataEntry(1, block, p)
	if err := l.Admit(testContext(t), n, 1); err != nil {
		t.Fatal(err)
	}
	out, err := l.Append(e, p, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestLongStream: what is behind DirectAfter of a stream of large writes goes past
// the page cache, small writes between them do not, and all of it is read and
// recovered alike.
func TestLongStream(t *testing.T) {
	opts := memOptions(vfs.Default)
	opts.Dir, opts.SegmentBytes, opts.RecordBlocks, opts.MemoryBytes = t.TempDir(), 1<<20, 64, 8<<20
	opts.DirectAfter = 100 * BlockSize
	l := mustOpen(t, opts, 1, nil, 0)
	type written struct {
		at  []Extent
		max uint64
		n   int
	}
	var all []written
	block := uint64(0)
	add := func(n int, owned bool) {
		if owned {
			all = append(all, written{putOwned(t, l, block, n), block, n})
		} else {
			all = append(all, written{putBlocks(t, l, 1, block, n, 1), block, n})
		}
		block += uint64(n)
		if err := l.Sync(l.Next() - 1); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 40 {
		add(48, true)
		if i%4 == 3 {
			add(1, false)
		}
	}
	if l.stream <= 100 {
		t.Fatalf("a stream of %d blocks", l.stream)
	}
	w := l.seg.out.(*vectorWriter)
	if w.direct == nil && w.by != nil {
		t.Fatal("the stream did not pass the page cache by")
	}
	if w.direct == nil {
		t.Log("this file system has no direct writes: all were ordinary ones")
	}
	w.close() // the rest of the segment goes the ordinary way
	add(48, true)
	for _, x := range all {
		wantBlocks(t, l, x.at, pattern(1, x.max, x.n, 1))
	}
	for range 300 {
		add(1, false)
	}
	if l.stream != 0 {
		t.Fatalf("a stream of %d blocks after as many small writes", l.stream)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	got, _ := mustRecover(t, opts, 1)
	blocks := 0
	for _, r := range got {
		if err := checkPayload(&opts, r.Entry, r.Loc); err != nil {
			t.Fatal(err)
		}
		blocks += len(r.CRCs)
	}
	if blocks != int(block) {
		t.Fatalf("%d blocks recovered of %d", blocks, block)
	}
}
