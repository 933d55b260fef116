package lun

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"lunar/cow"
	"lunar/reservation"
	"lunar/store/index"
	"lunar/store/segment"
)

// Options of a pool. The zero value of a field means its default.
type Options struct {
	Dir string
	FS  vfs.FS // default: the operating system's

	Capacity        int64 // bytes; stored in the pool; given again it resizes
	SegmentBytes    int64 // stored when the pool is made; default 4 to 64 MiB, as the capacity
	IndexCache      int64 // bytes of page maps in memory; default 256 MiB
	Defaults        AreaDefaults
	OpenFiles       int // segments that are kept open, and as many files of the index; default 512
	SnapshotsPerLUN int // default 256
	ListSnapshots   int // default 256
	Preallocate     bool
	WriteBehind     bool          // answered writes may be in this process's memory alone, for a few milliseconds
	NoDefragment    bool          // scattered blocks stay where they are
	SpaceWait       time.Duration // how long a writer waits for space; default 30 s

	ReadOnly   bool // open without changing anything
	AcceptLoss bool // go on behind an unreadable part of the log

	BackUpEvery time.Duration // how often the index is copied; 0: 10 min, negative: never

	ScrubEvery time.Duration // how often everything is read by itself; 0: 30 days, negative: never
	ScrubPace  int64         // bytes a second that a scrub reads; 0: no bound

	RecordBlocks int  // most payload blocks of a log record; default 256
	PlainWrites  bool // no vectored writes: a wrapped FS sees each one

	Manual bool // no background work: tests drive checkpoint, merge and clean
	Now    func() time.Time
	Logger *slog.Logger
	Events func(Event)
}

// Limits that make a checkpoint due.
const (
	checkpointBytes   = 1 << 30
	checkpointEntries = 512 << 10
	checkpointEvery   = 30 * time.Second
)

// Pool is an open data folder with everything in it.
type Pool struct {
	opts  Options
	fs    vfs.FS
	id    identity
	now   func() time.Time
	lock  io.Closer
	fresh bool // the folder was no pool before

	log    *segment.Log
	buf    *segment.Buffers
	index  *index.Index
	ledger *reservation.Ledger

	resizeMu  sync.Mutex // resizes, one at a time; taken outside adminMu
	adminMu   sync.Mutex // structural operations, one at a time
	ckptMu    sync.Mutex
	reclaimMu sync.Mutex // one reclaim at a time; above adminMu
	cleanMu   sync.Mutex // one cleaning at a time; above adminMu
	gate      gate
	grace     grace

	// treeMu guards the tree's maps. They change only under the write side of
	// the gate, so that a holder of the gate may read without it.
	treeMu  sync.RWMutex
	tree    *cow.Tree
	objects objectSet // changed since the last checkpoint; under the gate's write side

	viewMu sync.Mutex
	heads  map[cow.LUNID]*view
	tips   map[cow.BranchID]*view  // the head views again, by branch
	frozen map[cow.VersionID]*view // snapshots that somebody reads

	cache   *cache
	overlay *overlay
	dirty   atomic.Int64 // pages on the views' dirty lists
	space   *space
	counter counters
	cum     map[cow.VersionID]counts // what each frozen version sees in all; guarded by adminMu

	reclaiming reclaiming
	treeState  uint64  // counts the changes of the tree; like it, under the gate's write side
	lineage    lineage // guarded by adminMu
	expiry     expiry  // guarded by adminMu
	clock      wallClock

	state     durable      // what the last checkpoint committed
	appended  atomic.Int64 // blocks of the log since the last checkpoint began
	headers   atomic.Int64 // records of the log that appended has the headers of
	entries   atomic.Int64
	readOnly  atomic.Pointer[string]
	clients   atomic.Pointer[ClientControl]
	events    eventLog
	janitor   *janitor
	shardNext atomic.Uint32
	closed    atomic.Bool
	spaceBack broadcast
	pace      pace
	defrag    defrag
	holeLooks holeLooks                   // cleaner only
	holesFail atomic.Bool                 // the file system can make none
	high      atomic.Int64                // available segments from which on there is no pressure
	logNow    atomic.Pointer[segment.Log] // log, for those who are called before Open has returned
	ballast   *ballast
	foreign   atomic.Int64                 // bytes that others took of the file system, as last seen
	warned    map[string]reservation.Level // what was reported, by what it is about; janitor only
	followed  followed                     // when the warnings were last looked at; janitor only
	fewest    atomic.Int64                 // fewest segments in use since their limit fell below them; 0 when it is above
	ballastOf atomic.Int64                 // capacity that was reported as preallocated; -1 when it was reported short
	checking  atomic.Bool                  // a check holds the checkpoint back, and with it the cleaner
	mergeNew  atomic.Bool                  // a merge was published that no checkpoint covers yet
	moved     atomic.Int64                 // blocks that the cleaner copied
	merges    atomic.Uint64                // odd while records of a page are being joined
	pressed   sync.Map                     // cow.LUNID → true where an area is nearly full
	coming    comingBack
	rates     areaRates
	inVain    map[cow.LUNID]time.Time // when recycling ahead found nothing; guarded by adminMu
	overSeen  time.Time               // when borrowed space was last taken back; janitor only
	lost      []string                // what recovery gave up, for people
	marked    segment.Seq             // the log's end after the last mark; janitor only

	commits    uint64 // of the index by this process; guarded by ckptMu
	backups    backups
	scrubs     scrubbing
	checks     sync.Mutex // one check at a time
	waiting    waiting
	rebuilding bool // the index is made of an older copy, see rebuild
}

