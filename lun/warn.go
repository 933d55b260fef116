package lun

import (
	"fmt"
	"strings"

	"lunar/reservation"
	"lunar/store/segment"
)

// followed is what the warnings depend on: while it stays nobody passes a mark.
type followed struct {
	totals reservation.Totals
	next   segment.Seq
}

// followWarnings reports each mark once when it is passed, of the pool and of each
// area, and when the use is back below all of them. The janitor calls it.
func (p *Pool) followWarnings() {
	t := p.ledger.Totals()
	now := followed{t, p.log.Next()}
	if now == p.followed {
		return
	}
	p.followed = now
	seen := map[string]bool{}
	follow := func(key, lun string, used, limit int64, text string) {
		seen[key] = true
		was := p.warned[key]
		now := reservation.Follow(was, used, limit)
		p.warned[key] = now
		switch {
		case now > was:
			p.event(now.String(), lun, text)
		case now == reservation.LevelOK && was > now:
			p.event("ok", lun, text+", which is below the marks again")
		}
	}
	follow("pool", "", t.Capacity-t.Free, t.Capacity, poolFull(t))
	if ratio := t.OverCommit(); ratio > 1 {
		if seen["over"] = true; p.warned["over"] == reservation.LevelOK {
			p.warned["over"] = reservation.LevelWarning
			p.event("over-commit", "", fmt.Sprintf("the sizes of all LUNs are %.2f times the capacity of the pool: thin LUNs get ENOSPC when it is full", ratio))
		}
	}
	p.treeMu.RLock()
	luns := p.tree.LUNs()
	names := make([]string, len(luns))
	accounts := make([]reservation.Account, len(luns))
	for i, l := range luns {
		names[i], accounts[i] = l.Name, p.reserved(l.ID)
	}
	p.treeMu.RUnlock()
	for i, a := range accounts {
		if a.Limit >= 0 {
			follow("area of "+names[i], names[i], a.Area, a.Limit, areaFullText(names[i], a))
		}
	}
	for key := range p.warned {
		if !seen[key] {
			delete(p.warned, key) // renamed, deleted, or without a limit now
		}
	}
}

func poolFull(t reservation.Totals) string {
	var parts []string
	for _, x := range []struct {
		what   string
		blocks int64
	}{{"promised", t.Promised}, {"used beyond that", t.Beyond + t.Shared}, {"index", t.Index}, {"headroom", t.Headroom}, {"taken by others", t.Foreign}} {
		if x.blocks > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", x.what, human(x.blocks*blockSize)))
		}
	}
	return fmt.Sprintf("pool is %s full or promised: %s free (%s)", percent(t.Capacity-t.Free, t.Capacity), human(t.Free*blockSize), strings.Join(parts, ", "))
}

func areaFullText(lun string, a reservation.Account) string {
	return fmt.Sprintf("LUN %s: its snapshot area is %s full", lun, percent(a.Area, a.Limit))
}
