package lun

import (
	"context"
	"fmt"
)

// Repair opens the pool in o.Dir without a server, goes on behind an unreadable
// part of the log if the loss is accepted, checks everything, and says line by
// line what it found and did.
func Repair(ctx context.Context, o Options, acceptLoss bool) ([]string, error) {
	o.Manual, o.AcceptLoss = true, acceptLoss
	p, err := Open(ctx, o)
	if err != nil {
		return nil, err
	}
	defer p.Abandon()
	var out []string
	if r := p.whyReadOnly(); r != nil {
		return nil, Errorf(ErrCorrupt, "pool %s needs a decision: %s", o.Dir, *r)
	}
	out = append(out, p.lost...)
	rep, err := p.Check(ctx, nil)
	if err != nil {
		return out, err
	}
	for _, x := range rep.Problems {
		out = append(out, x.Where+": "+x.What)
	}
	if rep.OK {
		out = append(out, fmt.Sprintf("pool %s is consistent: %d LUNs", o.Dir, len(p.LUNs())))
	}
	return out, p.Close()
}
