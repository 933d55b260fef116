package lun

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/uuid"

	"lunar/cow"
	"lunar/reservation"
	"lunar/store/index"
	"lunar/store/segment"
)

// The files of a data folder.
const (
	identityFile = "pool.json"
	lockFile     = "lock"
	pidFile      = "lock.pid"
	indexDir     = "index"
	segmentDir   = "segments"
)

// poolFormat is the version of the data folder as a whole.
const poolFormat = 1

// catalogueFormat is the version of the catalogue and the counters. 2 added what
// versions replaced of each other, and changes of many versions at once.
const catalogueFormat = 2

// identity is what a pool is made with and never changes: pool.json.
type identity struct {
	Format       int       `json:"format"`
	UUID         string    `json:"uuid"`
	SegmentBytes int64     `json:"segment_bytes"`
	Created      time.Time `json:"created"`
}

func (i identity) number() uint64 {
	u, err := uuid.Parse(i.UUID)
	if err != nil {
		return 0
	}
	var n uint64
	for _, b := range u[:8] {
		n = n<<8 | uint64(b)
	}
	return n
}

const (
	smallestSegment = 4 << 20
	largestSegment  = 64 << 20
	defaultCache    = 256 << 20
)

// defaultSegment is the size of the segments of a new pool: a 256th of its
// capacity, as a power of two from 4 to 64 MiB. What the pool keeps for cleaning
// is some segments, and the disk is used by whole ones, so that large ones
// would take much of a small file system.
func defaultSegment(capacity int64) int64 {
	size := int64(smallestSegment)
	for size < largestSegment && size*2 <= capacity/256 {
		size *= 2
	}
	return size
}

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.IndexCache == 0 {
		o.IndexCache = defaultCache
	}
	if o.SnapshotsPerLUN == 0 {
		o.SnapshotsPerLUN = 256
	}
	if o.ListSnapshots == 0 {
		o.ListSnapshots = 256
	}
	if o.BackUpEvery == 0 {
		o.BackUpEvery = backupEvery
	}
	if o.ScrubEvery == 0 {
		o.ScrubEvery = scrubEvery
	}
	return o
}

// newPool is a pool that nothing is open of yet.
func newPool(o Options) *Pool {
	p := &Pool{
		opts: o, fs: o.FS, now: o.Now, overlay: newOverlay(), cum: map[cow.VersionID]counts{},
		heads: map[cow.LUNID]*view{}, tips: map[cow.BranchID]*view{}, frozen: map[cow.VersionID]*view{},
		objects: newObjectSet(), inVain: map[cow.LUNID]time.Time{}, warned: map[string]reservation.Level{}, buf: segment.NewBuffers(64 << 20),
	}
	p.counter = counters{live: map[cow.VersionID]*counter{}, stored: map[cow.VersionID]counts{}}
	p.clock.began = o.Now()
	p.lifeNow()
	p.janitor = newJanitor(p)
	if o.Manual {
		p.reclaiming.urgent.Add(1)
	}
	p.cache = &cache{limit: int(max(o.IndexCache/pageBytes, 64))}
	return p
}

// Open opens the pool in o.Dir, and makes it if the folder is missing or empty.
// It returns when every LUN can be served: the log behind the last checkpoint
// has been replayed and a new checkpoint covers it.
func Open(_ context.Context, o Options) (_ *Pool, err error) {
	p := newPool(o.withDefaults())
	o = p.opts
	defer func() {
		if err != nil {
			p.closeFiles()
		}
	}()
	if err := p.openFolder(); err != nil {
		return nil, err
	}
	p.space = newSpace(p.id.SegmentBytes)
	p.defrag.least = leastBreaks(o.RecordBlocks, int(p.space.blocks))
	if err := p.openBallast(); err != nil {
		return nil, err
	}
	if err := p.openIndex(); err != nil {
		return nil, err
	}
	if err := p.loadCatalogue(); err != nil {
		return nil, err
	}
	p.loadBackups()
	if err := p.recover(); err != nil {
		return nil, err
	}
	if err := p.writeIdentity(); err != nil {
		return nil, err
	}
	_, p.defrag.held, _ = p.space.totals()
	switch {
	case p.whyReadOnly() != nil:
	case o.Manual:
		p.finishCuts()
	default:
		p.janitor.start()
		p.janitor.kick(jobCut)
	}
	return p, nil
}

func (p *Pool) path(names ...string) string {
	return p.fs.PathJoin(append([]string{p.opts.Dir}, names...)...)
}

