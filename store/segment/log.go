package segment

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Log is an open log. All methods may be called concurrently.
type Log struct {
	opts    Options
	blocks  int // of a segment
	bufs    *Buffers
	handles *handleTable

	// mu guards the reservation. It is never held across I/O, a callback, or
	// the copying of payload.
	mu         sync.Mutex
	next       Seq          // the next to be given out
	seg        *openSegment // being appended to; nil until the first entry of a segment
	cur        *record      // being filled; nil if none
	head, tail *record      // closed, in order, not yet written
	spareRecs  *record
	live       []*openSegment // sealed but not yet finished, in order, then seg
	prepared   []*openSegment // ready to be used
	free       []uint64       // files that may be overwritten
	highest    uint64         // number ever used
	files      int            // segment files there are
	limit      int            // MaxSegments, as last asked; 0 is none
	sealed     map[uint64]SegmentInfo
	releasing  map[uint64]bool
	adm        admission
	armed      bool  // the writer's clock runs
	appending  int   // appends that have reserved a part of what they need
	preparing  int   // segments that the keeper is working on
	prepareErr error // why the last preparation failed
	closing    bool
	counts     counters

	// liveSet is live as readers see it: a list that is never changed.
	liveSet atomic.Pointer[[]*openSegment]

	// ioMu is held while one record is written: the file order is the order of
	// the log.
	ioMu    sync.Mutex
	pushMu  sync.Mutex // serialises Push; taken before ioMu
	iov     [][]byte
	stream  int // blocks of large writes in a row
	group   group
	leading atomic.Bool // someone writes records for a sync

	// sealMu is held while a sealed segment is synced and handed on, in order.
	sealMu sync.Mutex

	available atomic.Int64 // see Available

	written atomic.Uint64 // the last entry whose record is in its file
	synced  atomic.Uint64 // the last entry that is durable; <= written
	failed  atomic.Pointer[failure]

	kickWriter   chan struct{}
	kickKeeper   chan struct{}
	kickFinisher chan struct{}
	stop         chan struct{}
	running      sync.WaitGroup
	closed       atomic.Bool
}

type counters struct {
	records        atomic.Uint64 // read without Log.mu
	syncs          uint64
	payload, total uint64 // bytes
}

// Stats describes the log at one moment.
type Stats struct {
	Next, Written, Synced Seq
	Open                  uint64 // number of the open segment, 0 if none
	Files                 int    // segment files there are
	Limit                 int    // how many there may be; 0 is no limit
	Prepared, Free        int
	Unsynced              int // segments with records that are not synced, the open one included
	Records, Syncs        uint64
	PayloadBytes          uint64 // appended
	Bytes                 uint64 // appended, headers included
	MemoryBytes           int64  // admitted and not yet written
	Waiting               int    // admissions that wait
	Handles               int    // open files of sealed segments
}

// Open starts a log that continues with entry next, in a segment that is none
// of those there are, except that those in free may be overwritten. highest is
// the largest number of a segment ever used. A file system that is full at this
// moment is no error: Admit waits.
func Open(opts Options, next Seq, free []uint64, highest uint64) (*Log, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := opts.FS.MkdirAll(opts.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("the segment folder: %w", err)
	}
	// A free file may be one that a killed process had just made.
	if err := syncFolder(opts.FS, opts.Dir); err != nil {
		return nil, fmt.Errorf("the segment folder: %w", err)
	}
	numbers, err := list(opts)
	if err != nil {
		return nil, err
	}
	if len(numbers) > 0 {
		highest = max(highest, numbers[len(numbers)-1])
	}
	l := &Log{
		opts: opts, blocks: opts.segmentBlocks(), bufs: opts.Buffers,
		handles: newHandleTable(opts.MaxOpen),
		next:    max(next, 1), free: present(free, numbers),
		highest: highest, files: len(numbers),
		sealed: map[uint64]SegmentInfo{}, releasing: map[uint64]bool{},
		kickWriter: make(chan struct{}, 1), kickKeeper: make(chan struct{}, 1), kickFinisher: make(chan struct{}, 1),
		stop: make(chan struct{}),
	}
	l.liveSet.Store(&[]*openSegment{})
	l.written.Store(uint64(l.next - 1))
	l.synced.Store(uint64(l.next - 1))
	l.group.cond.L = &l.group.mu
	l.askLimit()
	l.prepareAhead()
	if err := l.Err(); err != nil {
		l.closeFiles()
		return nil, err
	}
	l.running.Add(3)
	go l.writeBehind()
	go l.finish()
	go l.keep()
	return l, nil
}

// present are those of the free segments that there are, each once: a file that
// is not there must be made as a new one.
func present(free, numbers []uint64) []uint64 {
	var there []uint64
	for _, n := range free {
		if _, found := slices.BinarySearch(numbers, n); found && !slices.Contains(there, n) {
			there = append(there, n)
		}
	}
	return there
}

