package lun

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"

	"lunar/cow"
	"lunar/store/segment"
)

// victims lists the sealed segments that replay does not need any more.
func (p *Pool) victims() []victim {
	s := p.space
	pos := uint64(p.state.position.Load())
	// What a segment can hold beside the headers of its records.
	record := int64(p.opts.RecordBlocks)
	if record == 0 {
		record = 256
	}
	full := max(int64(s.blocks)*record/(record+1)-int64(s.blocks)/512, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []victim
	for n, u := range s.segs {
		if live := u.live.Load(); u.sealed && uint64(u.info.Last) < pos && live > 0 && !u.damaged {
			out = append(out, victim{n, live, max(full-u.holes.gone(), 1), pos - uint64(u.info.Last)})
		}
	}
	return out
}

// Clean gives dead space back now: it makes holes where it can, moves what is live
// out of segments that are less than 97 % live all the same, and releases them:
// then the disk and the ledger agree.
func (p *Pool) Clean(context.Context) (PoolStatus, error) {
	if err := p.writable(); err != nil {
		return p.Status(), err
	}
	if err := p.Reclaim(); err != nil {
		return p.Status(), err
	}
	if err := p.log.Rotate(); err != nil {
		return p.Status(), p.logError(err)
	}
	if err := p.Checkpoint(); err != nil {
		return p.Status(), err
	}
	if _, _, err := p.planHoles(1<<30, vainLooks); err != nil {
		return p.Status(), err
	}
	// One pass: what is moved now is as dense as it gets.
	done, moved := 0, int64(0)
	for vs := bestVictims(p.victims(), 97, true, 1<<30); len(vs) > 0; {
		n := min(len(vs), 64)
		k, blocks, err := p.cleanSegments(vs[:n])
		if err != nil {
			return p.Status(), err
		}
		done, moved, vs = done+k, moved+blocks, vs[n:]
	}
	p.cleaned(done, moved)
	if err := p.renewBackups(); err != nil {
		return p.Status(), err
	}
	if err := p.makeHoles(); err != nil {
		return p.Status(), err
	}
	if err := p.log.DropSpares(0); err != nil { // with a ballast they become that
		return p.Status(), p.logError(err)
	}
	return p.Status(), nil
}

// cleanSegments empties segments and checkpoints, which gives them back. It
// returns how many it emptied, and the blocks that it moved.
func (p *Pool) cleanSegments(vs []victim) (done int, moved int64, err error) {
	p.cleanMu.Lock()
	defer p.cleanMu.Unlock()
	since := int64(0)
	for _, v := range vs {
		if !p.space.has(v.number) {
			continue // cleaned by somebody else since it was chosen
		}
		// The log keeps back little room for copies; a checkpoint turns what
		// was emptied into room again.
		room := int64(p.log.Available() - keptSegments + 1)
		if since > 0 && since+v.live > max(room, 1)*int64(p.space.blocks)/2 {
			if err := p.Checkpoint(); err != nil {
				return done, moved, err
			}
			since = 0
		}
		if err := p.unpinWhenShort(); err != nil {
			return done, moved, err
		}
		n, err := p.emptySegment(v.number)
		moved, since = moved+n, since+n
		if err != nil {
			return done, moved, err
		}
		done++
	}
	if done > 0 {
		err = p.Checkpoint()
	}
	return done, moved, err
}

// placed is one block as the header of its record describes it.
type placed struct {
	version cow.VersionID
	block   uint64
	loc     uint64
	crc     uint32
	birth   segment.Seq
}

// emptySegment moves every live block of a segment.
func (p *Pool) emptySegment(number uint64) (moved int64, err error) {
	all, err := p.placedIn(number)
	if err != nil {
		return 0, p.damaged(number, err)
	}
	for ps := range byPage(all) {
		k, err := p.movePage(ps)
		if err != nil {
			return moved, err
		}
		moved += k
	}
	return moved, nil
}

// placedIn lists the blocks of a segment as its headers describe them, by version
// and block; none if it was released meanwhile, since it had died.
func (p *Pool) placedIn(number uint64) (all []placed, err error) {
	err = p.log.Scan(number, func(h *segment.Header, at int64) error {
		loc := number*p.space.blocks + uint64(at/blockSize) + 1
		seq := h.First
		for _, e := range h.Entries {
			if e.Kind == segment.Data || e.Kind == segment.Moved {
				birth := seq
				if e.Kind == segment.Moved {
					birth = e.Birth
				}
				for i := range e.Count {
					all = append(all, placed{cow.VersionID(e.Version), e.Block + i, loc + i, e.CRCs[i], birth})
				}
			}
			loc += uint64(len(e.CRCs))
			seq++
		}
		return nil
	})
	if !p.space.has(number) {
		return nil, nil
	}
	slices.SortFunc(all, func(a, b placed) int {
		return cmp.Or(cmp.Compare(a.version, b.version), cmp.Compare(a.block, b.block), cmp.Compare(a.loc, b.loc))
	})
	return all, err
}

// byPage yields what one version wrote of one page, from a list of placedIn.
func byPage(all []placed) iter.Seq[[]placed] {
	return func(yield func([]placed) bool) {
		for len(all) > 0 {
			n := 1
			for n < len(all) && all[n].version == all[0].version && all[n].block/cow.PageBlocks == all[0].block/cow.PageBlocks {
				n++
			}
			if !yield(all[:n]) {
				return
			}
			all = all[n:]
		}
	}
}

// damaged keeps the cleaner from a segment that it cannot read; what is in it
// stays where it is.
func (p *Pool) damaged(number uint64, err error) error {
	p.space.mu.Lock()
	if u := p.space.segs[number]; u != nil {
		u.damaged = true
	}
	p.space.mu.Unlock()
	p.event("segment-damaged", "", fmt.Sprintf("segment %d cannot be cleaned: %v", number, err))
	return nil
}
