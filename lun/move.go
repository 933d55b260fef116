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

// holder is where a live block's map entry is stored.
type holder struct {
	raw    cow.VersionID
	branch cow.BranchID
}

// living is a block that a map points at, with where that entry is stored.
type living struct {
	placed
	holder
}

// at is the block's place in its page.
func (x *living) at() int { return int(x.block % cow.PageBlocks) }

// copied is a block with the location of its copy.
type copied struct {
	living
	to uint64
}

// longestCopy bounds the blocks of one entry that is copied.
const longestCopy = 64

// movePage moves the live ones among the blocks of one page that one version
// wrote. adminMu keeps merges and structural changes away meanwhile.
func (p *Pool) movePage(ps []placed) (int64, error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	num := ps[0].block / cow.PageBlocks
	live, err := p.living(num, ps, nil)
	if err != nil {
		return 0, err
	}
	slices.SortStableFunc(live, func(a, b living) int {
		return cmp.Or(cmp.Compare(a.raw, b.raw), cmp.Compare(a.block, b.block))
	})
	return p.moveLiving(num, live, nil)
}

// living appends those of the blocks of one page, all named by one version, that a
// map still points at. Called with adminMu.
func (p *Pool) living(num uint64, ps []placed, out []living) ([]living, error) {
	canon := p.tree.Canonical(ps[0].version) // also of an id that was merged and forgotten
	v := p.tree.Version(canon)
	if v == nil {
		return out, nil // freed
	}
	group := p.tree.Group(canon, nil)
	if v.State == cow.Head && len(group) == 1 {
		if found, ok := p.livingInHead(v, num, ps, out); ok {
			return found, nil
		}
	}
	p.settle(v.Branch, num, canon, nil)
	var err error
	for _, raw := range group {
		if out, err = p.livingUnder(holder{raw, p.tree.Version(raw).Branch}, num, ps, out); err != nil {
			return out, err
		}
	}
	return out, nil
}

// livingInHead is living for a head that has its page in memory, unsaved changes
// included: looking it up in the index would cost several times what copying the
// blocks does. ok is false where only the stored records tell.
func (p *Pool) livingInHead(v *cow.Version, num uint64, ps []placed, out []living) (found []living, ok bool) {
	p.viewMu.Lock()
	head := p.heads[v.LUN]
	p.viewMu.Unlock()
	if head == nil {
		return out, false
	}
	pg := head.resident(num)
	if pg == nil {
		return out, false
	}
	defer pg.unpin()
	pg.mu.Lock()
	defer pg.mu.Unlock()
	if pg.err != nil || pg.Head != v.ID {
		return out, false
	}
	found = out
	for _, x := range ps {
		e := pg.At(int(x.block % cow.PageBlocks))
		switch {
		case e.Loc != x.loc:
			continue
		case e.Owner != v.ID:
			return out, false
		}
		if x.birth == 0 {
			x.birth = max(segment.Seq(pg.Applied), 1)
		}
		found = append(found, living{x, holder{v.ID, v.Branch}})
	}
	return found, true
}

// livingUnder appends those of the blocks whose entries are stored with one holder.
func (p *Pool) livingUnder(h holder, num uint64, ps []placed, out []living) ([]living, error) {
	p.settle(h.branch, num, h.raw, nil)
	var rec cow.Record
	ok, err := p.ownRecord(h.branch, num, h.raw, &rec)
	if err != nil || !ok {
		return out, err
	}
	return appendLiving(out, h, &rec, ps), nil
}

// appendLiving appends those of the blocks that a record names.
func appendLiving(out []living, h holder, rec *cow.Record, ps []placed) []living {
	for _, x := range ps {
		if i := int(x.block % cow.PageBlocks); rec.Set.Has(i) && rec.Loc[i] == x.loc {
			if x.birth == 0 {
				x.birth = max(segment.Seq(rec.Applied), 1)
			}
			out = append(out, living{x, h})
		}
	}
	return out
}