// openFolder makes or reads the folder's identity and takes its lock.
func (p *Pool) openFolder() error {
	names, err := p.fs.List(p.opts.Dir)
	var fresh bool
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return Errorf(ErrNotPool, "data folder %s cannot be read: %w", p.opts.Dir, err)
	case err != nil:
		fresh = true
	default:
		known := false
		foreign := ""
		for _, n := range names {
			switch {
			case n == identityFile:
				known = true
			case n == lockFile, n == pidFile, n == indexDir, n == segmentDir, n == ballastDir, n == backupDir, n == ageFile, n == "lost+found", strings.HasSuffix(n, ".sock"), strings.HasPrefix(n, identityFile):
			default:
				foreign = n
			}
		}
		if !known && foreign != "" {
			return Errorf(ErrNotPool, "data folder %s is not a pool and holds other things (%s); name an empty or a new folder", p.opts.Dir, foreign)
		}
		fresh = !known
	}
	if fresh && p.opts.ReadOnly {
		return Errorf(ErrNotPool, "data folder %s holds no pool", p.opts.Dir)
	}
	if err := p.fs.MkdirAll(p.opts.Dir, 0o755); err != nil {
		return Errorf(ErrNotPool, "data folder %s cannot be made: %w", p.opts.Dir, err)
	}
	if fresh {
		if err := syncDir(p.fs, p.fs.PathDir(p.opts.Dir)); err != nil {
			return Errorf(ErrNotPool, "the folder above %s cannot be synced: %w", p.opts.Dir, err)
		}
	}
	if err := p.takeLock(); err != nil {
		return err
	}
	if fresh {
		return p.makeIdentity()
	}
	return p.readIdentity()
}

func (p *Pool) takeLock() error {
	lock, err := p.fs.Lock(p.path(lockFile))
	if err != nil {
		if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) || errors.Is(err, errReadOnlyFS) {
			return Errorf(ErrNotPool, "data folder %s cannot be written: %w", p.opts.Dir, err)
		}
		pid := "unknown"
		if b, err := readFile(p.fs, p.path(pidFile)); err == nil {
			pid = strings.TrimSpace(string(b))
		}
		return Errorf(ErrLocked, "data folder %s is in use by another server, pid %s; stop it first, or give another --data", p.opts.Dir, pid)
	}
	p.lock = lock
	// The pid is for people; a full file system must not keep the pool from being opened.
	if err := writeFile(p.fs, p.path(pidFile), []byte(strconv.Itoa(os.Getpid())+"\n")); err != nil && !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	return nil
}

// makeIdentity chooses the identity of a new pool. It is written last, when
// everything else is there: a folder without it is no pool yet.
func (p *Pool) makeIdentity() error {
	p.fresh = true
	p.id = identity{Format: poolFormat, UUID: uuid.NewString(), SegmentBytes: p.opts.SegmentBytes, Created: p.now().UTC()}
	if p.id.SegmentBytes == 0 {
		capacity, err := p.defaultCapacity()
		if err != nil {
			return err
		}
		p.id.SegmentBytes = defaultSegment(capacity)
	}
	if err := p.fs.MkdirAll(p.path(segmentDir), 0o755); err != nil {
		return Errorf(ErrNotPool, "data folder %s cannot be written: %w", p.opts.Dir, err)
	}
	return syncDir(p.fs, p.opts.Dir)
}

func (p *Pool) writeIdentity() error {
	if !p.fresh {
		return nil
	}
	body, err := json.MarshalIndent(p.id, "", "  ")
	if err != nil {
		return err
	}
	if err := p.replaceFile(p.opts.Dir, identityFile, append(body, '\n')); err != nil {
		return Errorf(ErrNotPool, "data folder %s cannot be written: %w", p.opts.Dir, err)
	}
	return nil
}

func (p *Pool) readIdentity() error {
	body, err := readFile(p.fs, p.path(identityFile))
	if err != nil {
		return Errorf(ErrNotPool, "%s cannot be read: %w", p.path(identityFile), err)
	}
	if err := json.Unmarshal(body, &p.id); err != nil || p.id.Format < 1 || p.id.SegmentBytes <= 0 {
		return Errorf(ErrCorrupt, "%s makes no sense; restore it from a copy (`lunar pool repair` cannot guess it)", p.path(identityFile))
	}
	if p.id.Format > poolFormat {
		return Errorf(ErrNotPool, "pool %s has format %d, this lunar knows formats up to %d; use a newer lunar", p.opts.Dir, p.id.Format, poolFormat)
	}
	return nil
}

