package lun

import (
	"fmt"
	"slices"
	"time"

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
	if p.onItsWay(lun) {
		return // the writer looks again when it is there
	}
	ids, err := p.oldestFreeing(l, d.Need)
	if err == nil && len(ids) > 0 {
		err = p.deleteVersions(ids, fmt.Sprintf("recycled: the snapshot area of %s needs room", l.Name))
	}
	if err != nil {
		p.event("recycle", l.Name, "recycling failed: "+err.Error())
	}
}

// onItsWay says whether deleted snapshots of a LUN are being given back, or can
// be. Called with adminMu.
func (p *Pool) onItsWay(lun cow.LUNID) bool {
	for into := range p.tree.Merging() {
		if p.tree.Version(into).LUN == lun {
			return true
		}
	}
	return slices.ContainsFunc(p.tree.Deleted(), func(id cow.VersionID) bool {
		return p.tree.Version(id).LUN == lun && len(p.tree.Children(id)) < 2 && !p.opened(id)
	})
}

// oldestFreeing plans which snapshots of a LUN to drop for need blocks: the
// oldest first, none that frees nothing, none that is protected, attached or
// cloned from. Called with adminMu.
func (p *Pool) oldestFreeing(l *cow.LUN, need int64) ([]cow.VersionID, error) {
	p.takeAll()
	var cand []reservation.Candidate
	var prefix []cow.VersionID
	last, idle := int64(0), 0
	for _, s := range p.tree.Snapshots(l.ID) {
		c := reservation.Candidate{
			ID: uint64(s.ID), Created: int64(s.ID), Protected: s.IsProtected(p.now()), Attached: p.opened(s.ID), HasClones: len(p.tree.Children(s.ID)) > 1,
		}
		if !c.Protected && !c.Attached && !c.HasClones {
			prefix = append(prefix, s.ID)
			total, err := p.wouldFree(prefix)
			if err != nil {
				return nil, err
			}
			// What comes back only with this one may be held by the idle ones too.
			c.Frees, c.With = total-last, idle
			if c.Frees > 0 {
				last, idle = total, 0
			} else {
				idle++
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

// slowDown holds a writer back while the area of its LUN nears its limit, in
// proportion, and has the oldest snapshots recycled ahead of it.
func (p *Pool) slowDown(lun cow.LUNID, throttle float64) {
	if a := p.reserved(lun); a.Limit > 0 {
		p.pressed.Store(lun, max(a.Limit/16, 1))
		p.janitor.kick(jobRecycle)
	}
	if !p.opts.Manual {
		time.Sleep(time.Duration(throttle * throttle * float64(10*time.Millisecond)))
	}
}

// relieve recycles for the LUNs whose areas are nearly full.
func (p *Pool) relieve() {
	p.pressed.Range(func(k, need any) bool {
		p.pressed.Delete(k)
		p.recycle(k.(cow.LUNID), reservation.Decision{Need: need.(int64)})
		return true
	})
}
