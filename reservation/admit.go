package reservation

import "fmt"

// Verdict is what a write may do.
type Verdict uint8

const (
	Admit  Verdict = iota // it has what it asked for, until Settle
	Wait                  // ask again when something was settled, released or dropped
	Reject                // there is nothing to wait for
)

func (v Verdict) String() string { return [...]string{"admit", "wait", "reject"}[v] }

// Reason says what is missing.
type Reason uint8

const (
	None     Reason = iota
	PoolFull        // there is no space in the pool for live data; never said of a thick LUN within its size
	AreaFull        // the area cannot grow: it is at its limit, or beyond its reserve and the pool has nothing to lend
	NoLUN           // the account is gone
)

func (r Reason) String() string { return [...]string{"", "pool full", "area full", "no such LUN"}[r] }

// Decision is the answer to Ledger.Admit.
type Decision struct {
	Verdict Verdict
	Reason  Reason
	// Need is how many blocks must be freed, beyond what is on its way already, before the same request can be admitted: from
	// the area for AreaFull, from anywhere for PoolFull.
	Need int64
	// Foreign says that it would fit, had others not taken so much of the file system: they may give it back.
	Foreign bool
	// Own says that nothing helps but space out of the LUN's own area: it is at its limit.
	Own bool
	// Coming is what was on its way out of the area then, and is not in Need.
	Coming int64
	// Throttle is how much to slow the writer down, from 0 to 1: near the limit of an area that is recycled, or where it
	// borrows the last of the pool, so that the recycling keeps up.
	Throttle float64
}

const (
	// throttleFrom is the part of an area's limit above which writers are slowed down.
	throttleFrom = 0.9
	// One part in lastPart of the capacity is lent more and more slowly.
	lastPart = 64
)

// Admit asks for the worst that a write can need: growth of live (or shrinkage, if negative) and growth of the area.
// An admission counts until Settle is called with the same amounts.
func (l *Ledger) Admit(id uint64, live, area int64) Decision {
	area = max(area, 0)
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.accounts[id]
	if e == nil {
		return Decision{Verdict: Reject, Reason: NoLUN}
	}
	ask := split(live, area)
	if d := l.checkLimit(e, ask); d.Verdict != Admit {
		return d
	}
	u := e.unsettled.plus(ask)
	charged := e.Account.charge(u)
	if grow := charged - e.charged; grow > 0 && grow > l.free() {
		return l.missing(e, ask, grow)
	}
	l.sum.charged += charged - e.charged
	e.charged, e.unsettled = charged, u
	return Decision{Throttle: max(e.throttle(ask), l.lendSlowly(e, ask)), Coming: e.coming}
}

// lendSlowly rises from 0 to 1 as an area that is recycled borrows the last of the pool.
func (l *Ledger) lendSlowly(e *entry, ask unsettled) float64 {
	last, free := l.capacity/lastPart, l.free()
	if free >= last || e.OnFull != Recycle || ask.area+ask.move == 0 || e.areaAtMost(e.unsettled) <= e.Reserve {
		return 0
	}
	return min(1-float64(free)/float64(last), 1)
}

// LendSlowly is how many free blocks are lent slowly.
func (l *Ledger) LendSlowly() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.capacity / lastPart
}

// checkLimit decides about growth of an area with a limit.
func (l *Ledger) checkLimit(e *entry, ask unsettled) Decision {
	grow := ask.area + ask.move
	if grow == 0 || e.Limit == NoLimit {
		return Decision{}
	}
	above := e.areaAtMost(e.unsettled.plus(ask)) - e.Limit
	if above <= 0 {
		return Decision{}
	}
	// Admissions that are under way may settle for less.
	hope := e.Area+grow-e.coming <= e.Limit
	d := areaFull(e, above-e.coming, hope)
	d.Own = true
	return d
}

// areaFull lets the LUN's policy decide. Space that is sure to come is waited for in any case.
func areaFull(e *entry, need int64, hope bool) Decision {
	d := Decision{Verdict: Wait, Reason: AreaFull, Need: max(need, 0), Throttle: 1, Coming: e.coming}
	if e.OnFull == Freeze && !hope {
		d.Verdict = Reject
	}
	return d
}

