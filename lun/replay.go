package lun

import (
	"encoding/json"
	"fmt"

	"lunar/cow"
	"lunar/store/segment"
)

// replay applies one entry of the log as it was applied when it was written.
// A page that the index has with a newer sequence is left as it is. Data waits
// for more of the same pages: the caller ends with replayWaiting.
func (p *Pool) replay(e segment.Entry, seq segment.Seq, loc segment.Loc, payload []byte) error {
	switch e.Kind {
	case segment.Moved, segment.Mark:
		return nil // the original stays until a checkpoint names the copy
	case segment.Struct:
		var c cow.Change
		if err := json.Unmarshal(payload, &c); err != nil {
			return Errorf(ErrCorrupt, "log entry %d: structural change makes no sense: %w", seq, err)
		}
		if err := p.replayWaiting(); err != nil {
			return err
		}
		return p.replayChange(c)
	}
	v := p.replayView(cow.VersionID(e.Version))
	if v == nil && p.opts.AcceptLoss {
		p.lost = append(p.lost, fmt.Sprintf("log entry %d wrote to version %d, whose creation is among what is lost", seq, e.Version))
		return nil
	}
	if v == nil {
		return Errorf(ErrCorrupt, "log entry %d writes to version %d, which is no LUN's head", seq, e.Version)
	}
	switch e.Kind {
	case segment.Data:
		return p.replayData(v, e, seq, loc)
	case segment.Zero:
		return p.replayRange(v, e, seq, cow.Zero)
	case segment.Trim:
		return p.replayRange(v, e, seq, 0)
	}
	return Errorf(ErrCorrupt, "log entry %d has unknown kind %d", seq, e.Kind)
}

func (p *Pool) replayView(id cow.VersionID) *view {
	v := p.tree.Version(id)
	if v == nil || v.State != cow.Head {
		return nil
	}
	return p.heads[v.LUN]
}

// replayChange applies a structural change. The index may already have pages of
// versions that the change makes, so cached pages are loaded again.
func (p *Pool) replayChange(c cow.Change) error {
	for _, l := range c.LUNs {
		if v := p.heads[l.ID]; v != nil && v.version != l.Head {
			p.takeDirty(v)
			v.drop()
		}
	}
	for _, id := range c.DropLUNs {
		if v := p.heads[id]; v != nil {
			p.takeDirty(v)
		}
	}
	if p.rebuilding {
		c = p.tree.Unswept(c)
	}
	p.applyLocked(c, nil)
	p.forgotten(c.DropVersions)
	return nil
}

func (p *Pool) replayData(v *view, e segment.Entry, seq segment.Seq, loc segment.Loc) error {
	crcs := p.waiting.keep(e.CRCs)
	p.waiting.add(v, e, seq, uint64(loc), crcs)
	return p.boundWaiting()
}

// fewPages is how many pages a range may have to wait like data.
const fewPages = 4

func (p *Pool) replayRange(v *view, e segment.Entry, seq segment.Seq, loc uint64) error {
	if e.Count == 0 {
		return nil
	}
	from, to := e.Block/cow.PageBlocks, (e.Block+e.Count-1)/cow.PageBlocks+1
	if to-from <= fewPages {
		p.waiting.add(v, e, seq, loc, noCRCs)
		return p.boundWaiting()
	}
	if err := p.replayWaiting(); err != nil {
		return err
	}
	nums, all, err := []uint64(nil), loc != 0, error(nil)
	if !all {
		nums, all, err = p.existing(v, from, to)
	}
	if err != nil {
		return err
	}
	if all {
		for num := from; num < to; num++ {
			nums = append(nums, num)
		}
	}
	er := eraser{block: e.Block, n: e.Count}
	for _, num := range nums {
		x := waitingPart{view: v, num: num, seq: seq, loc: loc, crcs: noCRCs}
		x.from, x.k = er.within(num)
		if err := p.replayPage([]waitingPart{x}, nil); err != nil {
			return err
		}
	}
	return p.boundRebuild()
}