func (p *Pool) openIndex() error {
	x, err := p.tryIndex()
	for try := 0; try < 4 && errors.Is(err, index.ErrNoRoom) && p.ballast.makeRoom(1); try++ {
		x, err = p.tryIndex() // with what the ballast kept for it
	}
	if err != nil {
		return indexError(p.opts.Dir, err)
	}
	p.index = x
	return nil
}

// leastBlockCache is how much of the index's tables stays in memory however small
// index.cache is: records are a third to an eighth of a page in memory, and a page
// that is loaded from them costs half of what one from the file costs.
const leastBlockCache = 64 << 20

func (p *Pool) tryIndex() (*index.Index, error) {
	return p.openIndexAt(p.path(indexDir), p.opts.ReadOnly)
}

func (p *Pool) openIndexAt(dir string, readOnly bool) (*index.Index, error) {
	return index.Open(index.Options{
		FS: p.fs, Dir: dir, CacheBytes: max(leastBlockCache, p.opts.IndexCache/8), MergePages: cow.MergeRecords,
		Logger: func(s string) { p.opts.Logger.Debug(s) }, Fatal: p.fail, ReadOnly: readOnly,
		MustExist: !p.fresh, Deterministic: p.opts.Manual, MemTableBytes: p.memTable(), MaxOpenFiles: p.opts.OpenFiles,
	})
}

// memTable is how much the index keeps in memory and in its own log before it
// makes a table: less in a small pool, which its segments are the measure of.
func (p *Pool) memTable() int64 { return min(max(p.id.SegmentBytes/4, 512<<10), 16<<20) }

// indexError says what is wrong with an index that does not open.
func indexError(dir string, err error) error {
	switch {
	case errors.Is(err, index.ErrNewerFormat):
		return Errorf(ErrNotPool, "pool %s: %w", dir, err)
	case errors.Is(err, index.ErrCorrupt), errors.Is(err, index.ErrMissing):
		return Errorf(ErrCorrupt, "index of pool %s: %w; `lunar pool repair` makes it anew of a copy and the log; do not remove anything before", dir, err)
	}
	return fmt.Errorf("index of pool %s: %w", dir, err)
}

// defaultCapacity is what the file system has free, less 5 %.
func (p *Pool) defaultCapacity() (int64, error) {
	if p.opts.Capacity > 0 {
		return p.opts.Capacity, nil
	}
	du, err := p.fs.GetDiskUsage(p.opts.Dir)
	if err != nil {
		return 0, Errorf(ErrNotPool, "free space of %s cannot be read: %w; give --capacity", p.opts.Dir, err)
	}
	return int64(du.AvailBytes) / 100 * 95, nil
}

// recover replays the log behind the checkpoint, seals what was replayed,
// commits it with a new epoch, and goes on in another segment.
func (p *Pool) recover() error {
	if p.state.Salvaged != "" {
		return p.openSalvaged()
	}
	rec, err := segment.Recover(p.logOptions(), segment.Seq(p.state.Position), p.isSealed, p.opts.AcceptLoss, p.replay)
	if e := p.replayWaiting(); err == nil {
		err = e
	}
	p.waiting.free()
	if errors.Is(err, segment.ErrCorrupt) && !p.opts.AcceptLoss {
		return p.openDamaged(err)
	}
	if err != nil {
		return Errorf(ErrCorrupt, "replaying the log: %w", err)
	}
	for _, info := range rec.Segments {
		p.space.seal(info)
	}
	for _, r := range rec.Lost {
		p.lost = append(p.lost, fmt.Sprintf("log entries %d to %d were durable and are lost; blocks that they wrote show what was there before", r.From, r.To))
		p.event("log-loss", "", p.lost[len(p.lost)-1])
	}
	if rec.Torn {
		p.event("torn-tail", "", "the log ended in an unfinished record ("+rec.TornAt+"), as after a power cut; nothing that was flushed is lost")
	}
	if err := p.buildLedger(); err != nil {
		return err
	}
	if c := p.opts.Capacity; c > 0 && c != p.state.capacity() {
		if err := p.resize(c); err != nil {
			// Who is served now must not lose that for a number that was right once.
			p.event("warning", "", fmt.Sprintf("the pool keeps its capacity of %s: %v", human(p.state.capacity()), err))
		}
	}
	if p.opts.ReadOnly {
		p.setReadOnly("opened read-only")
		p.log, err = segment.OpenRead(p.logOptions())
		return err
	}
	return p.goOn(rec)
}

