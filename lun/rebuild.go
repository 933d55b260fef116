package lun

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/google/uuid"

	"lunar/reservation"
	"lunar/store/index"
	"lunar/store/segment"
)

// rebuiltDir is where an index is made anew, until it takes the place of the
// damaged one.
const rebuiltDir = indexDir + ".new"

// rebuildAt bounds the records that a rebuild keeps in memory.
const rebuildAt = 64 << 20

// indexCopy is a copy of the index with what is known of it.
type indexCopy struct {
	slot
	path string
	bad  error // why it cannot be used
}

// indexCopies lists the copies, newest first, as far as that can be told without
// an index: which index they are of is the newest one's word. Called with the lock.
func (p *Pool) indexCopies() (out []indexCopy, sessions []session, firsts map[uint64]uint64, err error) {
	slots, sessions := p.readSlots()
	if firsts, err = p.firstEpochs(); err != nil {
		return nil, nil, nil, err
	}
	newest := uint64(0)
	for _, e := range firsts {
		newest = max(newest, e)
	}
	for i, s := range slots {
		c := indexCopy{slot: s, path: p.slotPath(i)}
		at := slices.IndexFunc(sessions, func(x session) bool { return x.Epoch == s.Epoch })
		switch {
		case !s.valid:
			c.bad = fmt.Errorf("there is none in %s", c.path)
		case at < 0:
			c.bad = fmt.Errorf("%s is not listed in %s", c.path, sessionsFile)
		case newest > sessions[len(sessions)-1].Epoch:
			c.bad = fmt.Errorf("the log was written by a session that %s does not list", sessionsFile)
		default:
			c.bad = p.probe(c.path, &durable{})
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b indexCopy) int { return b.compare(a.note) })
	if out[0].bad == nil && out[1].bad == nil && out[1].Index != out[0].Index {
		out[1].bad = fmt.Errorf("%s is of an index before the last repair", out[1].path)
	}
	return out, sessions, firsts, nil
}

// firstEpochs reads the first header of each segment: all records of a segment
// that are in use are of one session.
func (p *Pool) firstEpochs() (map[uint64]uint64, error) {
	o := p.logOptions()
	numbers, err := segment.Segments(o)
	if err != nil {
		return nil, err
	}
	out := map[uint64]uint64{}
	stop := errors.New("enough")
	for _, n := range numbers {
		err := segment.ScanFile(o, n, func(h *segment.Header, _ int64) error {
			out[n] = h.Epoch
			return stop
		})
		if err != nil && !errors.Is(err, stop) {
			return nil, fmt.Errorf("segment %s: %w", segment.Name(n), err)
		}
	}
	return out, nil
}

// probe opens an index without changing it and reads all of it.
func (p *Pool) probe(dir string, s *durable) error {
	x, err := p.openIndexAt(dir, true)
	if err != nil {
		return err
	}
	err = x.Check()
	if err == nil {
		body, ok, merr := x.Meta(metaState)
		if merr == nil && (!ok || json.Unmarshal(body, s) != nil) {
			merr = fmt.Errorf("%w: %s says nothing of the pool's state", index.ErrCorrupt, dir)
		}
		err = merr
	}
	return errors.Join(err, x.Close())
}

// rebuild makes an index of a copy and the log since, beside the damaged one.
// Segments are only read. Called with the lock held; the pool is good for
// nothing else afterwards.
func (p *Pool) rebuild(c indexCopy, sessions []session, firsts map[uint64]uint64, say func(string, int64, int64)) (err error) {
	dir := p.path(rebuiltDir)
	if err := p.removeAll(dir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.removeAll(dir))
		}
	}()
	done := int64(0)
	copied := func(n int64) { done += n; say("copying the index", done, c.Bytes) }
	if _, err := index.CopyFolder(p.fs, c.path, dir, "", copied); err != nil {
		return err
	}
	if p.index, err = p.openIndexAt(dir, false); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.index.Close()) }()
	p.rebuilding = true
	if err := p.loadCatalogue(); err != nil {
		return err
	}
	p.ledger = reservation.New(p.state.Capacity/blockSize, p.headroom)
	p.forgetEmpty()
	at := slices.IndexFunc(sessions, func(x session) bool { return x.Epoch == p.state.Epoch })
	if at < 0 {
		return Errorf(ErrCorrupt, "the copy in %s says epoch %d, which %s does not list", c.path, p.state.Epoch, sessionsFile)
	}
	next, err := p.replaySessions(sessions[at:], firsts, say)
	if err != nil {
		return err
	}
	return p.commitRebuilt(next, sessions[len(sessions)-1].Epoch+1)
}

