package lun

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"lunar/store/crashfs"
)

// faulty is a disk whose n-th counted operation fails, once.
type faulty struct {
	mu    sync.Mutex
	on    bool
	n, at int // counted so far; which one fails, 0 for none
	errno syscall.Errno
	kinds func(errorfs.OpKind) bool
	hit   string
}

func (f *faulty) String() string { return "faulty" }

func (f *faulty) MaybeError(op errorfs.Op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.on || !f.kinds(op.Kind) {
		return nil
	}
	f.n++
	if f.n != f.at {
		return nil
	}
	f.hit = fmt.Sprintf("kind %d of %s", op.Kind, op.Path)
	return f.errno
}

func writeKind(k errorfs.OpKind) bool {
	return k.ReadOrWrite() == errorfs.OpIsWrite && k != errorfs.OpFileClose
}

func syncKind(k errorfs.OpKind) bool {
	return k == errorfs.OpFileSync || k == errorfs.OpFileSyncData
}

// badDay runs a small workload on a faulty disk and reopens on a healthy one.
type badDay struct {
	*model
	f      *faulty
	failed []error
}

func newBadDay(t *testing.T, f *faulty) *badDay {
	m := &model{t: t, fs: crashfs.New(), heads: map[string]stamps{}, snaps: map[string]map[string]stamps{}}
	m.o = Options{
		Dir: "pool", Capacity: 1 << 30, Manual: true, PlainWrites: true,
		SegmentBytes: 64 << 10, RecordBlocks: 8, IndexCache: 1 << 20, FS: errorfs.Wrap(m.fs, f),
	}
	p, err := Open(context.Background(), m.o)
	m.check(err, "open")
	m.p = p
	m.addLUN("a")
	f.on = true
	return &badDay{m, f, nil}
}

// try does one thing; what failed is only noted.
func (d *badDay) try(what string, fn func() error) bool {
	d.t.Helper()
	err := fn()
	if err == nil {
		return true
	}
	d.failed = append(d.failed, fmt.Errorf("%s: %w", what, err))
	var errno syscall.Errno
	if !errors.As(err, &errno) || errno != syscall.EIO && errno != syscall.ENOSPC && errno != syscall.EPERM {
		d.t.Errorf("%s: %v: errno %d", what, err, errno)
	}
	return false
}

// write notes the change before it is tried: one that failed may be there or not.
func (d *badDay) write(at, n int) {
	d.try("write", func() error {
		v, err := d.p.OpenVolume("a", "")
		if err != nil {
			return err
		}
		defer v.Close()
		b := make([]byte, n*blockSize)
		for i := range n {
			d.next++
			fill(b[i*blockSize:(i+1)*blockSize], d.next)
			d.pend = append(d.pend, delta{"a", at + i, d.next})
		}
		return v.WriteAt(b, int64(at)*blockSize, false)
	})
}

func (d *badDay) flush() {
	ok := d.try("flush", func() error {
		v, err := d.p.OpenVolume("a", "")
		if err != nil {
			return err
		}
		defer v.Close()
		return v.Flush()
	})
	if ok && len(d.failed) == 0 {
		d.settle()
	}
}

func (d *badDay) work() {
	ctx := context.Background()
	d.write(0, 20)
	d.flush()
	d.write(10, 20)
	taken := d.try("snapshot", func() error {
		_, err := d.p.CreateSnapshots(ctx, []SnapshotRequest{{LUN: "a", Name: "s"}}, SnapshotOptions{})
		return err
	})
	if taken && len(d.failed) == 0 {
		d.settle()
		d.snaps["a"]["s"] = d.heads["a"].clone()
	}
	d.write(5, 30)
	d.try("checkpoint", d.p.Checkpoint)
	d.write(0, 20)
	d.flush()
	d.try("clean", func() error { _, err := d.p.Clean(ctx); return err })
	d.write(40, 10)
	d.flush()
}

// first reads the part of the LUN that the workload writes.
func (d *badDay) first(snap string) (out stamps) {
	d.t.Helper()
	v, err := d.p.OpenVolume("a", snap)
	d.check(err, "open")
	defer v.Close()
	for i := range 50 {
		s, err := readStamp(v, i)
		d.check(err, "read")
		out = append(out, s)
	}
	return out
}

