package lun

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
			out = append(out, victim{n, live, full, pos - uint64(u.info.Last)})
		}
	}
	return out
}

// Clean gives dead space back now: it moves what is live out of segments that
// are less than 97 % live, and releases them: then the disk and the ledger agree.
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
	if err := p.log.DropSpares(); err != nil { // with a ballast they become that
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
	var all []placed
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
		return 0, nil // released meanwhile: it had died
	}
	if err != nil {
		return 0, p.damaged(number, err)
	}
	slices.SortStableFunc(all, func(a, b placed) int {
		return cmp.Or(cmp.Compare(a.version, b.version), cmp.Compare(a.block, b.block))
	})
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].version == all[0].version && all[n].block/cow.PageBlocks == all[0].block/cow.PageBlocks {
			n++
		}
		k, err := p.movePage(number, all[:n])
		if err != nil {
			return moved, err
		}
		moved, all = moved+k, all[n:]
	}
	return moved, nil
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

// holder is where a live block's map entry is stored.
type holder struct {
	raw    cow.VersionID
	branch cow.BranchID
}

// movePage moves the live ones among the blocks of one page that one version
// wrote. adminMu keeps merges and structural changes away meanwhile.
func (p *Pool) movePage(number uint64, ps []placed) (int64, error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	num := ps[0].block / cow.PageBlocks
	canon := p.tree.Canonical(ps[0].version) // also of an id that was merged and forgotten
	v := p.tree.Version(canon)
	if v == nil {
		return 0, nil // freed
	}
	p.settle(v.Branch, num, canon, nil)
	var rec cow.Record
	moved := int64(0)
	for _, raw := range p.tree.Group(canon, nil) {
		h := holder{raw, p.tree.Version(raw).Branch}
		p.settle(h.branch, num, raw, nil)
		ok, err := p.ownRecord(h.branch, num, raw, &rec)
		if err != nil {
			return moved, err
		}
		if !ok {
			continue
		}
		var live []placed
		for _, x := range ps {
			if i := int(x.block % cow.PageBlocks); rec.Set.Has(i) && rec.Loc[i] == x.loc {
				live = append(live, x)
			}
		}
		if len(live) > 0 {
			n, err := p.moveBlocks(number, h, num, live)
			moved += n
			if err != nil {
				return moved, err
			}
		}
	}
	return moved, nil
}

// copied is a block with the location of its copy.
type copied struct {
	placed
	to uint64
}

// at is the block's place in its page.
func (c *copied) at() int { return int(c.block % cow.PageBlocks) }

// moveBlocks copies blocks of one page to the end of the log, in runs, and then
// points the maps at the copies, all at once: a record of the index for each run
// would cost more than what it says. The originals stay in place until a
// checkpoint has committed that.
func (p *Pool) moveBlocks(number uint64, h holder, num uint64, live []placed) (moved int64, err error) {
	var copies []copied
	for len(live) > 0 && err == nil {
		n := 1
		for n < len(live) && live[n].block == live[0].block+uint64(n) && live[n].loc == live[0].loc+uint64(n) && n < 64 {
			n++
		}
		copies, err = p.copyRun(number, h, live[:n], copies)
		live = live[n:]
	}
	if len(copies) == 0 {
		return 0, err
	}
	moved, failed := p.repoint(h, num, copies)
	for _, c := range copies {
		p.space.of(p.space.segment(c.to)).live.Add(-1)
	}
	p.moved.Add(moved)
	return moved, errors.Join(err, failed)
}

