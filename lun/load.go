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
	var want *hintSet // nil until the newest record is found
	for _, step := range path {
		if want != nil && want.done(step.Limit) {
			break
		}
		p.settle(step.Branch, pg.num, step.Limit, pg.view)
		it := p.records(step.Branch, pg.num, step.Limit)
		for it.next() {
			if want == nil {
				if err := it.record(); err != nil {
					it.close()
					return loadError(pg, it, err)
				}
				pg.Fill(it.version, &it.rec)
				if it.version == head {
					pg.Loaded(true, it.rec.Applied)
				}
				want = p.hints(it.version, it.rec.Hints)
			} else if it.version < want.oldest {
				break
			} else if want.has(it.version) {
				if err := it.record(); err != nil {
					it.close()
					return loadError(pg, it, err)
				}
				pg.Fill(it.version, &it.rec)
			}
		}
		if err := it.close(); err != nil {
			return loadError(pg, it, err)
		}
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

func loadError(pg *page, it *recordIter, err error) error {
	return Errorf(ErrCorrupt, "map of blocks %d-%d, version %d: %w; run `lunar pool check`",
		pg.num*cow.PageBlocks, (pg.num+1)*cow.PageBlocks-1, it.version, err)
}

// hintSet are the versions whose records show through a newer one, through
// merges.
type hintSet struct {
	pool    *Pool
	ids     []cow.VersionID // descending
	targets []cow.VersionID // what merged ones went into
	oldest  cow.VersionID
}

func (p *Pool) hints(of cow.VersionID, ids []cow.VersionID) *hintSet {
	h := &hintSet{pool: p, ids: slices.Clone(ids), oldest: of}
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	for _, id := range ids {
		h.oldest = min(h.oldest, id)
		if c := p.tree.Canonical(id); c != id {
			h.targets = append(h.targets, c)
		}
	}
	return h
}

// has says whether the record stored under v is one of the hinted: under its
// own id, or under that of anything that a hinted one was merged with.
func (h *hintSet) has(v cow.VersionID) bool {
	if slices.Contains(h.ids, v) {
		return true
	}
	if len(h.targets) == 0 {
		return false
	}
	h.pool.treeMu.RLock()
	defer h.pool.treeMu.RUnlock()
	return slices.Contains(h.targets, h.pool.tree.Canonical(v))
}

// done says that nothing hinted can be at or below limit.
func (h *hintSet) done(limit cow.VersionID) bool { return len(h.ids) == 0 || h.oldest > limit }

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
