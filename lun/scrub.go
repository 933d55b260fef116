package lun

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"lunar/cow"
	"lunar/store/segment"
)

const (
	scrubFile  = "scrub.json"     // how far the last scrub came
	scrubSaves = 10 * time.Second // how often that is written down
	scrubBatch = 32               // pages between two looks at the clock
	scrubRun   = 64               // most blocks of one read
	scrubNames = 1000             // most damages that are listed
)

// ScrubOptions say how to scrub.
type ScrubOptions struct {
	Restart bool  `json:"restart,omitempty"` // from the beginning, also where one was interrupted
	Pace    int64 `json:"pace,omitempty"`    // bytes a second; 0: that of the pool, negative: no bound
}

// ScrubReport says what a scrub found. Problems says the same as Damaged, and
// what is wrong with files, in words.
type ScrubReport struct {
	CheckReport
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	Bytes    int64     `json:"bytes"` // read
	Damaged  []Damage  `json:"damaged"`
}

// Damage is a range of blocks that cannot be read. SeenBy names every LUN and
// LUN@SNAPSHOT that shows it; none: only a deleted version has it, which goes.
type Damage struct {
	SeenBy  []string `json:"seen_by"`
	Offset  int64    `json:"offset"`
	Length  int64    `json:"length"`
	What    string   `json:"what"`
	Segment string   `json:"segment"`
}

func (d Damage) where() string {
	text := fmt.Sprintf("offset %d, %d bytes", d.Offset, d.Length)
	switch len(d.SeenBy) {
	case 0:
		return "a deleted version, " + text
	case 1:
		return d.SeenBy[0] + ", " + text
	}
	return fmt.Sprintf("%s, %s, seen by %d more: %s", d.SeenBy[0], text, len(d.SeenBy)-1, someNames(d.SeenBy[1:], 5))
}

// someNames lists the first names.
func someNames(names []string, most int) string {
	if len(names) > most {
		return strings.Join(names[:most], " ") + " ..."
	}
	return strings.Join(names, " ")
}

// recordKey is the key of a page's record in the index.
type recordKey struct {
	Branch  uint64 `json:"branch"`
	Page    uint64 `json:"page"`
	Version uint64 `json:"version"`
}

// scrubState is a scrub as it is kept over a restart.
type scrubState struct {
	Scheduled bool      `json:"scheduled"`
	Started   time.Time `json:"started"`
	Finished  time.Time `json:"finished,omitzero"`
	recordKey           // of the record to go on with
	Blocks    int64     `json:"blocks"`
	Damaged   []Damage  `json:"damaged"`
	Files     []Problem `json:"files"`
}

// scrubbing is the scrub that runs.
type scrubbing struct {
	one    sync.Mutex
	mu     sync.Mutex
	cancel context.CancelFunc // of the scheduled one
}

// stopScheduled ends the scheduled scrub, so that somebody who watches goes on with it.
func (s *scrubbing) stopScheduled() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancel != nil {
		s.cancel()
	}
}

// Scrub reads every block that any version holds and compares it with its
// checksum, follows the headers of the segments, and verifies the files of the
// index and its copies. It goes on where an interrupted one stopped.
func (p *Pool) Scrub(ctx context.Context, o ScrubOptions, progress func(done, total int64)) (ScrubReport, error) {
	p.scrubs.stopScheduled()
	for try := 0; !p.scrubs.one.TryLock(); try++ {
		if try == 50 { // the scheduled one takes a moment to stop, not a second
			return ScrubReport{}, Errorf(ErrBusy, "a scrub runs already; wait for it, or end the command that started it")
		}
		time.Sleep(20 * time.Millisecond)
	}
	return p.scrubHeld(ctx, o, progress, false)
}

// scrubHeld scrubs and gives the right to do so back.
func (p *Pool) scrubHeld(ctx context.Context, o ScrubOptions, progress func(done, total int64), scheduled bool) (ScrubReport, error) {
	defer p.scrubs.one.Unlock()
	s := p.readScrub()
	if o.Restart || s.Started.IsZero() || !s.Finished.IsZero() {
		s = scrubState{Scheduled: scheduled, Started: p.now().UTC()}
	}
	sc := &scrubber{p: p, s: s, pace: o.Pace, progress: progress, ends: map[uint64]int64{}, buf: make([]byte, scrubRun*blockSize)}
	if sc.pace == 0 {
		sc.pace = p.opts.ScrubPace
	}
	if p.writable() == nil {
		if err := p.Checkpoint(); err != nil {
			return ScrubReport{}, err
		}
	}
	sc.began = time.Now()
	err := sc.run(ctx)
	if err == nil {
		sc.files()
		sc.s.Finished = p.now().UTC()
	}
	if serr := p.saveScrub(&sc.s); err == nil && serr != nil {
		p.event("scrub", "", "how far the scrub came cannot be written down: "+serr.Error())
	}
	rep := sc.s.report()
	if err == nil {
		p.event("scrub", "", fmt.Sprintf("scrub finished: %s read since %s, %d damaged places", human(rep.Bytes), rep.Started.Format(time.RFC3339), len(rep.Problems)))
	}
	return rep, err
}

