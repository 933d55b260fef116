package lun

import (
	"slices"

	"lunar/cow"
	"lunar/reservation"
)

// recyclePlanner finds out what dropping a LUN's snapshots gives back, the oldest
// first. It goes over each list of changes once: the snapshots that would be gone
// pile up in a run, whose blocks the next version either replaces, which frees them,
// or takes over.
type recyclePlanner struct {
	p    *Pool
	lun  *cow.LUN
	runs map[cow.VersionID]*run // by the version that the run ends with
	kids map[cow.VersionID][][]cow.VersionID
}

// run is a line of versions that go together, oldest first, the next one made
// from the one before.
type run struct {
	members []member
	pages   map[uint64]*runPage
}

type member struct {
	id    cow.VersionID
	drops bool     // would be dropped, rather than being gone already
	idle  bool     // and gave nothing back when it was its turn
	pages []uint64 // that it changed, ascending
}

// runPage is who of the run owns the blocks of a page, looked at so far.
type runPage struct {
	upto int // members that were taken into account
	own  []ownBits
}

type ownBits struct {
	member int
	bits   cow.Bits
}

// candidates describes the snapshots of a LUN, oldest first, until those that can
// go give need blocks. Called with adminMu.
func (p *Pool) candidates(l *cow.LUN, need int64) ([]reservation.Candidate, error) {
	p.takeAll()
	r := &recyclePlanner{p: p, lun: l, runs: map[cow.VersionID]*run{}, kids: map[cow.VersionID][][]cow.VersionID{}}
	var out []reservation.Candidate
	total, now := int64(0), p.lifeNow()
	for _, s := range p.tree.Snapshots(l.ID) {
		c := reservation.Candidate{
			ID: uint64(s.ID), Created: int64(s.ID), Protected: s.IsProtected(now), Attached: p.opened(s.ID), HasClones: r.hasClones(s.ID),
		}
		if c.Able() {
			if err := r.weigh(s.ID, &c); err != nil {
				return nil, err
			}
			total += max(c.Frees, 0)
		}
		out = append(out, c)
		if total >= need {
			break
		}
	}
	return out, nil
}

// below lists what is left below a version when everything that is gone is merged
// or freed: for each the way to it, versions that are gone first and one that stays last.
func (r *recyclePlanner) below(id cow.VersionID) [][]cow.VersionID {
	if out, known := r.kids[id]; known {
		return out
	}
	var out [][]cow.VersionID
	for _, k := range r.p.tree.Children(id) {
		ways := [][]cow.VersionID{nil}
		if r.p.tree.Version(k).State == cow.Deleted {
			ways = r.below(k)
		}
		switch {
		case len(ways) == 1:
			out = append(out, append([]cow.VersionID{k}, ways[0]...))
		case len(ways) > 1: // it stays hidden
			out = append(out, []cow.VersionID{k})
		}
	}
	r.kids[id] = out
	return out
}

// hasClones says whether more depends on a snapshot than the next version of its LUN.
func (r *recyclePlanner) hasClones(id cow.VersionID) bool {
	ways := r.below(id)
	return len(ways) > 1 || len(ways) == 1 && r.p.tree.Version(ways[0][len(ways[0])-1]).LUN != r.lun.ID
}

// weigh counts what dropping one more snapshot gives back.
func (r *recyclePlanner) weigh(id cow.VersionID, c *reservation.Candidate) error {
	x, err := r.begin(r.p.tree.Version(id).Parent)
	if err != nil {
		return err
	}
	if err := r.add(x, id, true); err != nil {
		return err
	}
	r.runs[id] = x
	first := 0
	if ways := r.below(id); len(ways) == 0 {
		c.Frees, err = r.all(x) // nobody else needs what they have
	} else {
		c.Frees, first, err = r.replaced(x, ways[0])
	}
	if err != nil {
		return err
	}
	if c.Frees <= 0 {
		x.members[len(x.members)-1].idle = true
		return nil
	}
	for _, m := range x.members[first:] {
		if m.drops && m.idle {
			c.With = append(c.With, uint64(m.id))
		}
	}
	return nil
}