// forgetEmpty lets replay look into segments that held nothing when the copy was
// made: they may have been used again since.
func (p *Pool) forgetEmpty() {
	for _, u := range p.space.segs {
		if u.stored == 0 {
			u.sealed, u.died = false, 0
		}
	}
}

// replaySessions replays one session after the other and returns the entry to go
// on with. Each must end where it ended when the next one began.
func (p *Pool) replaySessions(sessions []session, firsts map[uint64]uint64, say func(string, int64, int64)) (segment.Seq, error) {
	next := segment.Seq(p.state.Position)
	for i, s := range sessions {
		say("replaying the log", int64(i), int64(len(sessions)))
		other := func(n uint64) bool {
			e, known := firsts[n]
			return known && e != s.Epoch || p.isSealed(n)
		}
		o := p.logOptions()
		o.Epoch = s.Epoch
		rec, err := segment.Recover(o, max(next, segment.Seq(s.From)), other, p.opts.AcceptLoss, p.replay)
		if err == nil {
			err = p.replayWaiting()
		}
		if err != nil {
			return 0, Errorf(ErrCorrupt, "replaying the log of session %d: %w; `lunar pool repair --accept-loss` goes on without it", s.Epoch, err)
		}
		for _, info := range rec.Segments {
			p.space.seal(info)
		}
		for _, r := range rec.Lost {
			p.lost = append(p.lost, fmt.Sprintf("log entries %d to %d were durable and are lost; blocks that they wrote show what was there before", r.From, r.To))
		}
		next = rec.Next
		if i+1 == len(sessions) {
			break
		}
		if after := segment.Seq(sessions[i+1].After); rec.LastReplayed < after {
			text := fmt.Sprintf("log entries %d to %d were durable and are lost", rec.LastReplayed+1, after)
			if !p.opts.AcceptLoss {
				return 0, Errorf(ErrCorrupt, "%s; `lunar pool repair --accept-loss` goes on without them", text)
			}
			p.lost = append(p.lost, text)
		}
	}
	return next, nil
}

// commitRebuilt ends a rebuild.
func (p *Pool) commitRebuilt(next segment.Seq, epoch uint64) error {
	p.applyLocked(p.tree.PlanFlatten(), nil)
	for _, v := range p.allViews() {
		p.takeDirty(v)
	}
	p.state.Epoch, p.state.Index = epoch, uuid.NewString()
	p.sealReplayed(segment.Recovered{Next: next})
	return p.commitIndex(p.takeObjects(uint64(next)), p.overlay.swap())
}

// boundRebuild commits what has come together, with the position of the copy:
// the index is nobody's yet.
func (p *Pool) boundRebuild() error {
	if !p.rebuilding || p.overlay.bytes.Load() < rebuildAt {
		return nil
	}
	for _, v := range p.allViews() {
		p.takeDirty(v)
	}
	return p.commitIndex(p.takeObjects(p.state.Position), p.overlay.swap())
}

// swapIndex puts the rebuilt index in the place of the damaged one, which is kept:
// out then says where.
func (p *Pool) swapIndex(out []string) ([]string, error) {
	kept := p.path(indexDir + ".damaged-" + p.now().UTC().Format("20060102T150405Z"))
	if err := p.fs.Rename(p.path(indexDir), kept); err == nil {
		out = append(out, "the damaged index is kept in "+kept)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return out, err
	}
	if err := p.fs.Rename(p.path(rebuiltDir), p.path(indexDir)); err != nil {
		return out, err
	}
	return out, syncDir(p.fs, p.opts.Dir)
}
