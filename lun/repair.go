package lun

import (
	"context"
	"errors"
	"fmt"

	"lunar/store/index"
)

// RepairOptions say how far a repair goes.
type RepairOptions struct {
	AcceptLoss bool // go on behind an unreadable part of the log
	DryRun     bool // say what would be done, and change nothing
	Salvage    bool // where no copy of the index is left, make readable what the segments tell
	// Progress hears what is being done, and how far it has come; a total of 0 is not known.
	Progress func(what string, done, total int64)
}

// Repair brings a pool that no server has open back: an index that is lost or
// damaged is made anew of its newest intact copy and the log since; then the pool
// is opened, goes on behind an unreadable part of the log if that loss is
// accepted, and is checked. It says line by line what it found and did. Where it
// fails the pool is as it was.
func Repair(ctx context.Context, o Options, r RepairOptions) ([]string, error) {
	if r.Progress == nil {
		r.Progress = func(string, int64, int64) {}
	}
	o = o.withDefaults()
	o.Manual, o.AcceptLoss = true, r.AcceptLoss
	if _, err := o.FS.Stat(o.FS.PathJoin(o.Dir, identityFile)); err != nil {
		return nil, Errorf(ErrNotPool, "%s is no pool: %w; name the folder that `lunar serve --data` was given", o.Dir, err)
	}
	out, salvaged, err := repairIndex(o, r)
	if err != nil {
		return out, err
	}
	if len(out) > 0 && (r.DryRun || salvaged) {
		return out, nil
	}
	lines, err := repairPool(ctx, o, r, len(out) > 0)
	return append(out, lines...), err
}

// repairIndex makes the index anew if it is lost or damaged. It returns nothing
// if it is intact.
func repairIndex(o Options, r RepairOptions) (out []string, salvaged bool, err error) {
	p := newPool(o)
	if err := p.openFolder(); err != nil {
		return nil, false, errors.Join(err, p.closeFiles())
	}
	defer func() { err = errors.Join(err, p.lock.Close()) }()
	p.space = newSpace(p.id.SegmentBytes)
	r.Progress("reading the index", 0, 0)
	var s durable
	cause := p.probe(p.path(indexDir), &s)
	if cause == nil {
		cause = p.tooOld(&s)
	}
	if cause == nil {
		return nil, false, nil
	}
	if !errors.Is(cause, index.ErrCorrupt) && !errors.Is(cause, index.ErrMissing) && !errors.Is(cause, ErrCorrupt) {
		return nil, false, indexError(o.Dir, cause)
	}
	out = append(out, "the index cannot be used: "+cause.Error())
	found, sessions, firsts, err := p.indexCopies()
	if err != nil {
		return out, false, err
	}
	for _, c := range found {
		if c.bad != nil {
			out = append(out, "copy not used: "+c.bad.Error())
			continue
		}
		said := fmt.Sprintf("the index is made anew of the copy of %s in %s and the log from entry %d", c.Created.Format("2006-01-02 15:04:05 UTC"), c.path, c.Position)
		if r.DryRun {
			return append(out, "to be done: "+said), false, nil
		}
		if err := p.rebuild(c, sessions, firsts, r.Progress); err != nil {
			return append(out, "copy not used: "+err.Error()), false, err
		}
		out, err = p.swapIndex(append(out, said))
		return append(out, p.lost...), false, err
	}
	if r.Salvage {
		out, err = p.repairBySalvage(out, r)
		return out, true, err
	}
	return out, false, Errorf(ErrCorrupt, "the index of pool %s is damaged and no copy of it is intact (%w); `lunar pool repair --salvage` makes what the segments still tell readable", o.Dir, cause)
}

// repairBySalvage puts an index in place that is made of the segments alone.
func (p *Pool) repairBySalvage(out []string, r RepairOptions) ([]string, error) {
	if r.DryRun {
		return append(out, "to be done: what the segments still tell is made readable"), nil
	}
	said, err := p.salvageIndex(r.Progress)
	if err != nil {
		return out, err
	}
	out, err = p.swapIndex(append(out, said...))
	return append(out, "the pool opens for reading only: "+salvageWarning), err
}

// repairPool opens the pool, checks it and says what it found.
func repairPool(ctx context.Context, o Options, r RepairOptions, rebuilt bool) ([]string, error) {
	o.ReadOnly = r.DryRun
	p, err := Open(ctx, o)
	if err != nil {
		return nil, err
	}
	defer p.Abandon()
	var out []string
	if r := p.whyReadOnly(); r != nil && !o.ReadOnly {
		return nil, Errorf(ErrCorrupt, "pool %s needs a decision: %s", o.Dir, *r)
	}
	out = append(out, p.lost...)
	if rebuilt {
		r.Progress("merging deleted versions", 0, 0)
		if err := p.Reclaim(); err != nil {
			return out, err
		}
	}
	rep, err := p.Check(ctx, func(done, total int64) { r.Progress("checking", done, total) })
	if err != nil {
		return out, err
	}
	for _, x := range rep.Problems {
		out = append(out, x.Where+": "+x.What)
	}
	if rep.OK {
		out = append(out, fmt.Sprintf("pool %s is consistent: %d LUNs", o.Dir, len(p.LUNs())))
	}
	if o.ReadOnly {
		return out, nil
	}
	return out, p.Close()
}