func (s *scrubState) report() ScrubReport {
	r := ScrubReport{Started: s.Started, Finished: s.Finished, Bytes: s.Blocks * blockSize, Damaged: s.Damaged}
	r.Problems = []Problem{}
	for _, d := range s.Damaged {
		r.Problems = append(r.Problems, Problem{d.What, d.where()})
	}
	r.Problems = append(r.Problems, s.Files...)
	r.OK = len(r.Problems) == 0
	if r.Damaged == nil {
		r.Damaged = []Damage{}
	}
	return r
}

func (p *Pool) readScrub() (s scrubState) {
	body, err := readFile(p.fs, p.path(scrubFile))
	if err != nil || json.Unmarshal(body, &s) != nil {
		return scrubState{}
	}
	return s
}

func (p *Pool) saveScrub(s *scrubState) error {
	if p.opts.ReadOnly {
		return nil
	}
	body, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return p.replaceFile(p.opts.Dir, scrubFile, body)
}

// scrubber is one run of a scrub.
type scrubber struct {
	p        *Pool
	s        scrubState
	pace     int64
	progress func(done, total int64)
	began    time.Time
	read     int64 // blocks, by this run
	ends     map[uint64]int64
	buf      []byte
}

// stored is one record as the index has it.
type stored struct {
	key recordKey
	rec cow.Record
}

func (sc *scrubber) run(ctx context.Context) error {
	saved := time.Now()
	if sc.s.Blocks == 0 {
		sc.s.Version = ^uint64(0) // the first key there can be
	}
	batch := make([]stored, scrubBatch)
	for {
		n, after, err := sc.next(batch)
		if err != nil {
			return Errorf(ErrCorrupt, "reading the index: %w", err)
		}
		for i := range batch[:n] {
			sc.s.recordKey = batch[i].key
			if err := sc.wait(ctx); err != nil {
				return err
			}
			sc.page(&batch[i])
		}
		if after == nil {
			return nil
		}
		sc.s.recordKey = *after
		if time.Since(saved) > scrubSaves {
			saved = time.Now()
			_ = sc.p.saveScrub(&sc.s) // the end tells, if it still fails then
		}
	}
}

// next reads the records to go on with, and the key of the one behind them.
func (sc *scrubber) next(batch []stored) (n int, after *recordKey, err error) {
	err = sc.p.index.PagesFrom(sc.s.Branch, sc.s.Page, sc.s.Version, func(branch, num, version uint64, raw []byte) bool {
		k := recordKey{branch, num, version}
		if n == len(batch) {
			after = &k
			return false
		}
		b := &batch[n]
		b.key = k
		if err := b.rec.Decode(raw); err != nil {
			b.rec.Set = cow.Bits{}
			sc.file(fmt.Sprintf("map of page %d of version %d", num, version), err)
		}
		n++
		return true
	})
	return n, after, err
}

// wait keeps to the pace.
func (sc *scrubber) wait(ctx context.Context) error {
	if sc.progress != nil {
		_, total, _ := sc.p.space.totals()
		sc.progress(sc.s.Blocks*blockSize, max(total, sc.s.Blocks)*blockSize)
	}
	if sc.p.janitor.stopping() {
		return errClosed
	}
	if err := ctx.Err(); err != nil || sc.pace <= 0 {
		return err
	}
	due := time.Duration(float64(sc.read) * blockSize / float64(sc.pace) * float64(time.Second))
	ahead := due - time.Since(sc.began)
	if ahead <= 0 {
		return nil
	}
	select {
	case <-time.After(ahead):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-sc.p.janitor.quit:
		return errClosed
	}
}

