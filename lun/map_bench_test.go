package lun

import (
	"math/rand/v2"
	"testing"
	"time"

	"lunar/cow"
)

// mapPool has a LUN of 1 GiB, all written: in order, or each block once in random order, so that no two are neighbours in the log.
// The map of 512 pages is eight times the least cache there can be.
func mapPool(b *testing.B, random bool, cache int64) *Volume {
	b.Helper()
	p, err := Open(bg, Options{Dir: b.TempDir() + "/pool", Capacity: 8 << 30, Manual: true, IndexCache: cache})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	if _, err := p.CreateLUN(bg, CreateLUN{Name: "d", SizeBytes: 1 << 30}); err != nil {
		b.Fatal(err)
	}
	v, err := p.OpenVolume("d", "")
	if err != nil {
		b.Fatal(err)
	}
	const blocks, piece = 1 << 30 / blockSize, 64
	order := rand.New(rand.NewPCG(1, 2))
	if random {
		block := make([]byte, blockSize)
		for _, at := range order.Perm(blocks) {
			fill(block, uint64(at))
			if err := v.WriteAt(block, int64(at)*blockSize, false); err != nil {
				b.Fatal(err)
			}
		}
	} else {
		data := make([]byte, piece*blockSize)
		for at := 0; at < blocks; at += piece {
			fill(data, uint64(at))
			if err := v.WriteAt(data, int64(at)*blockSize, false); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := p.Checkpoint(); err != nil {
		b.Fatal(err)
	}
	if err := p.index.Compact(bg); err != nil {
		b.Fatal(err)
	}
	return v
}

// BenchmarkMap is the map alone: what a look-up costs when the page is in memory (under 100 ns wanted), and what loading a page
// costs; and a random read of 4 KiB with all of the map in memory and with an eighth.
func BenchmarkMap(b *testing.B) {
	for _, c := range []struct {
		name   string
		random bool
		cache  int64
	}{{"sequential/cached", false, 64 << 20}, {"sequential/eighth", false, 1}, {"random/cached", true, 64 << 20}, {"random/eighth", true, 1}} {
		v := mapPool(b, c.random, c.cache)
		random := rand.New(rand.NewPCG(3, 4))
		e := new(entries)
		b.Run("lookup/"+c.name, func(b *testing.B) {
			for b.Loop() {
				at := random.Uint64N(1 << 18)
				if err := v.lookup(at/cow.PageBlocks, int(at%cow.PageBlocks), 1, e); err != nil {
					b.Fatal(err)
				}
			}
		})
		block := make([]byte, blockSize)
		b.Run("read/"+c.name, func(b *testing.B) {
			began := time.Now()
			n := 0
			for ; b.Loop(); n++ {
				if err := v.ReadAt(block, random.Int64N(1<<18)*blockSize); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)/time.Since(began).Seconds(), "reads/s")
		})
	}
}
