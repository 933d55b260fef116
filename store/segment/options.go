package segment

import (
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	minSegmentBlocks = 16
	minRecordBlocks  = 4
	fileExt          = ".seg"

	largeWrite = 32 // blocks, for Options.DirectAfter
)

// Options says how a log is kept. The zero value of a field means its default.
type Options struct {
	FS  vfs.FS // default vfs.Default
	Dir string

	PoolID uint64 // a record of another pool is no record
	Epoch  uint64 // raised at each opening; a record of another epoch is not replayed

	SegmentBytes int64         // a multiple of 4096, at least 16 blocks; default 64 MiB. Fixed for a pool
	RecordBlocks int           // most payload blocks of a record; default 256
	WriteDelay   time.Duration // how long a record may wait to be filled; default 3 ms, at most twice that
	MemoryBytes  int64         // payload in flight; default 64 MiB
	Spares       int           // free segment files kept by Release; default 4, negative for none
	Reserve      int           // segments below the limit that only AdmitReserved may take; default 2, negative for none
	MaxUnsynced  int           // segments with unsynced records at a time; default 8, at least 2
	DirectAfter  int64         // of a stream of large writes what is behind this is not kept in the page cache; default 64 MiB, negative: all is kept
	ZeroAhead    int64         // zeros written behind a small record that is synced in a file never written there; default 1 MiB, negative: none
	MaxOpen      int           // open handles of sealed segments; default 512

	// The functions below are called on goroutines that write: they must not
	// block, nor call Rotate or Close. They may be called before Open returns.

	// MaxSegments is the physical limit of segment files now; nil or 0 is none.
	MaxSegments func() int
	// OnFail is called once, when the log fails.
	OnFail func(error)
	// OnSeal is called, in order, for each segment that was left, after it was
	// written and synced. It may call Release.
	OnSeal func(SegmentInfo)
	// OnFull is called when no segment can be prepared or admitted: the owner
	// should clean. It may be called often.
	OnFull func()

	// Source is where new segment files may come from and removed ones may go; nil:
	// they are made and removed.
	Source Source

	// Buffers is the pool of payload buffers; default a new one.
	Buffers *Buffers
	// PlainWrites writes by File.WriteAt even where a vectored write is
	// possible, so that a wrapped FS (error injection) sees each of them.
	PlainWrites bool
}

// Source keeps files of a segment's size, so that their space stays the pool's.
// What is in them does not matter. Neither may call the log.
type Source interface {
	Take(path string) bool // moves one of them to path
	Keep(path string) bool // moves path, which is closed, to them
}

// SegmentInfo describes what the log wrote to a segment.
type SegmentInfo struct {
	Number        uint64
	First, Last   Seq
	Blocks        int // used, headers included
	PayloadBlocks int
}

// withDefaults fills in the defaults and refuses what cannot work.
func (o Options) withDefaults() (Options, error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Dir == "" {
		return o, invalid("no folder is given")
	}
	setDefault(&o.SegmentBytes, 64<<20)
	setDefault(&o.RecordBlocks, 256)
	setDefault(&o.WriteDelay, 3*time.Millisecond)
	setDefault(&o.MemoryBytes, 64<<20)
	setDefault(&o.Spares, 4)
	setDefault(&o.Reserve, 2)
	setDefault(&o.MaxUnsynced, 8)
	setDefault(&o.DirectAfter, 64<<20)
	setDefault(&o.ZeroAhead, 1<<20)
	setDefault(&o.MaxOpen, 512)
	o.Spares, o.Reserve = max(o.Spares, 0), max(o.Reserve, 0)
	if o.SegmentBytes%BlockSize != 0 || o.SegmentBytes < minSegmentBlocks*BlockSize || o.SegmentBytes > 1<<40 {
		return o, invalid("segment size %d: allowed are multiples of %d from %d to 1 TiB", o.SegmentBytes, BlockSize, minSegmentBlocks*BlockSize)
	}
	if o.RecordBlocks < minRecordBlocks || o.RecordBlocks > MaxRecordBlocks {
		return o, invalid("record size %d blocks: allowed are %d to %d", o.RecordBlocks, minRecordBlocks, MaxRecordBlocks)
	}
	if o.WriteDelay < 0 || o.MemoryBytes < BlockSize || o.MaxUnsynced < 2 || o.MaxOpen < 1 {
		return o, invalid("write delay %v, memory %d, unsynced segments %d, open files %d", o.WriteDelay, o.MemoryBytes, o.MaxUnsynced, o.MaxOpen)
	}
	if o.Buffers == nil {
		o.Buffers = NewBuffers(o.MemoryBytes)
	}
	return o, nil
}

func setDefault[T comparable](p *T, d T) {
	var zero T
	if *p == zero {
		*p = d
	}
}

func (o *Options) segmentBlocks() int { return int(o.SegmentBytes / BlockSize) }

func (o *Options) path(number uint64) string { return o.FS.PathJoin(o.Dir, Name(number)) }

// maxNumber is the largest number of a segment that locations can address.
func (o *Options) maxNumber() uint64 { return (maxLoc+1)/uint64(o.segmentBlocks()) - 1 }

// loc is the location of a block of a segment.
func (o *Options) loc(number uint64, block int) Loc {
	return Loc(number*uint64(o.segmentBlocks()) + uint64(block))
}
