package lun

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"lunar/cow"
)

// benchVolume is a LUN of 256 MiB on a real file system, written once in random order.
func benchVolume(b *testing.B) (*Volume, uint64) {
	b.Helper()
	p, err := Open(bg, Options{FS: vfs.Default, Dir: b.TempDir(), Capacity: 4 << 30})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	const blocks = 256 << 20 / blockSize
	if _, err := p.CreateLUN(bg, CreateLUN{Name: "disk", SizeBytes: blocks * blockSize}); err != nil {
		b.Fatal(err)
	}
	v, err := p.OpenVolume("disk", "")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { v.Close() })
	buf := make([]byte, blockSize)
	for i := range uint64(blocks) {
		if err := v.WriteAt(buf, int64(apart(i, blocks))*blockSize, false); err != nil {
			b.Fatal(err)
		}
	}
	if err := v.Flush(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	return v, blocks
}

// apart visits each of n (a power of two) in an order without neighbours.
func apart(i, n uint64) uint64 { return i * 0x9e3779b1 % n }

// BenchmarkHotLookup is the way from a block to its location, all maps in memory.
func BenchmarkHotLookup(b *testing.B) {
	v, n := benchVolume(b)
	e := entryPool.Get().(*entries)
	for i := range uint64(b.N) {
		block := apart(i, n)
		if err := v.lookup(block/cow.PageBlocks, int(block%cow.PageBlocks), 1, e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead4K(b *testing.B) {
	v, n := benchVolume(b)
	p := make([]byte, blockSize)
	b.SetBytes(blockSize)
	for i := range uint64(b.N) {
		if err := v.ReadAt(p, int64(apart(i, n))*blockSize); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWrite4K(b *testing.B) {
	v, n := benchVolume(b)
	p := make([]byte, blockSize)
	b.SetBytes(blockSize)
	for i := range uint64(b.N) {
		if err := v.WriteAt(p, int64(apart(i, n))*blockSize, false); err != nil {
			b.Fatal(err)
		}
	}
}
