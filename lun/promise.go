package lun

import (
	"context"
	"errors"
	"time"

	"lunar/cow"
	"lunar/reservation"
)

// Promises, and the space that is taken back for them: what areas hold beyond
// their reserves is borrowed, and those that are recycled must give it back.

// CreateLUN makes an empty LUN. A thick one, and any reserve, is promised first.
func (p *Pool) CreateLUN(_ context.Context, r CreateLUN) (LUNInfo, error) {
	return p.promise(r.Name, r.Name, func() (LUNInfo, error) { return p.createLUN(r) })
}

// Clone makes a new LUN that begins as a snapshot's content, or as a LUN's
// content now. It shares the blocks and depends on nothing.
func (p *Pool) Clone(_ context.Context, lun, snap, to string, thick bool) (LUNInfo, error) {
	return p.promise(to, lun, func() (LUNInfo, error) { return p.clone(lun, snap, to, thick) })
}

// update replaces a LUN's catalogue entry as edit changes it.
func (p *Pool) update(name string, edit func(*cow.LUN) error) (LUNInfo, error) {
	return p.promise(name, name, func() (LUNInfo, error) { return p.tryUpdate(name, edit) })
}

// promise carries out a change that promises space. If the pool lacks it, borrowed
// space is taken back, and the change is tried once more when it is there.
func (p *Pool) promise(lun, except string, change func() (LUNInfo, error)) (LUNInfo, error) {
	info, err := change()
	var short *reservation.ShortError
	if !errors.As(err, &short) {
		return info, err
	}
	enough, takeErr := p.takeBackFor(lun, except, short.Blocks)
	if takeErr != nil || !enough {
		return info, errors.Join(err, takeErr)
	}
	if err := p.Reclaim(); err != nil {
		return info, err
	}
	return change()
}

// takeBackFor takes back what a promise to a LUN lacks, but nothing of the LUN except
// (a clone needs its source), and nothing at all if what can be had is too little.
func (p *Pool) takeBackFor(lun, except string, need int64) (enough bool, err error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	id := cow.LUNID(0)
	if l, err := p.tree.LUNByName(except); err == nil {
		id = l.ID
	}
	plan, short, err := p.planTakeBack(need, id)
	if err != nil || short > 0 {
		return false, err
	}
	return true, p.take(plan, "recycled: the space that it had borrowed is promised to "+lun)
}

// taking is what is taken back of one LUN.
type taking struct {
	lun   *cow.LUN
	ids   []cow.VersionID
	frees int64
}

// planTakeBack chooses snapshots of LUNs that borrowed space, for need blocks: of the
// LUN that borrowed most first, never below a reserve. short is what is lacking even
// then. Called with adminMu.
func (p *Pool) planTakeBack(need int64, except cow.LUNID) (plan []taking, short int64, err error) {
	short = need - p.ledger.Totals().Pending
	for left := p.ledger.Snapshot().Accounts; short > 0; {
		from := reservation.PlanTakeBack(left, short, uint64(except))
		if len(from) == 0 {
			break
		}
		l := p.tree.LUN(cow.LUNID(from[0].ID))
		ids, frees, err := p.oldestFreeing(l, from[0].Blocks, p.borrowed(l.ID))
		if err != nil {
			return nil, short, err
		}
		if frees > 0 {
			plan = append(plan, taking{l, ids, frees})
			short -= frees
		}
		left = without(left, from[0].ID)
	}
	return plan, short, nil
}

// take carries a plan out. Called with adminMu.
func (p *Pool) take(plan []taking, why string) error {
	for _, x := range plan {
		if len(x.ids) == 0 {
			continue
		}
		if err := p.deleteVersions(x.ids, why); err != nil {
			return err
		}
		p.expect(x.lun.ID, x.frees)
	}
	return nil
}

func without(all []reservation.Entry, id uint64) (out []reservation.Entry) {
	for _, e := range all {
		if e.ID != id {
			out = append(out, e)
		}
	}
	return out
}

// takeBackOver takes borrowed space back when charges that nobody could refuse have
// eaten into what is promised. What others took of the file system is no reason: they
// may give it back, and a snapshot that is gone does not come back.
func (p *Pool) takeBackOver() {
	if t := p.ledger.Totals(); t.Over-t.Foreign <= t.Pending || time.Since(p.overSeen) < time.Second {
		return
	}
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	p.overSeen = time.Now()
	t := p.ledger.Totals()
	plan, _, err := p.planTakeBack(t.Over-t.Foreign, 0)
	if err == nil {
		err = p.take(plan, "recycled: the space that it had borrowed is needed for what is promised")
	}
	if err != nil {
		p.event("recycle", "", "recycling failed: "+err.Error())
	}
}

// areaIsFull says whether nothing more fits into a LUN's area: it is at its limit, or
// beyond its reserve and the pool has nothing to lend.
func (p *Pool) areaIsFull(id cow.LUNID) bool {
	a := p.reserved(id)
	if a.Limit >= 0 && a.Area >= a.Limit {
		return true
	}
	return a.Area >= a.Reserve && a.Area > 0 && p.ledger.Totals().Free == 0
}
