// Package index is the one owner of Pebble: it opens it, owns the key table, the Batch type and the format version of the
// index, and knows bytes only. What a page record, an object or a counter means is decided above it.
//
// The nouns:
//
//	Index       the open database
//	Batch       changes that become durable together: Commit is the only commit, and it syncs
//	PageReader  one pass over the stored versions of a page, newest first
//
// The index learns what changed at a checkpoint only; everything in between lives in the log (docs/FORMAT.md). So a
// Commit that failed with anything but ErrDead has changed nothing, and can be made again from what is in memory.
//
// Caveats. After ErrDead nothing can be written until the process opens the index again; reads go on. The slices that are
// handed to a callback, or returned by a PageReader, are valid until the next call only. An Index is safe for concurrent use, a
// Batch and a PageReader are not.
package index

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Options says where the index lives and how much memory it may take. The zero value of a size means its default.
type Options struct {
	FS  vfs.FS // nil: the operating system's
	Dir string

	CacheBytes    int64 // block cache; default 64 MiB
	MemTableBytes int64 // size of one memtable, of which up to four can wait for their turn; default 16 MiB
	MaxOpenFiles  int   // tables that are kept open, and logs; default 512, at least some 80

	// MergePages combines two values of one page, the newer of which came from Batch.MergePage, into one value. It must be
	// associative, since Pebble combines neighbours in any grouping. The result must be memory of its own: neither argument may
	// be kept or returned. An error is reported as ErrCorrupt by whatever read the page. It is called from many
	// goroutines. Required.
	MergePages func(newer, older []byte) ([]byte, error)

	Logger func(string) // what Pebble complains about; nil: nobody is told
	// Fatal is called once, with the first failure after which nothing may be written any more. It may run with locks of
	// Pebble held: it must not call the Index.
	Fatal func(error)

	ReadOnly  bool // nothing is written; a missing index is ErrMissing
	MustExist bool // a missing index is ErrMissing, not a reason to make an empty one
	// Deterministic switches off what Pebble does by itself in the background, so that a simulation that counts operations of
	// the file system counts the same ones again. For tests.
	Deterministic bool
}

// Index is an open index.
type Index struct {
	opts Options
	fs   *fuseFS
	db   *pebble.DB
	lock *pebble.Lock
	fuse *fuse
	room *room

	commitMu sync.Mutex    // one Commit at a time, so that room's answer stays true until Pebble acts on it
	changes  atomic.Uint64 // of the files, by commits and by Pebble itself
	disk     diskBytes
	closed   atomic.Bool
}

// Open opens the index in o.Dir, or makes one where there is none. The folder above must exist and be durable.
func Open(o Options) (*Index, error) {
	if o.MergePages == nil {
		return nil, errors.New("index: Options.MergePages is not set")
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.ReadOnly {
		o.MustExist = true
	}
	x := &Index{opts: o, fuse: newFuse()}
	x.changes.Add(1)
	x.room = newRoom(x)
	x.fs = newFuseFS(o.FS, o.Dir, x.fuse, x.room)
	if err := prepareDir(x.fs, o); err != nil {
		return nil, x.openError(err)
	}
	if err := x.toOpen(); err != nil {
		return nil, err
	}
	lock, err := pebble.LockDirectory(o.Dir, x.fs)
	if err != nil {
		return nil, fmt.Errorf("index: cannot lock %s, another process may have it open: %w", o.Dir, err)
	}
	x.lock = lock
	if err := x.openDB(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if err := x.fuse.arm(o.Fatal); err != nil {
		return nil, errors.Join(x.openError(nil), x.Close())
	}
	return x, nil
}

// openError prefers the failure of the file system that the fuse kept from Pebble.
func (x *Index) openError(err error) error {
	if cause := x.fuse.arm(nil); cause != nil {
		return fmt.Errorf("index: cannot open %s: %w", x.opts.Dir, cause)
	}
	return err
}

func (x *Index) openDB() (err error) {
	defer x.fuse.catch(&err)
	cache := pebble.NewCache(x.opts.cacheBytes())
	defer cache.Unref() // the database holds its own reference
	db, err := pebble.Open(x.opts.Dir, x.pebbleOptions(cache))
	if err != nil {
		return x.openError(openError(x.opts.Dir, err))
	}
	x.db = db
	return nil
}

// Err returns the failure that ended all writing, or nil.
func (x *Index) Err() error { return x.fuse.err() }

// Close gives everything back. What was committed is durable already, so a failed Close loses nothing.
// All readers and batches must be closed before.
func (x *Index) Close() error {
	if x.closed.Swap(true) {
		return nil
	}
	x.room.close()
	return errors.Join(x.closeDB(), x.lock.Close())
}

// closeDB closes Pebble, unless a goroutine did not return to it (see fuse) so that its Close would wait for ever. Such a
// database is left behind, memory and all; it cannot write any more.
func (x *Index) closeDB() error {
	if x.fuse.isStuck() {
		return x.fs.lock.Close()
	}
	done := make(chan error, 1)
	go func() {
		var err error
		defer func() { done <- err }()
		defer x.fuse.catch(&err)
		err = x.db.Close()
	}()
	select {
	case err := <-done:
		if x.fuse.isBlown() {
			return nil // it complains about the failure that was reported
		}
		return err
	case <-x.fuse.stuck:
		return x.fs.lock.Close()
	}
}

// use says why the index cannot be used, if so. Pebble itself panics after its Close.
func (x *Index) use() error {
	if x.closed.Load() {
		return ErrClosed
	}
	return nil
}