// goOn commits what was replayed under a new epoch and starts the log.
func (p *Pool) goOn(rec segment.Recovered) error {
	for _, v := range p.allViews() {
		p.takeDirty(v)
	}
	p.state.Epoch++
	pend := p.takeObjects(uint64(rec.Next))
	p.sealReplayed(rec)
	p.noteSession(uint64(rec.Next), uint64(rec.LastReplayed))
	if err := p.commitIndex(pend, p.overlay.swap()); err != nil {
		return err
	}
	if p.state.Format < catalogueFormat {
		if err := p.upgrade(); err != nil {
			return err
		}
	}
	free := p.space.takeDead()
	for _, n := range rec.Free {
		if p.space.unused(n) && !slices.Contains(free, n) {
			free = append(free, n)
		}
	}
	slices.Sort(free)
	for _, n := range free {
		p.space.highest = max(p.space.highest, n)
	}
	log, err := segment.Open(p.logOptions(), rec.Next, free, p.space.top())
	if err != nil {
		return Errorf(ErrCorrupt, "starting the log: %w", err)
	}
	p.log = log
	p.logNow.Store(log)
	p.watchDisk()
	p.high.Store(int64(p.highMark()))
	return nil
}

// sealReplayed marks as sealed every segment that holds live blocks: the log
// never goes on behind a recovered tail.
func (p *Pool) sealReplayed(rec segment.Recovered) {
	s := p.space
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, u := range s.segs {
		if !u.sealed {
			u.sealed = true
			u.info.Number = n
			u.info.Last = min(max(u.info.Last, segment.Seq(p.state.Position)), rec.Next-1)
			u.info.Blocks = int(s.blocks)
		}
	}
}

// openDamaged serves what can be served of a pool whose log cannot be followed.
func (p *Pool) openDamaged(cause error) error {
	if err := p.buildLedger(); err != nil {
		return errors.Join(cause, err)
	}
	p.setReadOnly(cause.Error() + "; `lunar pool repair --accept-loss` goes on without them")
	log, err := segment.OpenRead(p.logOptions())
	if err != nil {
		return errors.Join(cause, err)
	}
	p.log = log
	return nil
}

// openSalvaged serves what a salvage made of a pool without an index.
func (p *Pool) openSalvaged() (err error) {
	if err := p.buildLedger(); err != nil {
		return err
	}
	p.setReadOnly(salvageReason)
	p.event("salvage", "", p.state.Salvaged)
	p.log, err = segment.OpenRead(p.logOptions())
	return err
}

func (p *Pool) setReadOnly(reason string) {
	p.readOnly.Store(&reason)
	p.event("pool-read-only", "", "pool is read-only: "+reason)
}

func (p *Pool) isSealed(n uint64) bool {
	p.space.mu.Lock()
	defer p.space.mu.Unlock()
	u := p.space.segs[n]
	return u != nil && u.sealed
}

func (p *Pool) logOptions() segment.Options {
	return segment.Options{
		FS: p.fs, Dir: p.path(segmentDir), PoolID: p.id.number(), Epoch: p.state.Epoch, SegmentBytes: p.id.SegmentBytes,
		RecordBlocks: p.opts.RecordBlocks, Buffers: p.buf, MaxSegments: p.maxSegments, OnFail: p.fail, OnSeal: p.sealed,
		OnFull: func() { p.janitor.kick(jobClean) }, Spares: p.spares(), Reserve: keptSegments, Source: p.ballast,
		PlainWrites: p.opts.PlainWrites, MaxOpen: p.opts.OpenFiles,
	}
}

// Close ends background work, checkpoints, and gives the folder back.
func (p *Pool) Close() error {
	if p.closed.Swap(true) {
		return nil
	}
	p.janitor.stop()
	var err error
	if p.log != nil && p.whyReadOnly() == nil {
		p.closed.Store(false)
		err = p.Checkpoint()
		p.closed.Store(true)
	}
	return errors.Join(err, p.closeFiles())
}

// Abandon closes the files without a checkpoint, as a crash would leave them.
// Tests use it.
func (p *Pool) Abandon() {
	if !p.closed.Swap(true) {
		p.janitor.stop()
		_ = p.closeFiles()
	}
}

func (p *Pool) closeFiles() error {
	var errs []error
	if p.log != nil {
		errs = append(errs, p.log.Close())
	}
	if p.index != nil {
		errs = append(errs, p.index.Close())
	}
	if p.lock != nil {
		errs = append(errs, p.lock.Close())
	}
	return errors.Join(errs...)
}

var errReadOnlyFS = fmt.Errorf("read-only file system: %w", errIO)

func readFile(fs vfs.FS, name string) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func writeFile(fs vfs.FS, name string, b []byte) error {
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
