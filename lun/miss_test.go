package lun

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// missPool has one LUN on the real file system with a snapshot s of its first page, and n more versions of that page on
// other branches.
func missPool(b *testing.B, n int, branch func(p *Pool, i int) error) *Pool {
	b.Helper()
	p, err := Open(context.Background(), Options{Dir: b.TempDir() + "/pool", Capacity: 4 << 30, Manual: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := p.Close(); err != nil {
			b.Error(err)
		}
	})
	ctx := context.Background()
	if _, err := p.CreateLUN(ctx, CreateLUN{Name: "d", SizeBytes: 1 << 30}); err != nil {
		b.Fatal(err)
	}
	any := 0
	if _, err := p.SetLUN(ctx, "d", SetLUN{MaxSnapshots: &any}); err != nil {
		b.Fatal(err)
	}
	missWrite(b, p, "d", 0, 512)
	if _, err := p.CreateSnapshots(ctx, []SnapshotRequest{{LUN: "d", Name: "s"}}, SnapshotOptions{}); err != nil {
		b.Fatal(err)
	}
	missWrite(b, p, "d", 7, 1)
	for i := range n {
		if err := branch(p, i); err != nil {
			b.Fatal(err)
		}
		if i%512 == 511 {
			if err := p.Checkpoint(); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := p.Checkpoint(); err != nil {
		b.Fatal(err)
	}
	if err := p.index.Compact(ctx); err != nil {
		b.Fatal(err)
	}
	return p
}

// missWrite writes n blocks from the first one on.
func missWrite(b *testing.B, p *Pool, lun string, first, n int) {
	b.Helper()
	v, err := p.OpenVolume(lun, "")
	if err != nil {
		b.Fatal(err)
	}
	defer v.Close()
	block := make([]byte, blockSize)
	for i := range n {
		fill(block, uint64(first+i+1))
		if err := v.WriteAt(block, int64(first+i)*blockSize, false); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPageMiss is what it costs to load a page of a head whose map is not in memory, without and with 4,096
// versions of the same page on other branches. They must not matter (at most 3x).
func BenchmarkPageMiss(b *testing.B) {
	const versions = 4096
	ctx := context.Background()
	clones := func(p *Pool, i int) error {
		name := fmt.Sprintf("c%d", i)
		if _, err := p.Clone(ctx, "d", "s", name, false); err != nil {
			return err
		}
		missWrite(b, p, name, i%512, 1)
		return nil
	}
	rollbacks := func(p *Pool, i int) error {
		if _, err := p.Rollback(ctx, "d", "s", RollbackOptions{}); err != nil {
			return err
		}
		missWrite(b, p, "d", i%512, 1)
		return nil
	}
	// Each rollback goes to a snapshot of the branch that the one before it made: the head's own path is that long.
	chained := func(p *Pool, i int) error {
		from := "s"
		if i > 0 {
			from = fmt.Sprintf("t%d", i-1)
		}
		if _, err := p.Rollback(ctx, "d", from, RollbackOptions{Discard: true}); err != nil {
			return err
		}
		missWrite(b, p, "d", i%512, 1)
		_, err := p.CreateSnapshots(ctx, []SnapshotRequest{{LUN: "d", Name: fmt.Sprintf("t%d", i)}}, SnapshotOptions{})
		return err
	}
	snapshots := func(p *Pool, i int) error {
		if _, err := p.CreateSnapshots(ctx, []SnapshotRequest{{LUN: "d", Name: fmt.Sprintf("t%d", i)}}, SnapshotOptions{}); err != nil {
			return err
		}
		missWrite(b, p, "d", i%512, 1)
		return nil
	}
	for _, c := range []struct {
		name   string
		n      int
		branch func(*Pool, int) error
	}{{"none", 0, nil}, {"clones", versions, clones}, {"rollbacks", versions, rollbacks}, {"snapshots-same-branch", versions, snapshots}, {"rollback-chain-64", 64, chained}} {
		b.Run(c.name, func(b *testing.B) { benchmarkMiss(b, missPool(b, c.n, c.branch)) })
	}
}

func benchmarkMiss(b *testing.B, p *Pool) {
	l, err := p.tree.LUNByName("d")
	if err != nil {
		b.Fatal(err)
	}
	head := p.heads[l.ID]
	total := time.Duration(0)
	for b.Loop() {
		if pg := head.resident(0); pg != nil {
			pg.mu.Lock()
			dropped := pg.dropLocked()
			pg.mu.Unlock()
			if !dropped {
				b.Fatal("the page stays in memory: nothing is measured")
			}
		}
		began := time.Now()
		pg, err := head.get(0)
		total += time.Since(began)
		if err != nil {
			b.Fatal(err)
		}
		pg.unpin()
	}
	b.ReportMetric(float64(total.Nanoseconds())/float64(b.N), "ns/miss")
}