// missing decides about a write that the pool has no space for. The part of it that is live data lacks pool space; that
// part satisfied, it is the area that cannot borrow, and its LUN's policy decides.
func (l *Ledger) missing(e *entry, ask unsettled, grow int64) Decision {
	free := l.free()
	// Would it fit if nothing that is under way came to anything?
	settledGrow := e.Account.charge(ask) - e.settled
	settledFree := l.capacity - (l.sum.settled + l.shared + l.index + l.headroom + l.foreign)
	foreign := l.foreign > 0 && grow <= free+l.foreign
	hope := foreign || l.pending > 0 || settledGrow <= 0 || settledGrow <= settledFree
	need := max(grow-free-l.pending, 0)

	liveOnly := unsettled{live: ask.live}
	if liveGrow := e.Account.charge(e.unsettled.plus(liveOnly)) - e.charged; liveGrow <= max(free, 0) {
		// Inside its reserve the area needs nothing of the pool.
		need = min(need, max(e.areaAtMost(e.unsettled.plus(ask))-e.Reserve-e.coming, 0))
		d := areaFull(e, need, hope || need <= e.coming)
		d.Foreign = foreign
		return d
	}
	d := Decision{Verdict: Reject, Reason: PoolFull, Need: need, Coming: e.coming, Foreign: foreign}
	if hope {
		d.Verdict = Wait
	}
	return d
}

// throttle rises from 0 at throttleFrom of the limit to 1 at the limit.
func (e *entry) throttle(ask unsettled) float64 {
	if e.Limit <= 0 || e.OnFull != Recycle || ask.area+ask.move == 0 {
		return 0
	}
	most := e.areaAtMost(e.unsettled)
	if most < e.Limit-e.Limit/8 {
		return 0
	}
	part := float64(most) / float64(e.Limit)
	return min(max((part-throttleFrom)/(1-throttleFrom), 0), 1)
}

// Settle ends an admission: admittedLive and admittedArea are what Admit was asked for, actualLive and actualArea what
// happened. It is never refused.
func (l *Ledger) Settle(id uint64, admittedLive, admittedArea, actualLive, actualArea int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.accounts[id]
	if e == nil {
		return // the LUN was deleted meanwhile
	}
	a := e.Account
	a.Live += actualLive
	a.Area += actualArea
	l.put(e, a, e.unsettled.minus(split(admittedLive, max(admittedArea, 0))))
}

// Charge changes what an account uses without asking: for blocks that change hands, as when a merge makes them another
// version's. It may leave an area above its limit. Where blocks move between accounts, charge the new one before the old one is
// released: then no admission sees space that is not there.
func (l *Ledger) Charge(id uint64, live, area int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.accounts[id]
	if e == nil {
		return
	}
	a := e.Account
	a.Live += live
	a.Area += area
	l.put(e, a, e.unsettled)
}

// Release takes blocks that were freed off an account.
func (l *Ledger) Release(id uint64, live, area int64) { l.Charge(id, -live, -area) }

// Check adds everything up again and compares. An error is a fault in the program, or a damaged counter.
func (l *Ledger) Check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var total sum
	for id, e := range l.accounts {
		fresh := *e
		fresh.charged, fresh.settled = e.charge(e.unsettled), e.charge(unsettled{})
		if fresh != *e {
			return fmt.Errorf("reservation: account %d is charged %d (settled %d), its numbers say %d (%d)",
				id, e.charged, e.settled, fresh.charged, fresh.settled)
		}
		if u := e.unsettled; e.Live < 0 || e.Area < 0 || u.live < 0 || u.area < 0 || u.move < 0 {
			return fmt.Errorf("reservation: account %d has less than nothing: live %d, area %d, unsettled %+v", id, e.Live, e.Area, u)
		}
		total.add(e, 1)
	}
	if total != l.sum {
		return fmt.Errorf("reservation: the sums are %+v, adding up gives %+v", l.sum, total)
	}
	if l.shared < 0 || l.index < 0 || l.pending < 0 || l.foreign < 0 {
		return fmt.Errorf("reservation: less than nothing: shared %d, index %d, pending %d", l.shared, l.index, l.pending)
	}
	return nil
}
