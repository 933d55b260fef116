// Package reservation keeps a pool's promises: capacity that was promised in advance, not SCSI persistent reservations. It is
// numbers only: no I/O, no clock, no goroutine.
//
// The nouns:
//
//	Ledger     the pool's capacity and who holds how much of it
//	Account    a LUN's part: its live data and its snapshot area, each with what it was promised
//	Decision   the answer to a write that wants space: admit, wait or reject; the caller acts on it
//
// A write is admitted for the worst that it can need, and settled for what it really took. In between the worst case
// counts, so that the sum below holds whatever happens:
//
//	for each LUN: max(promised size, live) + max(area reserve, area), + shared + index + headroom + foreign <= capacity
//
// A thick LUN's promised size is its size, a thin one's is nothing. All amounts are blocks of 4 KiB.
//
// Caveats. Charge, AddShared and SetIndex follow what has happened, and are never refused; they can leave the sum above the
// capacity (Totals.Over). Then nothing that needs more of the pool is admitted, and what is inside a promise
// still is. docs/CAPACITY.md has the arithmetic with worked numbers.
package reservation

import (
	"fmt"
	"sync"
)

// BlockSize is the unit of all amounts, in bytes.
const BlockSize = 4096

// Ledger is the account book of a pool. It is safe for concurrent use.
type Ledger struct {
	headroomOf func(capacity int64) int64

	mu       sync.Mutex
	accounts map[uint64]*entry
	capacity int64
	headroom int64 // of capacity
	shared   int64
	index    int64
	foreign  int64 // what others took of the file system that the pool counts on
	pending  int64 // blocks on their way back to the pool
	sum      sum
}

// entry is an account with its unsettled admissions and its part of the sums.
type entry struct {
	Account
	unsettled unsettled
	coming    int64 // blocks on their way out of the area
	charged   int64
	settled   int64 // what charged would be without unsettled
}

// sum is kept up to date with each change; Check adds it up again.
type sum struct {
	charged, settled int64
	promised, thick  int64
	provisioned      int64
	live, area       int64
}

func (s *sum) add(e *entry, sign int64) {
	s.charged += sign * e.charged
	s.settled += sign * e.settled
	s.promised += sign * e.promise()
	s.provisioned += sign * e.Size
	s.live += sign * e.Live
	s.area += sign * e.Area
	if e.Thick {
		s.thick += sign * e.Size
	}
}

// New returns the ledger of a pool of capacity blocks, of which headroom(capacity) are kept for the cleaner. A nil headroom
// keeps none.
func New(capacity int64, headroom func(capacity int64) int64) *Ledger {
	if headroom == nil {
		headroom = func(int64) int64 { return 0 }
	}
	return &Ledger{
		headroomOf: headroom, accounts: make(map[uint64]*entry), capacity: capacity, headroom: headroom(capacity),
	}
}

// put replaces an account and keeps the sums.
func (l *Ledger) put(e *entry, a Account, u unsettled) {
	l.sum.add(e, -1)
	e.Account, e.unsettled = a, u
	e.charged, e.settled = a.charge(u), a.charge(unsettled{})
	l.sum.add(e, 1)
}

// given is all that is taken from the pool, headroom included.
func (l *Ledger) given() int64 { return l.sum.charged + l.shared + l.index + l.headroom + l.foreign }

// free is what nobody was promised and nobody uses. It is negative when the pool is over.
func (l *Ledger) free() int64 { return l.capacity - l.given() }

// SetCapacity changes the size of the pool, and with it the headroom and what is set aside for the index. It is refused below what
// is promised and used; growing is not, even where it does not suffice.
func (l *Ledger) SetCapacity(capacity, index int64) error {
	if capacity <= 0 || capacity > maxBlocks {
		return fmt.Errorf("%w: capacity of %d blocks is not between 1 and %d", ErrInvalid, capacity, int64(maxBlocks))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	headroom := l.headroomOf(capacity)
	taken := l.given() - l.headroom - l.foreign - l.index + index
	if short := taken + headroom - capacity; short > 0 && capacity < l.capacity {
		return fmt.Errorf("%w: with a capacity of %s, %s of it headroom, %s lack for what is promised and used, which is %s: delete something, lower a reserve, or choose a larger capacity",
			ErrNoSpace, Human(capacity), Human(headroom), Human(short), Human(taken))
	}
	l.capacity, l.headroom, l.index = capacity, headroom, index
	return nil
}

// Add opens an account. It is refused if what it is promised and uses does not fit.
func (l *Ledger) Add(id uint64, a Account) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.mayAdd(id, a); err != nil {
		return err
	}
	if need := a.charge(unsettled{}); need > 0 && need > l.free() {
		return l.noSpace(describe(Account{}, a), need)
	}
	l.open(id, a)
	return nil
}

// Restore opens an account that existed before, when a pool is opened: what was promised then is not refused now.
func (l *Ledger) Restore(id uint64, a Account) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.mayAdd(id, a); err != nil {
		return err
	}
	l.open(id, a)
	return nil
}

func (l *Ledger) mayAdd(id uint64, a Account) error {
	if l.accounts[id] != nil {
		return fmt.Errorf("%w: %d", ErrExists, id)
	}
	return a.validate()
}

func (l *Ledger) open(id uint64, a Account) {
	e := &entry{}
	l.accounts[id] = e
	l.put(e, a, unsettled{})
}

// Remove closes an account, with all that it holds and was promised, and returns it. What it used is the caller's to account
// for: Dissolve is for blocks that are still there.
func (l *Ledger) Remove(id uint64) Account {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.remove(id)
}

