package segment

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testDir is the segment folder in memory.
const testDir = "data"

// memOptions are options for a small log on fs.
func memOptions(fs vfs.FS) Options {
	return Options{FS: fs, Dir: testDir, PoolID: 0x1122334455667788, Epoch: 1, SegmentBytes: 64 << 10, RecordBlocks: 8, WriteDelay: time.Hour, MemoryBytes: 1 << 20}
}

// crashable is a memory file system with a durable, empty segment folder.
func crashable(t testing.TB) *vfs.MemFS {
	t.Helper()
	fs := vfs.NewCrashableMem()
	if err := fs.MkdirAll(testDir, 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := fs.OpenDir("/")
	if err != nil {
		t.Fatal(err)
	}
	if err := root.Sync(); err != nil {
		t.Fatal(err)
	}
	root.Close()
	return fs
}

func mustOpen(t testing.TB, opts Options, next Seq, free []uint64, highest uint64) *Log {
	t.Helper()
	l, err := Open(opts, next, free, highest)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// pattern fills n blocks that name what they are.
func pattern(version, block uint64, n int, stamp uint64) []byte {
	p := make([]byte, n*BlockSize)
	for i := range n {
		b := p[i*BlockSize : (i+1)*BlockSize]
		for o := 0; o < BlockSize; o += 32 {
			binary.LittleEndian.PutUint64(b[o:], version)
			binary.LittleEndian.PutUint64(b[o+8:], block+uint64(i))
			binary.LittleEndian.PutUint64(b[o+16:], stamp)
			binary.LittleEndian.PutUint64(b[o+24:], uint64(o))
		}
	}
	return p
}

func sums(p []byte) []uint32 {
	crcs := make([]uint32, len(p)/BlockSize)
	for i := range crcs {
		crcs[i] = Checksum(p[i*BlockSize : (i+1)*BlockSize])
	}
	return crcs
}

func dataEntry(version, block uint64, p []byte) Entry {
	return Entry{Kind: Data, Version: version, Block: block, Count: uint64(len(p) / BlockSize), CRCs: sums(p)}
}

// put admits and appends one entry.
func put(t testing.TB, l *Log, e Entry, p []byte) []Extent {
	t.Helper()
	blocks := (len(p) + BlockSize - 1) / BlockSize
	if err := l.Admit(testContext(t), blocks, 1); err != nil {
		t.Fatal(err)
	}
	out, err := l.Append(e, p, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// putBlocks appends patterned blocks.
func putBlocks(t testing.TB, l *Log, version, block uint64, n int, stamp uint64) []Extent {
	t.Helper()
	p := pattern(version, block, n, stamp)
	return put(t, l, dataEntry(version, block, p), p)
}

// wantBlocks reads extents back and compares them.
func wantBlocks(t testing.TB, l *Log, extents []Extent, want []byte) {
	t.Helper()
	for _, x := range extents {
		p := make([]byte, x.Count*BlockSize)
		if err := l.Read(p, x.Loc); err != nil {
			t.Fatalf("read of %d blocks at %d: %v", x.Count, x.Loc, err)
		}
		if !bytes.Equal(p, want[x.First*BlockSize:(x.First+x.Count)*BlockSize]) {
			t.Fatalf("read of %d blocks at %d: wrong content", x.Count, x.Loc)
		}
	}
}

// replayed is an entry as Recover reported it.
type replayed struct {
	Entry
	Seq     Seq
	Loc     Loc
	Payload []byte
}

func (r replayed) String() string {
	return fmt.Sprintf("%d:%s v%d %d+%d", r.Seq, r.Kind, r.Version, r.Block, r.Count)
}

func noneSealed(uint64) bool { return false }

// recoverAll recovers and collects the entries.
func recoverAll(opts Options, from Seq, accept bool) ([]replayed, Recovered, error) {
	var all []replayed
	got, err := Recover(opts, from, noneSealed, accept, func(e Entry, seq Seq, loc Loc, payload []byte) error {
		e.CRCs = append([]uint32(nil), e.CRCs...)
		all = append(all, replayed{e, seq, loc, append([]byte(nil), payload...)})
		return nil
	})
	return all, got, err
}

func mustRecover(t testing.TB, opts Options, from Seq) ([]replayed, Recovered) {
	t.Helper()
	all, got, err := recoverAll(opts, from, false)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range all {
		if r.Seq != max(from, 1)+Seq(i) {
			t.Fatalf("entry %d of the replay from %d has number %d", i, from, r.Seq)
		}
	}
	return all, got
}

// alignedOf returns p if it begins at a multiple of the block size.
func alignedOf(p []byte) []byte {
	if uintptr(unsafe.Pointer(&p[0]))%BlockSize != 0 {
		return make([]byte, 1)
	}
	return p
}
