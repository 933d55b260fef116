package lun

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"lunar/cow"
	"lunar/store/index"
	"lunar/store/segment"
)

// Holes (docs/adr/0013). Of a cold segment that is more than half live, long runs
// of dead blocks are given back to the file system, where it can, which writes
// nothing; moving what is live would cost more than it gives. A hole is made when
// a durable checkpoint does not point at its blocks any more, nor a copy of the
// index, and no reader holds an address in it; headers and structural changes stay.
// The log may have as many segments more as the holes have blocks.

const (
	holeBlocks = 16 // the shortest run that becomes a hole
	vainLooks  = 16 // segments without long runs, after which others are taken to be no better
	idleLooks  = 4  // segments that are looked at in one idle round
)

// holes are those of one segment. What is planned is dead for good, and becomes a
// hole when no copy of the index is older than since; it includes what is one
// already. made are on disk, stored the index knows. Guarded by space.mu.
type holes struct {
	plan         []segment.Run
	since        uint64 // the first commit that does not point at them; 0: the plan has no commit yet
	made, stored int64
	looked       int64 // live blocks when it was last looked at, plus 1; 0: never
}

func (h *holes) planned() (n int64) {
	for _, r := range h.plan {
		n += int64(r.Blocks)
	}
	return n
}

// gone is how many blocks are none that a move could gain.
func (h *holes) gone() int64 { return max(h.made, h.planned()) }

// holeLooks spaces looks that find nothing: each doubles the rounds to the next.
type holeLooks struct{ wait, pause int }

func (l *holeLooks) due() bool {
	if l.wait > 0 {
		l.wait--
		return false
	}
	return true
}

func (l *holeLooks) saw(found bool) {
	if l.pause = min(2*l.pause+1, 63); found {
		l.pause = 0
	}
	l.wait = l.pause
}

// shortestHole is holeBlocks, less where segments are small.
func shortestHole(segmentBlocks uint64) int { return max(1, min(holeBlocks, int(segmentBlocks/32))) }

// makesHoles is false where the file system is known to make none, and where the
// space is preallocated, which must not be given to others.
func (p *Pool) makesHoles() bool { return !p.ballast.on && !p.holesFail.Load() }

// idleHoles is the cleaner's part of it while nothing is urgent.
func (p *Pool) idleHoles() error {
	if !p.makesHoles() {
		return nil
	}
	if p.pressure() < 0.5 && p.holeLooks.due() {
		looked, found, err := p.planHoles(idleLooks, 1)
		if err != nil {
			return err
		}
		if looked > 0 {
			p.holeLooks.saw(found > 0)
		}
	}
	return p.makeHoles()
}

// holesDue picks the segments to look at: cold, more than half live, with some
// dead space that they were not looked at with yet. The deadest come first.
func holesDue(all []victim, looked map[uint64]int64) []victim {
	out := slices.DeleteFunc(slices.Clone(all), func(v victim) bool {
		some := max(v.blocks/32, 1)
		before := looked[v.number]
		return 2*v.live <= v.blocks || v.gain() < some || before != 0 && before-1-v.live < some
	})
	slices.SortFunc(out, func(a, b victim) int {
		return cmp.Or(cmp.Compare(b.gain(), a.gain()), cmp.Compare(a.number, b.number))
	})
	return out
}

// planHoles looks at up to most segments, or until vain ones in a row give
// nothing, and checkpoints what it plans.
func (p *Pool) planHoles(most, vain int) (looked, found int, err error) {
	if !p.makesHoles() {
		return 0, 0, nil
	}
	p.cleanMu.Lock()
	defer p.cleanMu.Unlock()
	var plans []uint64
	for miss := 0; looked < most && miss < vain; looked++ {
		due := holesDue(p.victims(), p.space.lookedAt())
		if len(due) == 0 {
			break
		}
		some, err := p.planSegment(due[0].number)
		if err != nil {
			return looked, 0, err
		}
		if miss++; some {
			miss, plans = 0, append(plans, due[0].number)
		}
	}
	if len(plans) == 0 {
		return looked, 0, nil
	}
	p.ckptMu.Lock()
	err = p.checkpointHeld()
	since := p.commits
	p.ckptMu.Unlock()
	p.space.stamp(plans, since, err == nil)
	return looked, len(plans), err
}

// planSegment finds the long runs of a segment that nothing points at. What it
// finds must be all that the segment's count of live blocks says, and that must not
// change meanwhile: else nothing is planned. Called with cleanMu.
func (p *Pool) planSegment(number uint64) (some bool, err error) {
	u := p.space.known(number)
	if u == nil {
		return false, nil
	}
	before := u.live.Load()
	all, err := p.placedIn(number)
	if err != nil || len(all) == 0 {
		p.space.look(u, before, nil)
		return false, nil // the cleaner reports what it cannot read
	}
	dead := make([]uint64, (p.space.blocks+63)/64)
	for _, x := range all {
		at := x.loc % p.space.blocks
		dead[at/64] |= 1 << (at % 64)
	}
	found := int64(0)
	for ps := range byPage(all) {
		live, err := p.livingHeld(ps)
		if err != nil {
			return false, err
		}
		for _, x := range live {
			at := x.loc % p.space.blocks
			dead[at/64] &^= 1 << (at % 64)
		}
		found += int64(len(live))
	}
	var plan []segment.Run
	if found == before && found == u.live.Load() {
		plan = longRuns(dead, shortestHole(p.space.blocks))
	}
	return p.space.look(u, before, plan), nil
}

// livingHeld is living for blocks of one page of one version.
func (p *Pool) livingHeld(ps []placed) ([]living, error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	return p.living(ps[0].block/cow.PageBlocks, ps, nil)
}