// page reads what one record holds, in the order of the log, as many blocks at a
// time as lie together.
func (sc *scrubber) page(b *stored) {
	var at []int
	for i := range cow.PageBlocks {
		if b.rec.Set.Has(i) && cow.Stored(b.rec.Loc[i]) {
			at = append(at, i)
		}
	}
	slices.SortFunc(at, func(x, y int) int { return int(int64(b.rec.Loc[x]) - int64(b.rec.Loc[y])) })
	for len(at) > 0 {
		n := 1
		for n < len(at) && n < scrubRun && b.rec.Loc[at[n]] == b.rec.Loc[at[0]]+uint64(n) && b.rec.Loc[at[n]]%sc.p.space.blocks != 0 {
			n++
		}
		sc.blocks(b, at[:n])
		sc.read, sc.s.Blocks = sc.read+int64(n), sc.s.Blocks+int64(n)
		at = at[n:]
	}
}

// blocks reads blocks that lie together; those that do not match are looked at
// one by one, since they may have been moved.
func (sc *scrubber) blocks(b *stored, at []int) {
	p := sc.p
	buf := sc.buf[:len(at)*blockSize]
	phase := p.grace.enter(0)
	err := p.log.Read(buf, segment.Loc(b.rec.Loc[at[0]]))
	p.grace.leave(0, phase)
	for k, i := range at {
		if err == nil && segment.Checksum(buf[k*blockSize:(k+1)*blockSize]) == b.rec.CRC[i] {
			sc.header(b.rec.Loc[i])
			continue
		}
		loc, bad := p.scrubBlock(buf[:blockSize], cow.BranchID(b.key.Branch), b.key.Page, cow.VersionID(b.key.Version), i, b.rec.Loc[i], b.rec.CRC[i])
		if bad != nil && !sc.p.janitor.stopping() {
			sc.damage(b, i, loc, bad)
		}
	}
}

// header looks whether the headers of a sealed segment lead to a block: what they
// do not, the cleaner cannot move, nor a repair replay.
func (sc *scrubber) header(loc uint64) {
	n := sc.p.space.segment(loc)
	end, known := sc.ends[n]
	if !known {
		if end, known = sc.follow(n); !known {
			return
		}
		sc.ends[n] = end
	}
	if block := int64(loc % sc.p.space.blocks); block >= end && end >= 0 {
		sc.file("segment "+segment.Name(n), fmt.Errorf("the header at byte %d is unreadable: the blocks behind it can be read, but not moved by the cleaner, nor found without the index", end*blockSize))
		sc.ends[n] = -1 // once
	}
}

// follow returns the block behind the last header of a segment that no writer has.
func (sc *scrubber) follow(n uint64) (end int64, ok bool) {
	sc.p.space.mu.Lock()
	u := sc.p.space.segs[n]
	ok = u != nil && u.sealed
	sc.p.space.mu.Unlock()
	if !ok {
		return 0, false
	}
	phase := sc.p.grace.enter(0)
	defer sc.p.grace.leave(0, phase)
	err := sc.p.log.Scan(n, func(h *segment.Header, at int64) error {
		end = at/blockSize + int64(h.Blocks())
		return nil
	})
	if err != nil && !errors.Is(err, segment.ErrCorrupt) {
		return 0, false
	}
	return end, sc.p.space.has(n)
}

// damage notes a block, or makes the last range longer.
func (sc *scrubber) damage(b *stored, i int, loc uint64, bad error) {
	off := (int64(b.key.Page)*cow.PageBlocks + int64(i)) * blockSize
	d := Damage{SeenBy: sc.p.seenBy(cow.VersionID(b.key.Version), b.key.Page, i, loc), Offset: off, Length: blockSize, What: bad.Error(), Segment: segment.Name(sc.p.space.segment(loc))}
	if n := len(sc.s.Damaged); n > 0 {
		last := &sc.s.Damaged[n-1]
		if last.Offset+last.Length == off && last.What == d.What && last.Segment == d.Segment && slices.Equal(last.SeenBy, d.SeenBy) {
			last.Length += blockSize
			return
		}
	}
	if len(sc.s.Damaged) < scrubNames {
		sc.s.Damaged = append(sc.s.Damaged, d)
		sc.p.event("corrupt-block", "", "scrub: "+d.where()+": "+d.What)
	}
}

func (sc *scrubber) file(where string, err error) {
	if len(sc.s.Files) < scrubNames {
		sc.s.Files = append(sc.s.Files, Problem{err.Error(), where})
		sc.p.event("scrub", "", where+": "+err.Error())
	}
}
