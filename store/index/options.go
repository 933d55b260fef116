package index

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
)

const (
	defaultCacheBytes    = 64 << 20
	defaultMemTableBytes = 16 << 20
	waitingMemTables     = 4

	// pebbleFormat is pinned, so that another Pebble release changes nothing on disk by itself. It is the first that tells the
	// torn tail of its log from a damage of it, plus the tables of the same release.
	pebbleFormat = pebble.FormatTableFormatV6

	// emptyFlush is how Pebble reports a flush that succeeded and had nothing to write; it exports no sentinel.
	emptyFlush = "pebble: empty table"
)

func (o *Options) cacheBytes() int64 {
	if o.CacheBytes > 0 {
		return o.CacheBytes
	}
	return defaultCacheBytes
}

func (o *Options) memTableBytes() int64 {
	if o.MemTableBytes > 0 {
		return o.MemTableBytes
	}
	return defaultMemTableBytes
}

func (o *Options) maxOpenFiles() int {
	if o.MaxOpenFiles > 0 {
		return o.MaxOpenFiles
	}
	return 512
}

// logBytes is what Pebble allocates for a log when it begins it.
func (o *Options) logBytes() int64 { return o.memTableBytes() + o.memTableBytes()/10 }

// pebbleOptions tunes for many small deltas of pages that are written in bursts, and for reads that are point lookups by
// prefix. FS is always set: Pebble wraps the one it chooses itself in a goroutine that watches for slow disks.
func (x *Index) pebbleOptions(cache *pebble.Cache) *pebble.Options {
	o := &pebble.Options{
		FS:                          x.fs,
		Lock:                        x.lock,
		Cache:                       cache,
		Comparer:                    comparer,
		Merger:                      pagesMerger(x.opts.MergePages),
		FormatMajorVersion:          pebbleFormat,
		Logger:                      &logger{x: x},
		EventListener:               x.listener(),
		ReadOnly:                    x.opts.ReadOnly,
		ErrorIfNotExists:            x.opts.MustExist,
		DisableAutomaticCompactions: x.opts.Deterministic,
		DisableTableStats:           x.opts.Deterministic,

		MemTableSize:                uint64(x.opts.memTableBytes()),
		MemTableStopWritesThreshold: waitingMemTables,
		BytesPerSync:                1 << 20,
		WALBytesPerSync:             1 << 20,
		MaxOpenFiles:                x.opts.maxOpenFiles(),

		// A checkpoint is a burst: L0 takes it and is tidied afterwards. Its filters keep it cheap to read, and a write is
		// never stopped because of its depth; room stops writes, and only for what could not be flushed.
		L0CompactionThreshold: 4,
		L0StopWritesThreshold: 1000,
		LBaseMaxBytes:         64 << 20,

		// Compactions share two cores with the clients.
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
	}
	// The scheduler of compactions that Pebble chooses itself looks around ten times a second, for ever. This one grants when a
	// compaction ends; a waiting one implies a running one.
	o.Experimental.CompactionScheduler = pebble.NewConcurrencyLimitSchedulerWithNoPeriodicGrantingForTest()
	o.TargetFileSizes[0] = 4 << 20
	for i := range o.Levels {
		o.Levels[i].BlockSize = 16 << 10
		o.Levels[i].IndexBlockSize = 64 << 10
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		o.Levels[i].FilterType = pebble.TableFilter
	}
	return o
}

func (x *Index) listener() *pebble.EventListener {
	return &pebble.EventListener{
		FlushEnd: func(info pebble.FlushInfo) {
			if info.Err != nil && info.Err.Error() == emptyFlush {
				info.Err = nil
			}
			x.room.flushed(info.Err)
			x.changes.Add(1)
		},
		CompactionEnd: func(pebble.CompactionInfo) { x.changes.Add(1) },
		TableDeleted:  func(pebble.TableDeleteInfo) { x.changes.Add(1) },
		WALDeleted:    func(pebble.WALDeleteInfo) { x.changes.Add(1) },
		BackgroundError: func(err error) {
			x.room.failed()
			x.logf("%v", err)
		},
		// Whoever reads the damaged block gets the error; Pebble's default would end the process.
		DataCorruption:  func(info pebble.DataCorruptionInfo) { x.logf("%s", info.String()) },
		WriteStallBegin: func(info pebble.WriteStallBeginInfo) { x.logf("%s", info.String()) },
	}
}

func (x *Index) logf(format string, args ...any) {
	if x.opts.Logger != nil {
		x.opts.Logger("index: " + fmt.Sprintf(format, args...))
	}
}
