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
	return p.promise(r.Name, func() (LUNInfo, error) { return p.createLUN(r) })
}

// Clone makes a new LUN that begins as a snapshot's content, or as a LUN's
// content now. It shares the blocks and depends on nothing.
func (p *Pool) Clone(_ context.Context, lun, snap, to string, thick bool) (LUNInfo, error) {
	return p.promise(to, func() (LUNInfo, error) { return p.clone(lun, snap, to, thick) })
}

// update replaces a LUN's catalogue entry as edit changes it.
func (p *Pool) update(name string, edit func(*cow.LUN) error) (LUNInfo, error) {
	return p.promise(name, func() (LUNInfo, error) { return p.tryUpdate(name, edit) })
}

// promise carries out a change that promises space. If the pool lacks it, borrowed
// space is taken back, and the change is tried once more when it is there.
func (p *Pool) promise(lun string, change func() (LUNInfo, error)) (LUNInfo, error) {
	info, err := change()
	var short *reservation.ShortError
	if !errors.As(err, &short) {
		return info, err
	}
	p.adminMu.Lock()
	id := cow.LUNID(0)
	if l, err := p.tree.LUNByName(lun); err == nil {
		id = l.ID
	}
	enough, planErr := p.takeBack(short.Blocks, true, id, "recycled: the space that it had borrowed is promised to "+lun)
	p.adminMu.Unlock()
	if planErr != nil || !enough {
		return info, errors.Join(err, planErr)
	}
	if err := p.Reclaim(); err != nil {
		return info, err
	}
	return change()
}

// takeBack drops snapshots of LUNs that borrowed space for need blocks that a promise
// lacks: those of the LUN that borrowed most first, never below a reserve. Where all of
// it is too little for the promise, nothing is dropped. Called with adminMu.
func (p *Pool) takeBack(need int64, whole bool, except cow.LUNID, why string) (enough bool, err error) {
	type plan struct {
		lun   *cow.LUN
		ids   []cow.VersionID
		frees int64
	}
	var plans []plan
	short := need - p.ledger.Totals().Pending
	for tried := p.ledger.Snapshot().Accounts; short > 0; {
		from := reservation.PlanTakeBack(tried, short, uint64(except))
		if len(from) == 0 {
			break
		}
		l := p.tree.LUN(cow.LUNID(from[0].ID))
		ids, frees, err := p.oldestFreeing(l, from[0].Blocks, p.borrowed(l.ID))
		if err != nil {
			return false, err
		}
		if frees > 0 {
			plans = append(plans, plan{l, ids, frees})
			short -= frees
		}
		tried = without(tried, from[0].ID)
	}
	if short > 0 && whole {
		return false, nil
	}
	for _, x := range plans {
		if err := p.deleteVersions(x.ids, why); err != nil {
			return false, err
		}
		p.expect(x.lun.ID, x.frees)
	}
	return short <= 0, nil
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
	if _, err := p.takeBack(t.Over-t.Foreign, false, 0, "recycled: the space that it had borrowed is needed for what is promised"); err != nil {
		p.event("recycle", "", "recycling failed: "+err.Error())
	}
}
