package lun

import (
	"errors"
	"fmt"

	"lunar/cow"
)

// forgotten stands for the writer of a block whose version the tree does not know
// any more: it was freed, or it was merged and nothing is left under its id. In the
// second case its blocks live on, under the id of a version that it went into, and
// nothing says which that was. It is larger than every version.
const forgotten = ^cow.VersionID(0)

// markForgotten gives the blocks of versions that are gone one writer, so that a
// page of theirs is looked for once.
func (p *Pool) markForgotten(all []placed) {
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	for i := range all {
		if p.tree.Version(p.tree.Canonical(all[i].version)) == nil {
			all[i].version = forgotten
		}
	}
}

// holders lists under which ids the blocks of one page that one version wrote may
// be mapped. Called with adminMu held.
func (p *Pool) holders(ps []placed) (out []holder, err error) {
	num := ps[0].block / cow.PageBlocks
	canon := p.tree.Canonical(ps[0].version)
	v := p.tree.Version(canon)
	if v == nil {
		return p.searchHolders(num, ps)
	}
	p.settle(v.Branch, num, canon, nil)
	for _, raw := range p.tree.Group(canon, nil) {
		out = append(out, holder{raw, p.tree.Version(raw).Branch})
	}
	return out, nil
}

// searchHolders finds the records of a page, on whatever branch, that map one of
// the blocks. Its cost is a seek for each branch of the pool.
func (p *Pool) searchHolders(num uint64, ps []placed) (out []holder, err error) {
	var rec cow.Record
	for _, b := range p.tree.Branches() {
		p.settle(b.ID, num, forgotten, nil)
		seen := map[cow.VersionID]bool{}
		add := func(raw cow.VersionID) {
			if !seen[raw] && p.tree.Version(raw) != nil {
				seen[raw] = true
				out = append(out, holder{raw, b.ID})
			}
		}
		for _, o := range p.overlay.get(pageKey{b.ID, num}) {
			add(o.version)
		}
		var bad error
		err := p.index.Versions(uint64(b.ID), num, func(version uint64, raw []byte) bool {
			rec = cow.Record{Hints: rec.Hints[:0]}
			if err := rec.Decode(raw); err != nil {
				bad = fmt.Errorf("page %d of version %d: %w", num, version, err)
				return false
			}
			if mapsAny(&rec, ps) {
				add(cow.VersionID(version))
			}
			return true
		})
		if err != nil || bad != nil {
			return nil, fmt.Errorf("looking for the owner of blocks: %w", errors.Join(bad, err))
		}
	}
	return out, nil
}

// mapsAny says whether a record maps one of the blocks where it was placed.
func mapsAny(rec *cow.Record, ps []placed) bool {
	for _, x := range ps {
		if i := int(x.block % cow.PageBlocks); rec.Set.Has(i) && rec.Loc[i] == x.loc {
			return true
		}
	}
	return false
}