// copyRun appends blocks that lie one behind the other to the log, and where
// they went to copies. Until the maps name them the copies count as live, so
// that their segment is not released.
func (p *Pool) copyRun(number uint64, h holder, run []placed, copies []copied) ([]copied, error) {
	n := len(run)
	b := p.buf.Get(n * blockSize)[:n*blockSize]
	err := p.log.Read(b, segment.Loc(run[0].loc))
	crcs := make([]uint32, n)
	for i := range run {
		crcs[i] = run[i].crc
		if err == nil && segment.Checksum(b[i*blockSize:(i+1)*blockSize]) != run[i].crc {
			err = fmt.Errorf("block %d of version %d does not match its checksum", run[i].block, run[i].version)
		}
	}
	if err != nil {
		p.buf.Put(b)
		return copies, p.damaged(number, err)
	}
	ctx, cancel := context.WithTimeout(background(), p.spaceWait())
	err = p.log.AdmitReserved(ctx, n, 1)
	cancel()
	if err != nil {
		p.buf.Put(b)
		return copies, p.logError(err)
	}
	p.gate.enter(0)
	ext, err := p.log.Append(segment.Entry{Kind: segment.Moved, Version: uint64(h.raw), Block: run[0].block, Count: uint64(n), Birth: run[0].birth, CRCs: crcs}, b, true, nil)
	for _, x := range ext {
		p.space.of(p.space.segment(uint64(x.Loc))).live.Add(int64(x.Count))
	}
	p.gate.leave(0)
	if err != nil {
		p.log.Unadmit(n, 1)
		p.buf.Put(b)
		return copies, p.logError(err)
	}
	p.noteAppend(n, len(ext))
	for _, x := range ext {
		for i := range x.Count {
			copies = append(copies, copied{run[x.First+i], uint64(x.Loc) + uint64(i)})
		}
	}
	return copies, nil
}

// repoint changes the map entries of moved blocks: of a head under its page's
// lock, since its writers replace and absorb entries; of a frozen version in
// the stored record, which only the janitor changes. Then every cached page
// that shows a block follows.
func (p *Pool) repoint(h holder, num uint64, copies []copied) (moved int64, err error) {
	v := p.tree.Version(p.tree.Canonical(h.raw))
	if v.State == cow.Head {
		p.viewMu.Lock()
		head := p.heads[v.LUN]
		p.viewMu.Unlock()
		pg, err := head.get(num)
		if err != nil {
			return 0, err
		}
		if err := pg.lock(); err != nil {
			pg.unpin()
			return 0, err
		}
		moved = p.repointHead(pg, h, num, copies)
		pg.mu.Unlock()
		pg.unpin()
	} else {
		var r cow.Record
		for _, c := range copies {
			r.Set.Add(c.at())
			r.Loc[c.at()], r.CRC[c.at()] = c.to, c.crc
		}
		p.repointRecord(h, num, &r, copies)
		moved = int64(len(copies))
	}
	for _, v := range p.allViews() {
		pg := v.resident(num)
		if pg == nil {
			continue
		}
		pg.mu.Lock()
		for _, c := range copies {
			pg.Move(c.at(), c.loc, c.to)
		}
		pg.mu.Unlock()
		pg.unpin()
	}
	return moved, nil
}

// repointHead moves blocks of a head's locked page: those that are stored under
// the head's own id as changes of the page, those under an id merged into it in
// that record. A block that was overwritten meanwhile stays overwritten.
func (p *Pool) repointHead(pg *page, h holder, num uint64, copies []copied) (moved int64) {
	var r cow.Record
	for _, c := range copies {
		at := c.at()
		e := pg.At(at)
		switch {
		case e.Loc != c.loc:
			continue
		case e.Owner == pg.Head:
			pg.Move(at, c.loc, c.to)
			pg.Touched(at)
			for loc, d := range map[uint64]int64{c.loc: -1, c.to: 1} {
				seg := p.space.segment(loc)
				p.space.of(seg).live.Add(d)
				pg.addSeg(seg, d)
			}
			p.markDirty(pg)
		default:
			r.Set.Add(at)
			r.Loc[at], r.CRC[at] = c.to, c.crc
		}
		moved++
	}
	if !r.Set.Empty() {
		p.repointRecord(h, num, &r, copies)
	}
	return moved
}

// repointRecord lays the new locations r of some of the copied blocks over a
// stored record.
func (p *Pool) repointRecord(h holder, num uint64, r *cow.Record, copies []copied) {
	segs := map[uint64]int64{}
	for _, c := range copies {
		if r.Set.Has(c.at()) {
			segs[p.space.segment(c.loc)]--
			segs[p.space.segment(c.to)]++
		}
	}
	p.overlay.mu.Lock()
	p.overlay.putLocked(pageKey{h.branch, num}, op{h.raw, opMerge, r.Append(nil)})
	p.giveBackLocked(segs)
	p.overlay.mu.Unlock()
}
