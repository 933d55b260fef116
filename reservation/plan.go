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
	// With is how many of those directly before it Frees depends on: a block that three snapshots share comes back with the
	// newest of them, and needs the two before it to go.
	With      int
	Protected bool
	Attached  bool // a client has it open
	HasClones bool
}

// PlanRecycle chooses the snapshots to drop for need blocks: the oldest first, passing over those that are protected, attached or
// cloned, and never one whose dropping gives nothing back. frees is what the plan gives, which may be less than need:
// then the plan is all there is.
func PlanRecycle(snaps []Candidate, need int64) (drop []uint64, frees int64) {
	able := slices.DeleteFunc(slices.Clone(snaps), func(c Candidate) bool { return c.Protected || c.Attached || c.HasClones })
	slices.SortStableFunc(able, func(a, b Candidate) int { return cmp.Compare(a.Created, b.Created) })
	picked := make([]bool, len(able))
	for i, c := range able {
		if frees >= need {
			break
		}
		if c.Frees <= 0 {
			continue
		}
		for j := max(i-max(c.With, 0), 0); j <= i; j++ {
			picked[j] = true
		}
		frees += c.Frees
	}
	for i, c := range able {
		if picked[i] {
			drop = append(drop, c.ID)
		}
	}
	return drop, frees
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
