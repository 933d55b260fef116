package lun

import (
	"math/rand/v2"
	"slices"
	"testing"

	"lunar/cow"
)

// TestOverlayPages: which pages have operations, whatever the generations went through, compared with a list.
func TestOverlayPages(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	o := newOverlay()
	var cur, flushing []pageKey
	pages := func(b cow.BranchID, from, to uint64) (out []uint64) {
		for _, k := range slices.Concat(cur, flushing) {
			if k.branch == b && k.page >= from && k.page < to {
				out = append(out, k.page)
			}
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	for step := range 3000 {
		switch n := random.IntN(20); {
		case n == 0 && flushing == nil:
			o.swap()
			cur, flushing = nil, append(cur, pageKey{}) // not nil
		case n == 1 && flushing != nil:
			o.done()
			flushing = nil
		case n == 2 && flushing != nil:
			o.undo()
			cur, flushing = append(flushing, cur...), nil
		default:
			k := pageKey{cow.BranchID(1 + random.IntN(2)), random.Uint64N(1 << (4 + random.IntN(12)))}
			o.mu.Lock()
			o.putLocked(k, op{1, opDelete, nil})
			o.mu.Unlock()
			cur = append(cur, k)
		}
		from := random.Uint64N(1 << (1 + random.IntN(16)))
		to := from + random.Uint64N(1<<(1+random.IntN(16)))
		for b := range cow.BranchID(3) {
			if b > 0 {
				if got, want := o.pagesFrom(b, from, to), pages(b, from, to); !slices.Equal(got, want) {
					t.Fatalf("step %d: branch %d, pages %d to %d: %v, want %v", step, b, from, to, got, want)
				}
			}
		}
	}
}
