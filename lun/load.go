package lun

import (
	"fmt"
	"runtime"
	"slices"

	"lunar/cow"
)

// load builds a page from the records on the path of its view's version. Called
// with pg.mu held, by the one that put the page into the view. A load that raced
// a merge may have missed a record that moved from one id to another: it is
// thrown away and done again.
func (p *Pool) load(pg *page) error {
	for {
		before := p.merges.Load()
		err := p.loadOnce(pg)
		if after := p.merges.Load(); after == before && before%2 == 0 {
			if err == nil {
				p.noteScattered(pg)
			}
			return err
		}
		runtime.Gosched()
	}
}

func (p *Pool) loadOnce(pg *page) error {
	p.treeMu.RLock()
	head := pg.view.version
	path := p.tree.Path(head, nil)
	p.treeMu.RUnlock()

	pg.Reset(head)
	l := loading{pg: pg}
	for _, step := range path {
		if l.found && l.hints.Next() == 0 {
			break
		}
		p.settle(step.Branch, pg.num, step.Limit, pg.view)
		if err := l.step(p, step); err != nil {
			return err
		}
	}
	return l.pass(p, 0)
}

// loading is a walk over the records of a page, newest first. Only those that
// serve a hint of the newest are read; which one that is shows when the next
// older one is met, so one record is waiting until then.
type loading struct {
	pg      *page
	found   bool
	hints   cow.Hints
	waiting holder // raw 0: none
}

func (l *loading) step(p *Pool, step cow.Step) error {
	it := p.records(step.Branch, l.pg.num, step.Limit)
	for it.next() {
		v := it.version
		if err := l.pass(p, v); err != nil {
			it.close()
			return err
		}
		switch {
		case !l.found:
			if err := it.record(); err != nil {
				it.close()
				return loadError(l.pg, v, err)
			}
			l.pg.Fill(v, &it.rec)
			if v == l.pg.Head {
				l.pg.Loaded(true, it.rec.Applied)
			}
			l.found, l.hints = true, cow.HintsOf(slices.Clone(it.rec.Hints))
		case l.hints.Next() == v:
			if err := it.record(); err != nil {
				it.close()
				return loadError(l.pg, v, err)
			}
			l.pg.Fill(v, &it.rec)
		case l.hints.Next() != 0:
			l.waiting = holder{v, step.Branch}
			continue
		}
		l.hints.Serve(v, v-1)
		if l.hints.Next() == 0 {
			break
		}
		l.waiting = holder{v, 0} // read already
	}
	if err := it.close(); err != nil {
		return loadError(l.pg, it.version, err)
	}
	return nil
}

// pass reads the waiting record if a hint above older is served by it.
func (l *loading) pass(p *Pool, older cow.VersionID) error {
	w := l.waiting
	l.waiting = holder{}
	if w.raw == 0 || !l.hints.Serve(w.raw, older) || w.branch == 0 {
		return nil
	}
	var r cow.Record
	ok, err := p.ownRecord(w.branch, l.pg.num, w.raw, &r)
	if err != nil {
		return loadError(l.pg, w.raw, err)
	}
	if ok {
		l.pg.Fill(w.raw, &r)
	}
	return nil
}

// settle takes into the overlay what a branch's head view holds unsaved of a
// page for a version up to limit. Called with a page of another view locked at
// most; the order is from descendants to ancestors.
func (p *Pool) settle(b cow.BranchID, num uint64, limit cow.VersionID, self *view) {
	p.viewMu.Lock()
	tip := p.tips[b]
	p.viewMu.Unlock()
	if tip == nil || tip == self {
		return
	}
	pg := tip.resident(num)
	if pg == nil {
		return
	}
	pg.mu.Lock()
	if pg.err == nil && pg.Head <= limit {
		p.encode(pg)
	}
	pg.mu.Unlock()
	pg.unpin()
}

func loadError(pg *page, v cow.VersionID, err error) error {
	return Errorf(ErrCorrupt, "map of blocks %d-%d, version %d: %w; run `lunar pool check`",
		pg.num*cow.PageBlocks, (pg.num+1)*cow.PageBlocks-1, v, err)
}

