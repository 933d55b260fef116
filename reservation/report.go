package reservation

import (
	"cmp"
	"fmt"
	"slices"
)

// Totals is the state of the pool, in blocks:
//
//	Promised + Beyond + Shared + Index + Headroom + Foreign + Free = Capacity + Over
type Totals struct {
	Capacity int64
	Headroom int64 // kept for the cleaner

	Promised int64 // thick sizes and area reserves
	Thick    int64 // of that, thick sizes
	Beyond   int64 // live and area use beyond the promises, unsettled admissions at their worst included
	Shared   int64
	Index    int64
	Foreign  int64 // taken by others on the file system

	Free      int64 // what a new thin write can still get
	Over      int64 // by how much charges that cannot be refused exceed the capacity
	Pending   int64 // on its way back
	Unsettled int64 // of Beyond, what admissions under way may turn out not to need

	Live        int64 // charged to the LUNs' heads
	Area        int64 // charged to the LUNs' areas
	Used        int64 // Live + Area + Shared
	Provisioned int64 // sizes of all LUNs
}

// OverCommit is how many times the capacity the LUNs' sizes add up to.
func (t Totals) OverCommit() float64 {
	if t.Capacity <= 0 {
		return 0
	}
	return float64(t.Provisioned) / float64(t.Capacity)
}

// Entry is an account in a Snapshot.
type Entry struct {
	ID uint64
	Account
	Charged int64 // what it takes from the pool
	Coming  int64 // what is on its way out of its area
}

// Borrowed is what the area holds beyond its reserve: what can be taken back under pressure.
func (e Entry) Borrowed() int64 { return max(e.Area-e.Reserve, 0) }

// Snapshot is a copy of the ledger at one instant, accounts by id.
type Snapshot struct {
	Totals   Totals
	Accounts []Entry
}

// Totals returns the state of the pool.
func (l *Ledger) Totals() Totals {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.totals()
}

func (l *Ledger) totals() Totals {
	return Totals{
		Capacity: l.capacity, Headroom: l.headroom, Promised: l.sum.promised, Thick: l.sum.thick,
		Beyond: l.sum.charged - l.sum.promised, Shared: l.shared, Index: l.index, Foreign: l.foreign,
		Free: max(l.free(), 0), Over: max(-l.free(), 0), Pending: l.pending, Unsettled: l.sum.charged - l.sum.settled,
		Live: l.sum.live, Area: l.sum.area, Used: l.sum.live + l.sum.area + l.shared, Provisioned: l.sum.provisioned,
	}
}

// Snapshot copies the ledger.
func (l *Ledger) Snapshot() Snapshot {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Snapshot{Totals: l.totals(), Accounts: make([]Entry, 0, len(l.accounts))}
	for id, e := range l.accounts {
		s.Accounts = append(s.Accounts, Entry{ID: id, Account: e.Account, Charged: e.charged, Coming: e.coming})
	}
	slices.SortFunc(s.Accounts, func(a, b Entry) int { return cmp.Compare(a.ID, b.ID) })
	return s
}

// Explain writes down the arithmetic of an account and of the pool, line by line.
func (l *Ledger) Explain(id uint64) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.accounts[id]
	if e == nil {
		return nil
	}
	return append(e.explain(), explainPool(l.totals())...)
}

func (e *entry) explain() []string {
	var lines []string
	line := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	live, area := e.Live, max(e.Reserve, e.Area)
	if e.Thick {
		live = max(e.Size, e.Live)
		line("live: thick, so max(size %s, live %s) = %s", Human(e.Size), Human(e.Live), Human(live))
	} else {
		line("live: thin, so what it uses of its size %s = %s", Human(e.Size), Human(live))
	}
	line("area: max(reserve %s, used %s) = %s", Human(e.Reserve), Human(e.Area), Human(area))
	line("      %s", e.explainLimit())
	if e.coming > 0 {
		line("      %s of it are on their way out", Human(e.coming))
	}
	if e.charged != e.settled {
		line("writes under way take at most %s more", Human(e.charged-e.settled))
		line("the LUN takes %s + %s + %s = %s of the pool", Human(live), Human(area), Human(e.charged-e.settled), Human(e.charged))
		return lines
	}
	line("the LUN takes %s + %s = %s of the pool", Human(live), Human(area), Human(e.charged))
	return lines
}

func (e *entry) explainLimit() string {
	beyond := max(e.Area-e.Reserve, 0)
	if e.Limit == NoLimit {
		return fmt.Sprintf("%s of it borrowed; no limit but the pool's free space; on-full %v", Human(beyond), e.OnFull)
	}
	room := e.Limit - e.Area
	if room < 0 {
		return fmt.Sprintf("%s of it borrowed; limit %s, so it is %s above and cannot grow; on-full %v",
			Human(beyond), Human(e.Limit), Human(-room), e.OnFull)
	}
	return fmt.Sprintf("%s of it borrowed; limit %s, so it can grow by %s; on-full %v", Human(beyond), Human(e.Limit), Human(room), e.OnFull)
}

func explainPool(t Totals) []string {
	lines := []string{
		fmt.Sprintf("pool: capacity %s - headroom %s = %s", Human(t.Capacity), Human(t.Headroom), Human(t.Capacity-t.Headroom)),
		fmt.Sprintf("      - promised %s (thick sizes %s, area reserves %s)", Human(t.Promised), Human(t.Thick), Human(t.Promised-t.Thick)),
		fmt.Sprintf("      - used beyond promises %s", Human(t.Beyond)),
		fmt.Sprintf("      - shared %s - index %s", Human(t.Shared), Human(t.Index)),
	}
	if t.Foreign > 0 {
		lines = append(lines, fmt.Sprintf("      - taken by others on the file system %s", Human(t.Foreign)))
	}
	lines = append(lines, fmt.Sprintf("      = free %s", Human(t.Free-t.Over)))
	if t.Pending > 0 {
		lines = append(lines, fmt.Sprintf("      + %s on their way back", Human(t.Pending)))
	}
	return append(lines, fmt.Sprintf("      sizes of all LUNs %s, %.2f times the capacity", Human(t.Provisioned), t.OverCommit()))
}