// Next is the sequence number that the next entry gets.
func (l *Log) Next() Seq {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next
}

// Available is how many whole segments can still be written below the limit,
// those that only AdmitReserved may take included. It takes no lock. Without a
// limit it is as large as can be.
func (l *Log) Available() int { return int(l.available.Load()) }

// noteAvailableLocked brings Available up to date.
func (l *Log) noteAvailableLocked() {
	n := int64(math.MaxInt32)
	if l.limit > 0 {
		n = int64(l.availableLocked())
	}
	l.available.Store(n)
}

// Synced is the last entry that is durable.
func (l *Log) Synced() Seq { return Seq(l.synced.Load()) }

// Buffers is the pool that owned payload is taken from.
func (l *Log) Buffers() *Buffers { return l.bufs }

// Locate takes a location apart.
func (l *Log) Locate(loc Loc) (number uint64, block int) {
	return uint64(loc) / uint64(l.blocks), int(uint64(loc) % uint64(l.blocks))
}

// Open is the number of the segment that is appended to; 0 if none is yet.
func (l *Log) Open() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seg == nil {
		return 0
	}
	return l.seg.number
}

// Unsealed describes the segments that OnSeal was not called for yet, oldest first.
func (l *Log) Unsealed() []SegmentInfo {
	l.mu.Lock()
	defer l.mu.Unlock()
	infos := make([]SegmentInfo, len(l.live))
	for i, s := range l.live {
		infos[i] = s.info()
	}
	return infos
}

// Sealed describes a segment that this log sealed and that was not released.
func (l *Log) Sealed(number uint64) (SegmentInfo, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	info, ok := l.sealed[number]
	return info, ok
}

// Free lists the segment files that hold nothing: those that are prepared and the spares.
func (l *Log) Free() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	numbers := make([]uint64, 0, len(l.prepared)+len(l.free))
	for _, s := range l.prepared {
		numbers = append(numbers, s.number)
	}
	return append(numbers, l.free...)
}

// Highest is the largest segment number ever used.
func (l *Log) Highest() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.highest
}

// Records is how many records were begun.
func (l *Log) Records() uint64 { return l.counts.records.Load() }

// Stats describes the log now.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Stats{
		Next: l.next, Written: Seq(l.written.Load()), Synced: l.Synced(),
		Files: l.files, Limit: l.limit, Prepared: len(l.prepared), Free: len(l.free),
		Unsynced: len(l.live), Records: l.Records(), Syncs: l.counts.syncs,
		PayloadBytes: l.counts.payload, Bytes: l.counts.total,
		MemoryBytes: l.adm.memory, Waiting: l.adm.reserved.n + l.adm.ordinary.n,
		Handles: l.handles.len(),
	}
	if l.seg != nil {
		s.Open = l.seg.number
	}
	return s
}

// Err is the reason why the log takes no more writes, or nil.
func (l *Log) Err() error {
	if f := l.failed.Load(); f != nil {
		return f
	}
	return nil
}

// fail makes the log refuse everything but reads, for good.
func (l *Log) fail(doing string, cause error) error {
	f := &failure{doing, cause}
	if !l.failed.CompareAndSwap(nil, f) {
		return l.Err()
	}
	l.mu.Lock()
	l.refuseLocked(f)
	l.mu.Unlock()
	if l.opts.OnFail != nil {
		l.opts.OnFail(f)
	}
	return f
}

// usableLocked says whether the log takes writes.
func (l *Log) usableLocked() error {
	if err := l.Err(); err != nil {
		return err
	}
	if l.closing {
		return ErrClosed
	}
	return nil
}

// Close writes and syncs what is pending, unless the log failed, and lets all
// files go. It returns the error that kept it from doing so.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closing {
		l.mu.Unlock()
		return ErrClosed
	}
	l.closing = true
	l.refuseLocked(ErrClosed)
	for l.appending > 0 { // they wait for nothing
		l.mu.Unlock()
		runtime.Gosched()
		l.mu.Lock()
	}
	last := l.next - 1
	l.mu.Unlock()
	err := l.Sync(last)
	close(l.stop)
	l.running.Wait()
	l.closed.Store(true)
	l.closeFiles()
	return err
}

func (l *Log) closeFiles() {
	l.mu.Lock()
	open := append(append([]*openSegment(nil), l.live...), l.prepared...)
	l.live, l.prepared, l.seg = nil, nil, nil
	l.liveSet.Store(&[]*openSegment{})
	l.mu.Unlock()
	for _, s := range open {
		s.out.close()
		s.h.release()
	}
	l.handles.close()
}

// kick wakes the goroutine that listens, once.
func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// timerOf returns a stopped timer.
func timerOf() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}
