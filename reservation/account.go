package reservation

import "fmt"

// OnFull says what a LUN wants when its snapshot area cannot grow.
type OnFull uint8

const (
	Recycle OnFull = iota // the oldest snapshots go; the writer waits for that
	Freeze                // snapshots are sacred: the write fails
)

func (o OnFull) String() string {
	if o == Freeze {
		return "freeze"
	}
	return "recycle"
}

// NoLimit is the Limit of an area that may take whatever is free in the pool.
const NoLimit = -1

// Account is what a LUN was promised and what it uses, in blocks. What it uses is settled: admissions that are under way
// are not in it.
type Account struct {
	Size    int64 // of the LUN
	Thick   bool  // its whole size is promised
	Live    int64 // blocks that its head references
	Area    int64 // blocks that only its snapshots hold
	Reserve int64 // promised to the area
	Limit   int64 // no admission takes the area above it; NoLimit if there is none
	OnFull  OnFull
}

// maxBlocks bounds every amount, so that no sum overflows: 2^52 blocks are 16 EiB.
const maxBlocks = 1 << 52

func (a Account) validate() error {
	for _, f := range []struct {
		name  string
		value int64
	}{{"size", a.Size}, {"live", a.Live}, {"area", a.Area}, {"reserve", a.Reserve}} {
		if f.value < 0 || f.value > maxBlocks {
			return fmt.Errorf("%w: %s of %d blocks is not between 0 and %d", ErrInvalid, f.name, f.value, int64(maxBlocks))
		}
	}
	if a.Limit < NoLimit || a.Limit > maxBlocks {
		return fmt.Errorf("%w: limit of %d blocks is neither none nor between 0 and %d", ErrInvalid, a.Limit, int64(maxBlocks))
	}
	if a.Limit != NoLimit && a.Limit < a.Reserve {
		return fmt.Errorf("%w: the area's limit of %s is below its reserve of %s: raise the limit or lower the reserve",
			ErrInvalid, Human(a.Limit), Human(a.Reserve))
	}
	return nil
}

// promise is what the account holds of the pool even when it is empty.
func (a Account) promise() int64 {
	if a.Thick {
		return a.Size + a.Reserve
	}
	return a.Reserve
}

// unsettled is what was admitted and not settled yet: an upper bound of what may still happen.
type unsettled struct {
	live int64 // live may grow by so much
	area int64 // the area may grow by so much
	move int64 // so much may go from live to the area
}

// split sorts an admission. A shrinking live pays for the area's growth as far as it goes (TRIM of what a snapshot holds). What
// else it would give back is not counted before it is settled: it may turn out not to be there.
func split(live, area int64) unsettled {
	if live >= 0 {
		return unsettled{live: live, area: area}
	}
	move := min(-live, area)
	return unsettled{area: area - move, move: move}
}

func (u unsettled) plus(v unsettled) unsettled {
	return unsettled{u.live + v.live, u.area + v.area, u.move + v.move}
}

func (u unsettled) minus(v unsettled) unsettled {
	return unsettled{u.live - v.live, u.area - v.area, u.move - v.move}
}

// charge is what the account takes from the pool at most, whatever of u happens:
//
//	max(promised size, live) + max(reserve, area)
//
// Live never outgrows the size, since a block of the LUN is mapped once; so overwriting costs a full LUN nothing, although
// its admission says that live may grow. Of the moves, any number t may happen. While live stays at its bound,
// the sum rises with t; from there on it is convex in t, so that its maximum lies at an end: two values of t suffice.
func (a Account) charge(u unsettled) int64 {
	c := a.chargeMoved(u, u.move)
	if u.move > 0 {
		full := a.Live + u.live - max(a.Size, a.Live) // moves that live does not feel
		c = max(c, a.chargeMoved(u, min(max(full, 0), u.move)))
	}
	return c
}

func (a Account) chargeMoved(u unsettled, t int64) int64 {
	live := min(a.Live+u.live-t, max(a.Size, a.Live))
	if a.Thick {
		live = max(live, a.Size)
	}
	return live + max(a.Area+u.area+t, a.Reserve)
}

// areaAtMost is how large the area can become if all of u happens.
func (a Account) areaAtMost(u unsettled) int64 { return a.Area + u.area + u.move }
