package segment

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// benchLog is a log on a real file system whose segments are used again, as in
// a pool that has been in use for a while.
func benchLog(b *testing.B, maxUnsynced int) *Log {
	b.Helper()
	var l *Log
	opts := Options{
		MaxUnsynced: maxUnsynced,
		FS:          vfs.Default, Dir: b.TempDir(), PoolID: 1, Epoch: 1, Spares: 8,
		WriteDelay: 3 * time.Millisecond,
		OnSeal: func(i SegmentInfo) {
			if err := l.Release(i.Number, false); err != nil && !errors.Is(err, ErrClosed) {
				panic(err)
			}
		},
	}
	l = mustOpen(b, opts, 1, nil, 0)
	return l
}

func benchAppend(b *testing.B, l *Log, blocks int, read, owned bool) {
	ctx := context.Background()
	p := pattern(1, 1, blocks, 1)
	e := dataEntry(1, 1, p)
	back := make([]byte, len(p))
	out := make([]Extent, 0, 4)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := l.Admit(ctx, blocks, 1); err != nil {
			b.Fatal(err)
		}
		given := p
		if owned {
			given = l.Buffers().Get(len(p))
		}
		var err error
		if out, err = l.Append(e, given, owned, out[:0]); err != nil {
			b.Fatal(err)
		}
		if read {
			if err := l.Read(back[:out[0].Count*BlockSize], out[0].Loc); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.StopTimer()
}

// BenchmarkAppend measures what a writer pays; the record writer runs beside it.
func BenchmarkAppend(b *testing.B) {
	b.Run("4K", func(b *testing.B) { benchAppend(b, benchLog(b, 2), 1, false, false) })
	b.Run("4K-read", func(b *testing.B) { benchAppend(b, benchLog(b, 2), 1, true, false) })
	b.Run("128K-owned", func(b *testing.B) { benchAppend(b, benchLog(b, 2), 32, false, true) })
	for _, n := range []int{2, 16} {
		b.Run(fmt.Sprintf("1M-owned-unsynced-%d", n), func(b *testing.B) { benchAppend(b, benchLog(b, n), 256, false, true) })
	}
}

// BenchmarkReserve measures the append alone: nothing is written.
func BenchmarkReserve(b *testing.B) {
	ctx := context.Background()
	p := pattern(1, 1, 1, 1)
	e := dataEntry(1, 1, p)
	out := make([]Extent, 0, 4)
	l := benchLog(b, 2)
	b.ReportAllocs()
	for n := 0; n < b.N; {
		b.StopTimer()
		if err := l.Sync(l.Next() - 1); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		for range min(4096, b.N-n) {
			if err := l.Admit(ctx, 1, 1); err != nil {
				b.Fatal(err)
			}
			var err error
			if out, err = l.Append(e, p, false, out[:0]); err != nil {
				b.Fatal(err)
			}
			n++
		}
	}
}

func BenchmarkReadSealed(b *testing.B) {
	l := benchLog(b, 2)
	l.opts.OnSeal = nil
	out := putBlocks(b, l, 1, 1, 1, 1)
	if err := l.Rotate(); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, BlockSize)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := l.Read(p, out[0].Loc); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSync measures an append and a sync, by so many callers at a time.
func BenchmarkSync(b *testing.B) {
	for _, callers := range []int{1, 4, 32} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			l := benchLog(b, 2)
			ctx := context.Background()
			p := pattern(1, 1, 1, 1)
			e := dataEntry(1, 1, p)
			b.SetParallelism(callers)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				out := make([]Extent, 0, 4)
				for pb.Next() {
					if err := l.Admit(ctx, 1, 1); err != nil {
						b.Error(err)
						return
					}
					out, _ = l.Append(e, p, false, out[:0])
					if err := l.Sync(out[0].Seq); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/float64(max(l.Stats().Syncs, 1)), "appends/sync")
		})
	}
}