// begin finds or makes the run that goes on behind a version: snapshots that would
// be dropped, and versions that are gone already.
func (r *recyclePlanner) begin(id cow.VersionID) (*run, error) {
	var gone []cow.VersionID
	var x *run
	for v := r.p.tree.Version(id); v != nil; v = r.p.tree.Version(v.Parent) {
		if x = r.runs[v.ID]; x != nil {
			delete(r.runs, v.ID)
			break
		}
		if v.State != cow.Deleted || v.LUN != r.lun.ID || len(r.below(v.ID)) != 1 {
			break
		}
		gone = append(gone, v.ID)
	}
	if x == nil {
		x = &run{pages: map[uint64]*runPage{}}
	}
	for _, id := range slices.Backward(gone) {
		if err := r.add(x, id, false); err != nil {
			return nil, err
		}
	}
	return x, nil
}

// add appends a version to a run.
func (r *recyclePlanner) add(x *run, id cow.VersionID, drops bool) error {
	nums, err := r.p.groupChanges(id)
	if err == nil {
		x.members = append(x.members, member{id: id, drops: drops, pages: nums})
	}
	return err
}

// changed lists the pages that any of the members has something of.
func (x *run) changed() (nums []uint64) {
	for _, m := range x.members {
		nums = append(nums, m.pages...)
	}
	slices.Sort(nums)
	return slices.Compact(nums)
}

// all counts the blocks of a run.
func (r *recyclePlanner) all(x *run) (n int64, err error) {
	if len(x.members) == 1 {
		for _, g := range r.p.tree.Group(x.members[0].id, nil) {
			n += r.p.counter.of(g).owned.Load()
		}
		return n, nil
	}
	for _, num := range x.changed() {
		pg, err := r.page(x, num)
		if err != nil {
			return 0, err
		}
		for _, o := range pg.own {
			n += popCount(o.bits)
		}
	}
	return n, nil
}

// replaced counts the blocks of a run that the versions by below it replaced, and
// finds the oldest of the run that owns one of them.
func (r *recyclePlanner) replaced(x *run, by []cow.VersionID) (n int64, first int, err error) {
	var nums []uint64
	for _, id := range by {
		more, err := r.p.groupChanges(id)
		if err != nil {
			return 0, 0, err
		}
		nums = append(nums, more...)
	}
	mine := 0
	for _, m := range x.members {
		mine += len(m.pages)
	}
	if mine < len(nums) {
		nums = x.changed()
	}
	slices.Sort(nums)
	first = len(x.members)
	for _, num := range slices.Compact(nums) {
		pg, err := r.page(x, num)
		if err != nil {
			return 0, 0, err
		}
		over, err := r.changedBy(pg, by, num)
		if err != nil {
			return 0, 0, err
		}
		for _, o := range pg.own {
			for i := range o.bits {
				o.bits[i] &= over[i]
			}
			if k := popCount(o.bits); k > 0 {
				n, first = n+k, min(first, o.member)
			}
		}
	}
	return n, first, nil
}

// changedBy is which blocks of a page any of some versions replaced; it does not
// look where the run owns nothing.
func (r *recyclePlanner) changedBy(pg *runPage, by []cow.VersionID, num uint64) (over cow.Bits, err error) {
	if len(pg.own) == 0 {
		return over, nil
	}
	var rec cow.Record
	for _, id := range by {
		ok, err := r.p.groupRecord(id, num, &rec)
		if err != nil {
			return over, err
		}
		for i := range over {
			if ok {
				over[i] |= rec.Set[i]
			}
		}
	}
	return over, nil
}

// page brings up to date who owns the blocks of a page.
func (r *recyclePlanner) page(x *run, num uint64) (*runPage, error) {
	pg := x.pages[num]
	if pg == nil {
		pg = &runPage{}
		x.pages[num] = pg
	}
	var rec cow.Record
	for ; pg.upto < len(x.members); pg.upto++ {
		m := x.members[pg.upto]
		if _, has := slices.BinarySearch(m.pages, num); !has {
			continue
		}
		if ok, err := r.p.groupRecord(m.id, num, &rec); err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		pg.take(pg.upto, &rec)
	}
	return pg, nil
}

// take lays a member's record over what the older ones own.
func (pg *runPage) take(m int, rec *cow.Record) {
	mine := ownBits{member: m}
	for i := range cow.PageBlocks {
		if !rec.Set.Has(i) {
			continue
		}
		for k := range pg.own {
			pg.own[k].bits.Remove(i)
		}
		if cow.Charged(rec.Loc[i]) {
			mine.bits.Add(i)
		}
	}
	pg.own = slices.DeleteFunc(pg.own, func(o ownBits) bool { return o.bits.Empty() })
	if !mine.bits.Empty() {
		pg.own = append(pg.own, mine)
	}
}