// moveLiving copies live blocks of one page to the end of the log in the order that
// they come in, and then points the maps at the copies: once for each stored
// record, since one change for each run would cost the index more than what it says. The
// originals stay in place until a checkpoint has committed that. bytes returns
// what is in some of the blocks where that was read before; nil reads it here.
// Called with adminMu.
func (p *Pool) moveLiving(num uint64, live []living, bytes func([]living) []byte) (moved int64, err error) {
	var copies []copied
	for len(live) > 0 && err == nil {
		n := 1
		for n < len(live) && n < longestCopy && live[n].holder == live[0].holder && live[n].block == live[0].block+uint64(n) &&
			(bytes != nil || live[n].loc == live[0].loc+uint64(n)) {
			n++
		}
		if bytes != nil {
			copies, err = p.appendCopy(live[:n], bytes(live[:n]), false, copies)
		} else {
			copies, err = p.copyRun(live[:n], copies)
		}
		live = live[n:]
	}
	if len(copies) == 0 {
		return 0, err
	}
	moved, failed := p.repoint(num, copies)
	for _, c := range copies {
		p.space.of(p.space.segment(c.to)).live.Add(-1)
	}
	p.moved.Add(moved)
	return moved, errors.Join(err, failed)
}

// copyRun copies blocks that lie one behind the other. What cannot be read stays
// where it is.
func (p *Pool) copyRun(run []living, copies []copied) ([]copied, error) {
	n := len(run)
	b := p.buf.Get(n * blockSize)[:n*blockSize]
	err := p.log.Read(b, segment.Loc(run[0].loc))
	for i := 0; i < n && err == nil; i++ {
		if segment.Checksum(b[i*blockSize:(i+1)*blockSize]) != run[i].crc {
			err = fmt.Errorf("block %d of version %d does not match its checksum", run[i].block, run[i].version)
		}
	}
	if err != nil {
		p.buf.Put(b)
		return copies, p.damaged(p.space.segment(run[0].loc), err)
	}
	copies, err = p.appendCopy(run, b, true, copies)
	if err != nil {
		p.buf.Put(b)
	}
	return copies, err
}

// appendCopy appends consecutive blocks of one holder to the log, and where they
// went to copies. Until the maps name them the copies count as live, so that
// their segment is not released. owned gives b to the log, unless there is an error.
func (p *Pool) appendCopy(run []living, b []byte, owned bool, copies []copied) ([]copied, error) {
	n := len(run)
	e := segment.Entry{Kind: segment.Moved, Version: uint64(run[0].raw), Block: run[0].block, Count: uint64(n), CRCs: make([]uint32, n)}
	for i := range run {
		e.CRCs[i] = run[i].crc
		e.Birth = max(e.Birth, run[i].birth) // not before any of them, and before what overwrites them
	}
	ctx, cancel := context.WithTimeout(background(), p.spaceWait())
	err := p.log.AdmitReserved(ctx, n, 1)
	cancel()
	if err != nil {
		return copies, p.logError(err)
	}
	p.gate.enter(0)
	ext, err := p.log.Append(e, b, owned, nil)
	for _, x := range ext {
		p.space.of(p.space.segment(uint64(x.Loc))).live.Add(int64(x.Count))
	}
	p.gate.leave(0)
	if err != nil {
		p.log.Unadmit(n, 1)
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

// repoint changes the map entries of moved blocks of a page, holder by holder. Then
// every cached page that shows a block follows.
func (p *Pool) repoint(num uint64, copies []copied) (moved int64, err error) {
	slices.SortStableFunc(copies, func(a, b copied) int { return cmp.Compare(a.raw, b.raw) })
	for left := copies; len(left) > 0 && err == nil; {
		n := 1
		for n < len(left) && left[n].raw == left[0].raw {
			n++
		}
		var k int64
		k, err = p.repointHolder(num, left[:n])
		moved, left = moved+k, left[n:]
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
	return moved, err
}

// repointHolder changes the entries of one holder: of a head under its page's
// lock, since its writers replace and absorb entries; of a frozen version in
// the stored record, which only the janitor changes.
func (p *Pool) repointHolder(num uint64, copies []copied) (moved int64, err error) {
	h := copies[0].holder
	v := p.tree.Version(p.tree.Canonical(h.raw))
	if v.State != cow.Head {
		var r cow.Record
		for _, c := range copies {
			r.Set.Add(c.at())
			r.Loc[c.at()], r.CRC[c.at()] = c.to, c.crc
		}
		p.repointRecord(h, num, &r, copies)
		return int64(len(copies)), nil
	}
	p.viewMu.Lock()
	head := p.heads[v.LUN]
	p.viewMu.Unlock()
	pg, err := head.get(num)
	if err != nil {
		return 0, err
	}
	defer pg.unpin()
	if err := pg.lock(); err != nil {
		return 0, err
	}
	defer pg.mu.Unlock()
	return p.repointHead(pg, h, num, copies), nil
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
	p.overlay.putLocked(pageKey{h.branch, num}, op{h.raw, opMove, r.Append(nil)})
	p.giveBackLocked(segs)
	p.overlay.mu.Unlock()
}
