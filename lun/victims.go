package lun

import (
	"cmp"
	"slices"
)

// victim is a sealed segment that the cleaner may empty.
type victim struct {
	number uint64
	live   int64  // blocks that the maps point at
	blocks int64  // what a segment holds of such blocks at best
	age    uint64 // sequence numbers since its last entry
}

// gain is how many blocks emptying the segment gives.
func (v victim) gain() int64 { return v.blocks - v.live }

// worth is what cleaning the segment gives for what it costs: the space gained,
// times how long it may be expected to stay free of further deaths, by the reading
// of the segment and the writing of what is live ((1-u) x age / (1+u): Rosenblum
// and Ousterhout, The Design and Implementation of a Log-Structured File System, 1992,
// section 3.5). An old segment is worth cleaning while much of it is live yet, since
// little more of it will die; a young one is better left to die by itself.
func (v victim) worth() float64 {
	return float64(v.gain()) * float64(v.age+1) / float64(v.blocks+v.live)
}

// pickVictims chooses at most most segments to clean, the best first. pressure is
// how short of segments the log is, from 0 (not at all) to 1. The more it is, the
// less a segment must give to be cleaned: nine tenths live are not worth it in
// quiet times, and are when nothing else is left. From half way on only the gain
// counts, since a segment that is emptied fast is worth more than a good one.
func pickVictims(all []victim, pressure float64, most int) []victim {
	return bestVictims(all, liveBound(pressure), pressure >= 0.5, most)
}

func bestVictims(all []victim, maxLive int64, fast bool, most int) []victim {
	out := slices.DeleteFunc(slices.Clone(all), func(v victim) bool { return v.live*100 > v.blocks*maxLive })
	slices.SortFunc(out, func(a, b victim) int {
		if fast {
			return cmp.Or(cmp.Compare(a.live*b.blocks, b.live*a.blocks), cmp.Compare(a.number, b.number))
		}
		return cmp.Or(cmp.Compare(b.worth(), a.worth()), cmp.Compare(a.number, b.number))
	})
	return out[:min(len(out), most)]
}

// liveBound is how live a segment may be to be cleaned, in per cent.
func liveBound(pressure float64) int64 {
	return min(60+int64(pressure*40), 98)
}

// pressureAt says how short of segments a log is: 0 from high on, 1 when only the
// low that are kept for the cleaner are left.
func pressureAt(available, low, high int) float64 {
	switch {
	case available >= high:
		return 0
	case available <= low:
		return 1
	}
	return float64(high-available) / float64(high-low)
}