// reads looks at everything while the disk is as it is: reading goes on.
func (d *badDay) reads() {
	d.t.Helper()
	for i, s := range d.first("") {
		if s < d.heads["a"][i] {
			d.t.Errorf("block %d holds stamp %d after the error, %d was flushed", i, s, d.heads["a"][i])
		}
	}
}

// after reopens on the healthy file system: what was flushed is there.
func (d *badDay) after(fs *crashfs.FS) {
	d.t.Helper()
	o := d.o
	o.FS = fs
	p, err := Open(context.Background(), o)
	if err != nil {
		d.t.Errorf("opening again: %v", err)
		return
	}
	defer p.Abandon()
	d.p = p
	if st := p.Status(); st.State != "ok" {
		d.t.Errorf("after the restart the pool is %s: %s", st.State, *st.Reason)
	}
	d.reads()
	for name, want := range d.snaps["a"] {
		for i, s := range d.first(name) {
			if s != want[i] {
				d.t.Errorf("snapshot block %d holds stamp %d, want %d", i, s, want[i])
			}
		}
	}
	d.consistent()
}

func oneBadDay(t *testing.T, f *faulty) *badDay {
	d := newBadDay(t, f)
	d.work()
	f.mu.Lock()
	f.on = false
	hit := f.hit
	f.mu.Unlock()
	d.reads()
	ofCopy := strings.Contains(hit, "/"+backupDir+"/") // the index and its older copy are as they were
	if hit != "" && !ofCopy && !f.kinds(errorfs.OpFileWriteAt) && d.p.Status().State != "read-only" {
		t.Errorf("the sync %s failed and the pool is %s", hit, d.p.Status().State)
	}
	var errno syscall.Errno
	if len(d.failed) > 0 && !f.kinds(errorfs.OpFileWriteAt) && errors.As(d.failed[0], &errno) && errno == syscall.ENOSPC {
		t.Errorf("a failed sync is final, yet the client is told that space may come back: %v", d.failed[0])
	}
	crashed := d.fs.Image(crashfs.LoseAll())
	d.p.Abandon()
	d.after(crashed)
	d.after(d.fs)
	return d
}

func TestEachOperationFailsOnce(t *testing.T) {
	for _, c := range []struct {
		name  string
		errno syscall.Errno
		kinds func(errorfs.OpKind) bool
		runs  int
	}{
		{"EIO", syscall.EIO, writeKind, 9},
		{"ENOSPC", syscall.ENOSPC, writeKind, 9},
		{"sync", syscall.EIO, syncKind, 8},
		{"sync-ENOSPC", syscall.ENOSPC, syncKind, 8},
	} {
		healthy := &faulty{kinds: c.kinds}
		if d := oneBadDay(t, healthy); len(d.failed) > 0 {
			t.Fatalf("on a healthy disk: %v", d.failed)
		}
		stride := max(1, healthy.n/c.runs)
		for at := 1; at <= healthy.n; at += stride {
			t.Run(fmt.Sprintf("%s/%d", c.name, at), func(t *testing.T) {
				f := &faulty{at: at, errno: c.errno, kinds: c.kinds}
				d := oneBadDay(t, f)
				if t.Failed() {
					t.Logf("failing operation: %s; errors: %v", f.hit, d.failed)
				}
			})
		}
	}
}

// TestFailedLogIsSeenAtOnce: a writer that the failed log refused may ask for
// the pool's state before the log has told the pool (met in CI).
func TestFailedLogIsSeenAtOnce(t *testing.T) {
	f := &faulty{errno: syscall.EIO, kinds: syncKind}
	d := newBadDay(t, f)
	defer d.p.Abandon()
	d.write(0, 20)
	f.mu.Lock()
	f.n, f.at = 0, 1
	f.mu.Unlock()
	d.flush()
	if d.p.log.Err() == nil {
		t.Fatal("the log did not fail")
	}
	d.p.readOnly.Store(nil)
	if st := d.p.Status(); st.State != "read-only" || st.Reason == nil {
		t.Errorf("the log has failed and the pool is %s", st.State)
	}
	d.p.readOnly.Store(nil)
	if err := d.p.writable(); !errors.Is(err, ErrReadOnly) {
		t.Errorf("the log has failed and the pool takes changes: %v", err)
	}
}
