package lun

import (
	"fmt"

	"lunar/cow"
	"lunar/reservation"
)

// recycle drops the oldest snapshots of a LUN whose area is full, as its policy
// says, unless enough is on its way already.
func (p *Pool) recycle(lun cow.LUNID, d reservation.Decision) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	l := p.tree.LUN(lun)
	if l == nil || l.OnFull != OnFullRecycle {
		return
	}
	for _, v := range p.tree.Versions() {
		if v.LUN == lun && v.State == cow.Merging || v.LUN == lun && v.State == cow.Deleted && len(p.tree.Children(v.ID)) < 2 {
			return // space is on its way; the writer looks again when it is there
		}
	}
	ids, err := p.oldestFreeing(l, d.Need)
	if err == nil && len(ids) > 0 {
		err = p.deleteVersions(ids, fmt.Sprintf("recycled: the snapshot area of %s needs room", l.Name))
	}
	if err != nil {
		p.event("recycle", l.Name, "recycling failed: "+err.Error())
	}
}

// oldestFreeing plans which snapshots of a LUN to drop for need blocks: the
// oldest first, none that frees nothing, none that is protected, attached or
// cloned from. Called with adminMu.
func (p *Pool) oldestFreeing(l *cow.LUN, need int64) ([]cow.VersionID, error) {
	var cand []reservation.Candidate
	var chosen []cow.VersionID
	last := int64(0)
	for _, s := range p.tree.Snapshots(l.ID) {
		c := reservation.Candidate{
			ID: uint64(s.ID), Protected: s.IsProtected(p.now()), Attached: p.opened(s.ID), HasClones: len(p.tree.Children(s.ID)) > 1,
		}
		if !c.Protected && !c.Attached && !c.HasClones {
			n, err := p.wouldFree(append(chosen, s.ID))
			if err != nil {
				return nil, err
			}
			c.Frees = n - last
			if c.Frees > 0 {
				chosen, last = append(chosen, s.ID), n
			}
		}
		cand = append(cand, c)
		if last >= need {
			break
		}
	}
	drop, _ := reservation.PlanRecycle(cand, need)
	out := make([]cow.VersionID, len(drop))
	for i, id := range drop {
		out[i] = cow.VersionID(id)
	}
	return out, nil
}