// longRuns lists the runs of at least least bits that are set.
func longRuns(set []uint64, least int) (out []segment.Run) {
	n := len(set) * 64
	next := func(from int, of uint64) int { // the first bit from there on that is set in word ^ of
		for from < n {
			if w := (set[from/64] ^ of) >> (from % 64); w != 0 {
				return from + bits.TrailingZeros64(w)
			}
			from = (from/64 + 1) * 64
		}
		return n
	}
	for from := next(0, 0); from < n; {
		to := next(from, ^uint64(0))
		if to-from >= least {
			out = append(out, segment.Run{From: from, Blocks: to - from})
		}
		from = next(to, 0)
	}
	return out
}

// makeHoles makes those that nothing needs any more, and checkpoints how many
// there are, which is when the log may use the space.
func (p *Pool) makeHoles() error {
	ripe := p.space.ripe(p.backups.needs())
	if len(ripe) == 0 {
		return nil
	}
	p.grace.wait()
	segments, blocks := 0, int64(0)
	for _, n := range ripe {
		k, err := p.punch(n)
		if errors.Is(err, segment.ErrNoPunch) {
			p.holesFail.Store(true)
			break
		}
		if err != nil {
			p.event("clean", "", "dead blocks were not given back: "+err.Error())
		} else if k > 0 {
			segments, blocks = segments+1, blocks+k
		}
	}
	if blocks == 0 {
		return nil
	}
	p.event("clean", "", fmt.Sprintf("%s given back out of %d segments that stay as they are", human(blocks*blockSize), segments))
	if err := p.Checkpoint(); err != nil {
		return err
	}
	p.log.Refresh()
	return nil
}

// punch makes the planned holes of one segment. Only a checkpoint gives segments
// back, so that none does while ckptMu is held, and this is the segment of the plan.
func (p *Pool) punch(number uint64) (blocks int64, err error) {
	p.ckptMu.Lock()
	defer p.ckptMu.Unlock()
	plan := p.space.takePlan(number)
	if plan == nil {
		return 0, nil
	}
	if err := p.log.Punch(number, plan...); err != nil {
		return 0, err
	}
	return p.space.punched(number, plan), nil
}

// known returns a segment that is in use, or nil.
func (s *space) known(number uint64) *usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.segs[number]
}

// lookedAt says with how many live blocks segments were looked at.
func (s *space) lookedAt() map[uint64]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[uint64]int64{}
	for n, u := range s.segs {
		if u.holes.looked != 0 {
			out[n] = u.holes.looked
		}
	}
	return out
}

// look notes that a segment was looked at, and takes a plan if it gives more than
// there is.
func (s *space) look(u *usage, live int64, plan []segment.Run) (taken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u.holes.looked = live + 1
	next := holes{plan: plan}
	if next.planned()-u.holes.gone() < max(int64(s.blocks/64), 1) {
		return false
	}
	u.holes.plan, u.holes.since = plan, 0
	return true
}

// stamp notes the commit that does not point at what was planned, or gives the
// plans up.
func (s *space) stamp(numbers []uint64, since uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range numbers {
		u := s.segs[n]
		switch {
		case u == nil:
		case ok:
			u.holes.since = since
		default:
			u.holes.plan = nil
		}
	}
}

// ripe lists the segments whose plans no copy of the index needs.
func (s *space) ripe(needed uint64) (out []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, u := range s.segs {
		if u.holes.since != 0 && u.holes.since <= needed {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// takePlan takes the plan of a segment that is still in use.
func (s *space) takePlan(n uint64) []segment.Run {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.segs[n]
	if u == nil || u.holes.since == 0 {
		return nil
	}
	plan := u.holes.plan
	u.holes.plan, u.holes.since = nil, 0
	if u.dead || u.died != 0 || u.stored == 0 {
		return nil // all of it comes back
	}
	return plan
}

// punched notes holes that were made, and returns how many blocks came back.
func (s *space) punched(n uint64, plan []segment.Run) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, h := s.segs[n], holes{plan: plan}
	before := u.holes.made
	u.holes.made = h.planned()
	return u.holes.made - before
}

// stageHoles writes how many blocks of a segment are holes, with its first entry:
// the number alone may name a later life of the file.
func (s *space) stageHoles(b *index.Batch, n uint64, u *usage, made int64) (committed func()) {
	if made == u.holes.stored {
		return func() {}
	}
	if made == 0 {
		b.DeleteObject(objectHoles, n)
	} else {
		b.SetObject(objectHoles, n, binary.AppendUvarint(binary.AppendUvarint(nil, uint64(made)), uint64(u.info.First)))
	}
	return func() {
		s.given.Add(made - u.holes.stored)
		u.holes.stored = made
	}
}

// loadHoles reads how many blocks of segments are holes.
func (p *Pool) loadHoles() error {
	err := p.index.Objects(objectHoles, func(n uint64, b []byte) error {
		made, k := binary.Uvarint(b)
		if k <= 0 {
			return Errorf(ErrCorrupt, "holes of segment %d are malformed", n)
		}
		first, m := binary.Uvarint(b[k:])
		if m <= 0 || made > p.space.blocks {
			return Errorf(ErrCorrupt, "holes of segment %d are malformed", n)
		}
		if u := p.space.segs[n]; u != nil && u.row && uint64(u.info.First) == first {
			u.holes.made, u.holes.stored = int64(made), int64(made)
			p.space.given.Add(int64(made))
		}
		return nil
	})
	if err != nil {
		return Errorf(ErrCorrupt, "index: %w", err)
	}
	return nil
}