// Dissolve closes an account whose blocks are to be freed later: they go to the shared account, from which AddShared takes them
// as they go. It returns the account.
func (l *Ledger) Dissolve(id uint64) Account {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.remove(id)
	l.shared += a.Live + a.Area
	return a
}

func (l *Ledger) remove(id uint64) Account {
	e := l.accounts[id]
	if e == nil {
		return Account{}
	}
	l.sum.add(e, -1)
	delete(l.accounts, id)
	return e.Account
}

// Get returns an account as it is settled.
func (l *Ledger) Get(id uint64) (Account, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.accounts[id]; e != nil {
		return e.Account, true
	}
	return Account{}, false
}

// Resize changes the size of a LUN. It is refused before anything changes if a thick one's growth does not fit. When a LUN
// shrinks, cut is how many of its live blocks lie beyond the new end and are not released yet, or the most that it can be: they go
// to the shared account until they are freed. That never raises the sum.
func (l *Ledger) Resize(id uint64, size, cut int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.accounts[id]
	if e == nil {
		return fmt.Errorf("%w: %d", ErrUnknown, id)
	}
	a := e.Account
	if most := max(min(a.Live, max(a.Size, a.Live)-size), 0); cut < 0 || cut > most {
		return fmt.Errorf("%w: from %s with %s live to %s, no more than %s can be cut off, and not %s",
			ErrInvalid, Human(a.Size), Human(a.Live), Human(size), Human(most), Human(cut))
	}
	a.Size, a.Live = size, a.Live-cut
	if err := l.mayBecome(e, a, cut); err != nil {
		return err
	}
	l.put(e, a, e.unsettled)
	l.shared += cut
	return nil
}

// SetPolicy changes what a LUN's area is promised and allowed. It is refused before anything changes if the reserve does not
// fit. A limit below what the area holds is allowed: then only growth waits.
func (l *Ledger) SetPolicy(id uint64, reserve, limit int64, onFull OnFull) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, a, err := l.policy(id, reserve, limit, onFull)
	if err == nil {
		l.put(e, a, e.unsettled)
	}
	return err
}

// TryPolicy says what SetPolicy would say, and changes nothing.
func (l *Ledger) TryPolicy(id uint64, reserve, limit int64, onFull OnFull) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _, err := l.policy(id, reserve, limit, onFull)
	return err
}

func (l *Ledger) policy(id uint64, reserve, limit int64, onFull OnFull) (*entry, Account, error) {
	e := l.accounts[id]
	if e == nil {
		return nil, Account{}, fmt.Errorf("%w: %d", ErrUnknown, id)
	}
	a := e.Account
	a.Reserve, a.Limit, a.OnFull = reserve, limit, onFull
	return e, a, l.mayBecome(e, a, 0)
}

// mayBecome refuses promises that there is no room for, beside extra blocks that go elsewhere.
func (l *Ledger) mayBecome(e *entry, a Account, extra int64) error {
	if err := a.validate(); err != nil {
		return err
	}
	if grow := a.charge(e.unsettled) - e.charged + extra; grow > 0 && grow > l.free() {
		return l.noSpace(describe(e.Account, a), grow)
	}
	return nil
}

// describe names the promise that changed.
func describe(old, a Account) string {
	switch {
	case a.Thick && a.Size != old.Size && a.Reserve != old.Reserve:
		return fmt.Sprintf("a thick size of %s with an area reserve of %s", Human(a.Size), Human(a.Reserve))
	case a.Thick && a.Size != old.Size:
		return "a thick size of " + Human(a.Size)
	case a.Reserve != old.Reserve:
		return "an area reserve of " + Human(a.Reserve)
	}
	return "the use of " + Human(a.Live+a.Area)
}

func (l *Ledger) noSpace(what string, need int64) error {
	err := fmt.Errorf("%w: %s needs %s, and %s are left of %s (promised %s, used beyond that %s, shared %s, index %s, headroom %s%s): delete snapshots or LUNs, lower a reserve, or raise the capacity",
		ErrNoSpace, what, Human(need), Human(max(l.free(), 0)), Human(l.capacity), Human(l.sum.promised),
		Human(l.sum.charged-l.sum.promised), Human(l.shared), Human(l.index), Human(l.headroom), l.foreignText())
	return &ShortError{err, need - l.free()}
}

func (l *Ledger) foreignText() string {
	if l.foreign == 0 {
		return ""
	}
	return fmt.Sprintf(", taken by others on the file system %s", Human(l.foreign))
}

// SetShared sets what belongs to no LUN: blocks of hidden versions.
func (l *Ledger) SetShared(blocks int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shared = blocks
}

// AddShared changes that by so many blocks.
func (l *Ledger) AddShared(blocks int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shared += blocks
}

// SetIndex sets what the index takes.
func (l *Ledger) SetIndex(blocks int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.index = blocks
}

// SetForeign sets how many blocks of the capacity are not to be had, as something else took them of the file system. What is
// inside a promise is admitted all the same.
func (l *Ledger) SetForeign(blocks int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.foreign = max(blocks, 0)
}

// SetPending says how many blocks are on their way back to the pool: still charged, and sure to be released without anyone
// asking (a merge that runs, a checkpoint that is due). A write that lacks space waits for them.
func (l *Ledger) SetPending(blocks int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending = blocks
}

// SetComing says how many blocks are on their way out of an area: of snapshots that are dropped and not merged yet.
func (l *Ledger) SetComing(id uint64, blocks int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.accounts[id]; e != nil {
		e.coming = blocks
	}
}
