package reservation

import (
	"cmp"
	"slices"
)

// Candidate is a snapshot that might be recycled.
type Candidate struct {
	ID      uint64
	Created int64 // any number that grows with its creation
	// Frees is what dropping it gives back if the candidates before it that can be dropped are dropped as well.
	Frees int64
	// With are those of them that give nothing back by themselves, and that Frees depends on: a block that three snapshots
	// share comes back with the newest of them, and needs the two before it to go.
	With      []uint64
	Protected bool
	Attached  bool // a client has it open
	HasClones bool
}

// Able says whether the snapshot may go at all.
func (c Candidate) Able() bool { return !c.Protected && !c.Attached && !c.HasClones }

// PlanRecycle chooses the snapshots to drop for need blocks: the oldest first, passing over those that are protected, attached or
// cloned, and never one whose dropping gives nothing back. With most >= 0 it stops before it gives more than that. frees is
// what the plan gives, which may be less than need: then the plan is all there is.
func PlanRecycle(snaps []Candidate, need, most int64) (drop []uint64, frees int64) {
	able := slices.DeleteFunc(slices.Clone(snaps), func(c Candidate) bool { return !c.Able() })
	slices.SortStableFunc(able, func(a, b Candidate) int { return cmp.Compare(a.Created, b.Created) })
	picked := make(map[uint64]bool, len(able))
	for _, c := range able {
		if frees >= need {
			break
		}
		if c.Frees <= 0 {
			continue
		}
		if most >= 0 && frees+c.Frees > most {
			break
		}
		picked[c.ID] = true
		for _, id := range c.With {
			picked[id] = true
		}
		frees += c.Frees
	}
	for _, c := range able {
		if picked[c.ID] {
			drop = append(drop, c.ID)
		}
	}
	return drop, frees
}

// Loan is what is to be taken back of a LUN's area.
type Loan struct {
	ID     uint64
	Blocks int64
}

// PlanTakeBack says from whom need blocks of borrowed space are taken back: from the areas that are recycled, the one that
// borrowed most first, never below a reserve, and not from the LUN except. What is on its way out of an area is not asked for again.
func PlanTakeBack(accounts []Entry, need int64, except uint64) (from []Loan) {
	able := slices.DeleteFunc(slices.Clone(accounts), func(e Entry) bool { return e.ID == except || e.OnFull != Recycle || e.Borrowed() <= e.Coming })
	slices.SortStableFunc(able, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(b.Borrowed()-b.Coming, a.Borrowed()-a.Coming), cmp.Compare(a.ID, b.ID))
	})
	for _, e := range able {
		if need <= 0 {
			break
		}
		n := min(e.Borrowed()-e.Coming, need)
		from = append(from, Loan{e.ID, n})
		need -= n
	}
	return from
}

// FullIn says in how many days used reaches limit, at the fastest of the rates, in blocks a day. It is not ok where there is no
// limit or nothing grows.
func FullIn(rates []float64, used, limit int64) (days float64, ok bool) {
	if limit < 0 {
		return 0, false
	}
	if used >= limit {
		return 0, true
	}
	fastest := 0.0
	for _, r := range rates {
		if r > fastest { // which a NaN is not
			fastest = r
		}
	}
	if fastest == 0 {
		return 0, false
	}
	return float64(limit-used) / fastest, true
}

// Level is how near something is to being full.
type Level uint8

const (
	LevelOK       Level = iota
	LevelWarning        // 80 %
	LevelCritical       // 95 %
)

func (l Level) String() string { return [...]string{"ok", "warning", "critical"}[l] }

// calm is by how much of a limit the use must fall below a mark before the mark can be passed again.
const calm = 0.02

// Follow is Warn for those who report each crossing once: a level that was reached holds until the use is clearly below its mark.
func Follow(was Level, used, limit int64) Level {
	now := Warn(used, limit)
	if now >= was || limit < 0 {
		return now
	}
	if still := Warn(used+int64(calm*float64(limit)), limit); still >= was {
		return was
	}
	return now
}

// Warn compares what is used with what there is. Nothing is near a limit that is not there.
func Warn(used, limit int64) Level {
	switch {
	case limit < 0 || used <= 0:
		return LevelOK
	case float64(used) >= 0.95*float64(limit):
		return LevelCritical
	case float64(used) >= 0.80*float64(limit):
		return LevelWarning
	}
	return LevelOK
}