// SetClients tells the pool who knows the attached clients.
func (p *Pool) SetClients(c ClientControl) { p.clients.Store(&c) }

func (p *Pool) clientControl() ClientControl {
	if c := p.clients.Load(); c != nil {
		return *c
	}
	return noClients{}
}

type noClients struct{}

func (noClients) Clients() []ClientInfo     { return nil }
func (noClients) Disconnect(string)         {}
func (noClients) DisconnectID(uint64) error { return Errorf(ErrNotFound, "no such client") }

// attached returns the clients of an export, LUN or LUN@SNAPSHOT.
func (p *Pool) attached(export string) []ClientInfo {
	var out []ClientInfo
	for _, c := range p.clientControl().Clients() {
		if c.Export == export {
			out = append(out, c)
		}
	}
	return out
}

// fail makes the pool read-only for the rest of its life: an fsync that failed
// must not be tried again, since the kernel may have dropped what it could not
// write.
func (p *Pool) fail(err error) {
	reason := err.Error()
	if p.readOnly.CompareAndSwap(nil, &reason) {
		p.event("pool-read-only", "", "pool is read-only: "+reason+"; restart the server when the cause is gone")
		p.spaceBack.wake()
	}
}

// whyReadOnly is the reason why the pool takes no more writes, or nil. It asks
// the log too: those who wait there are refused before the log has told fail.
func (p *Pool) whyReadOnly() *string {
	if r := p.readOnly.Load(); r != nil || p.log == nil {
		return r
	}
	if err := p.log.Err(); err != nil {
		p.fail(err)
	}
	return p.readOnly.Load()
}

// writable returns the error of a pool that does not take writes any more.
func (p *Pool) writable() error {
	if p.closed.Load() {
		return errClosed
	}
	if r := p.whyReadOnly(); r != nil {
		return Errorf(ErrReadOnly, "pool is read-only: %s: %w", *r, errIO)
	}
	return nil
}

// markDirty puts a changed page on its view's list, pinned, for the next
// checkpoint. Called with pg.mu held.
func (p *Pool) markDirty(pg *page) {
	if pg.listed {
		return
	}
	pg.listed = true
	pg.pins.Add(1)
	v := pg.view
	v.dirtyMu.Lock()
	v.dirty = append(v.dirty, pg)
	v.dirtyMu.Unlock()
	p.dirty.Add(1)
}

// takeDirty encodes the pages of a view that changed so far. They leave the list
// only afterwards: who looks at the list, then at the overlay, then at the
// index, misses none.
func (p *Pool) takeDirty(v *view) {
	v.dirtyMu.Lock()
	pages := v.dirty
	v.dirtyMu.Unlock()
	for _, pg := range pages {
		pg.mu.Lock()
		pg.listed = false
		p.encode(pg)
		pg.mu.Unlock()
	}
	v.dirtyMu.Lock()
	v.dirty = append([]*page(nil), v.dirty[len(pages):]...)
	v.dirtyMu.Unlock()
	for _, pg := range pages {
		pg.unpin()
	}
	p.dirty.Add(-int64(len(pages)))
}

// allViews returns every view there is.
func (p *Pool) allViews() []*view {
	p.viewMu.Lock()
	defer p.viewMu.Unlock()
	out := make([]*view, 0, len(p.heads)+len(p.frozen))
	for _, v := range p.heads {
		out = append(out, v)
	}
	for _, v := range p.frozen {
		out = append(out, v)
	}
	return out
}

// broadcast wakes everybody who waits for space.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// counter is one version's counters in memory, in blocks: what is stored under
// its id, and what it changes of the visible and the locally paid blocks
// against its parent.
type counter struct{ owned, ref, local atomic.Int64 }

func (c *counter) add(n counts) {
	c.owned.Add(n.owned)
	c.ref.Add(n.ref)
	c.local.Add(n.local)
}

func (c *counter) load() counts {
	return counts{c.owned.Load(), c.ref.Load(), c.local.Load()}
}

// counters holds the counters of all versions, and as stored.
type counters struct {
	mu     sync.RWMutex
	live   map[cow.VersionID]*counter
	stored map[cow.VersionID]counts
}

// of returns the counter of a version, made on first use.
func (c *counters) of(v cow.VersionID) *counter {
	c.mu.RLock()
	x := c.live[v]
	c.mu.RUnlock()
	if x != nil {
		return x
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if x = c.live[v]; x == nil {
		x = &counter{}
		c.live[v] = x
	}
	return x
}

func (c *counters) drop(v cow.VersionID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.live, v)
}

func background() context.Context { return context.Background() }