// recordIter walks the stored records of one page on one branch, newest first:
// what the index has, with the overlay's operations laid over it.
type recordIter struct {
	p       *Pool
	key     pageKey
	limit   cow.VersionID
	reader  pageReader
	seeked  bool
	idxOK   bool
	idxVer  cow.VersionID
	idxRec  []byte
	ops     []op
	opVers  []cow.VersionID // descending, not yet passed
	version cow.VersionID
	base    []byte // of the index, for version; nil if it has none
	rec     cow.Record
	err     error
}

// pageReader is the part of index.PageReader that is used here.
type pageReader interface {
	SeekNewest(branch, page, atMost uint64) (version uint64, rec []byte, ok bool, err error)
	Next() (version uint64, rec []byte, ok bool, err error)
	Close() error
}

func (p *Pool) records(b cow.BranchID, num uint64, limit cow.VersionID) *recordIter {
	it := &recordIter{p: p, key: pageKey{b, num}, limit: limit}
	// The overlay is read first: what a checkpoint commits meanwhile is then
	// seen twice, which is harmless, and never not at all.
	for _, o := range p.overlay.get(it.key) {
		if o.version <= limit {
			it.ops = append(it.ops, o)
			it.opVers = append(it.opVers, o.version)
		}
	}
	slices.SortFunc(it.opVers, func(a, b cow.VersionID) int { return int(int64(b) - int64(a)) })
	it.opVers = slices.Compact(it.opVers)
	return it
}

func (it *recordIter) advanceIndex() {
	var v uint64
	if !it.seeked {
		it.seeked = true
		it.reader = it.p.index.PageReader()
		v, it.idxRec, it.idxOK, it.err = it.reader.SeekNewest(uint64(it.key.branch), it.key.page, uint64(it.limit))
	} else {
		v, it.idxRec, it.idxOK, it.err = it.reader.Next()
	}
	it.idxVer = cow.VersionID(v)
}

// next moves to the next older record that exists.
func (it *recordIter) next() bool {
	for {
		if !it.seeked || (it.idxOK && it.base != nil) {
			it.advanceIndex()
		}
		it.base = nil
		if it.err != nil {
			return false
		}
		switch {
		case len(it.opVers) > 0 && (!it.idxOK || it.opVers[0] >= it.idxVer):
			it.version = it.opVers[0]
			it.opVers = it.opVers[1:]
			if it.idxOK && it.idxVer == it.version {
				it.base = it.idxRec
			}
		case it.idxOK:
			it.version, it.base = it.idxVer, it.idxRec
		default:
			return false
		}
		if it.exists() {
			return true
		}
	}
}

func (it *recordIter) exists() bool {
	ok := it.base != nil
	for _, o := range it.ops {
		if o.version == it.version {
			ok = o.kind != opDelete
		}
	}
	return ok
}

// record decodes the current record into rec.
func (it *recordIter) record() error {
	it.rec = cow.Record{Hints: it.rec.Hints[:0]}
	if it.base != nil {
		if err := it.rec.Decode(it.base); err != nil {
			return err
		}
	}
	return applyOps(&it.rec, it.ops, it.version)
}

// applyOps lays the operations on one version's record over it.
func applyOps(r *cow.Record, ops []op, v cow.VersionID) error {
	var n cow.Record
	for _, o := range ops {
		switch {
		case o.version != v:
		case o.kind == opDelete:
			*r = cow.Record{}
		default:
			if err := n.Decode(o.rec); err != nil {
				return err
			}
			if o.kind == opSet {
				n.Full = true
			}
			n.Over(r)
		}
	}
	return nil
}

func (it *recordIter) close() error {
	if it.reader != nil {
		if err := it.reader.Close(); err != nil && it.err == nil {
			it.err = err
		}
	}
	return it.err
}

// ownRecord reads what is stored under one version's id of one page.
func (p *Pool) ownRecord(b cow.BranchID, num uint64, v cow.VersionID, r *cow.Record) (ok bool, err error) {
	ops := p.overlay.get(pageKey{b, num})
	raw, ok, err := p.index.Page(uint64(b), num, uint64(v), nil)
	if err != nil {
		return false, err
	}
	*r = cow.Record{Hints: r.Hints[:0]}
	if ok {
		if err := r.Decode(raw); err != nil {
			return false, fmt.Errorf("page %d of version %d: %w", num, v, err)
		}
	}
	for _, o := range ops {
		if o.version == v {
			ok = o.kind != opDelete
		}
	}
	if err := applyOps(r, ops, v); err != nil {
		return false, err
	}
	return ok, nil
}
