package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// DiskBytes is what the index takes in the file system, logs and tables that wait for their removal or reuse included. Pebble
// counts what is in its logs, but preallocates them; on a small file system that is most of it. Pebble's count takes milliseconds,
// so it is asked for when the last answer may have changed.
func (x *Index) DiskBytes() uint64 {
	if x.use() != nil {
		return 0
	}
	x.disk.Lock()
	defer x.disk.Unlock()
	if n := x.changes.Load(); x.disk.of != n {
		x.disk.bytes, x.disk.of = x.countDisk(), n
	}
	return x.disk.bytes
}

// diskBytes is the last answer of DiskBytes.
type diskBytes struct {
	sync.Mutex
	of    uint64 // Index.changes
	bytes uint64
}

func (x *Index) countDisk() uint64 {
	m := x.db.Metrics()
	logs := uint64(m.WAL.Files+m.WAL.ObsoleteFiles) * uint64(x.opts.logBytes())
	return m.DiskSpaceUsage() + logs - min(logs, m.WAL.PhysicalSize+m.WAL.ObsoletePhysicalSize)
}

// WrittenBytes is what the index has written to its files since it was opened, in bytes: its log, and every table as often as
// it was rewritten.
func (x *Index) WrittenBytes() uint64 {
	if x.use() != nil {
		return 0
	}
	m := x.db.Metrics()
	n := m.WAL.BytesWritten
	for i := range m.Levels {
		l := &m.Levels[i]
		n += l.TableBytesFlushed + l.TableBytesCompacted + l.BlobBytesFlushed + l.BlobBytesCompacted
	}
	return n
}

// Metrics is Pebble's own account of itself, for people.
func (x *Index) Metrics() string {
	if x.use() != nil {
		return ""
	}
	return x.db.Metrics().String()
}

// Flush writes what is in memory to tables. Commits are durable without it.
func (x *Index) Flush() (err error) {
	if err := x.writable(); err != nil {
		return err
	}
	done, err := x.startFlush()
	if err != nil {
		return err
	}
	for {
		_, changed := x.room.state()
		select {
		case <-done:
			return x.Err()
		case <-changed:
			if failing, _ := x.room.state(); failing != nil {
				return flushError(failing)
			}
		case <-x.fuse.blown:
			return x.Err()
		}
	}
}

func (x *Index) startFlush() (done <-chan struct{}, err error) {
	x.commitMu.Lock()
	defer x.commitMu.Unlock()
	if err := x.room.wait(0); err != nil {
		return nil, err
	}
	defer x.fuse.catch(&err)
	return x.db.AsyncFlush()
}

// Compact rewrites all tables into the fewest, which gives back the space of everything deleted.
func (x *Index) Compact(ctx context.Context) (err error) {
	if err := x.Flush(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-x.fuse.blown: // nobody may be left to answer
			cancel(x.Err())
		case <-ended:
		}
	}()
	defer x.fuse.catch(&err)
	if err := x.db.Compact(ctx, []byte{0}, []byte{0xff}, false); err != nil {
		return errors.Join(fmt.Errorf("index: compact: %w", err), x.Err())
	}
	return x.Err()
}

// Backup writes a copy of the index, as it is now, to a folder that must not exist. Tables are hard links where the file system
// has them, so it costs little; it is durable when Backup returns, and opens like any index. A backup that failed is removed.
func (x *Index) Backup(dir string) (err error) {
	if err := x.writable(); err != nil {
		return err
	}
	if _, err := x.fs.Stat(dir); err == nil {
		return fmt.Errorf("index: backup: %s: %w", dir, fs.ErrExist)
	}
	if err := x.backup(dir); err != nil {
		return errors.Join(fmt.Errorf("index: backup: %w", err), x.fs.RemoveAll(dir))
	}
	return nil
}

// backup turns the panic of a marker whose folder cannot be synced into an error; no lock is held there. The format comes
// last: a folder without it does not open.
func (x *Index) backup(dir string) (err error) {
	defer func() {
		r := recover()
		cause, ok := r.(error)
		if _, bug := r.(runtime.Error); r != nil && (!ok || bug) {
			panic(r)
		}
		err = errors.Join(err, cause)
	}()
	defer x.fuse.catch(&err)
	if err := x.db.Checkpoint(dir, pebble.WithFlushedWAL()); err != nil {
		return err
	}
	return errors.Join(writeMarker(x.fs, dir), x.Err())
}

// Check reads everything: the order and checksums of all tables, that every key is one of ours, that every page value can be
// merged, and that pages and changes name each other.
func (x *Index) Check() (err error) {
	if err := x.use(); err != nil {
		return err
	}
	defer x.fuse.catch(&err)
	if err := x.db.CheckLevels(nil); err != nil {
		return fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	return x.checkKeys()
}

func (x *Index) checkKeys() (err error) {
	view := x.db.NewSnapshot() // both sides of each pair as of one instant
	defer func() { err = errors.Join(err, view.Close()) }()
	twins, err := view.NewIter(prefixOptions)
	if err != nil {
		return readError(err)
	}
	defer func() { err = errors.Join(err, readError(twins.Close())) }()
	twin := make([]byte, 0, pageLen)
	return walk(view, &pebble.IterOptions{}, (*pebble.Iterator).First, func(k key, _ []byte) (bool, error) {
		switch k.kind {
		case pageKind:
			twin = appendChangeKey(twin[:0], k.branch, k.version, k.page)
		case changeKind:
			twin = appendPageKey(twin[:0], k.branch, k.page, k.version)
		default:
			return true, nil
		}
		if !twins.SeekPrefixGE(twin) || !bytes.Equal(twins.Key(), twin) {
			if err := twins.Error(); err != nil {
				return false, readError(err)
			}
			return false, fmt.Errorf("%w: branch %d, page %d, version %d: its page and its list of changes disagree (key %x has no twin)",
				ErrCorrupt, k.branch, k.page, k.version, k.append(nil))
		}
		return true, nil
	})
}

func (x *Index) writable() error {
	if err := x.use(); err != nil {
		return err
	}
	if x.opts.ReadOnly {
		return ErrReadOnly
	}
	return x.Err()
}
