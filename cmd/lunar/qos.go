package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"lunar/lun"
)

// limiters holds one limiter for each LUN that clients are attached to, by UUID.
type limiters struct {
	mu sync.Mutex
	of map[string]*limiter
}

// limiter holds back the requests of one LUN, over all connections to it and to
// its snapshots.
type limiter struct {
	uuid  string
	users map[uint64]int        // connections by id, and how often each has it open; under limiters.mu
	rates atomic.Pointer[rates] // nil: no limits
}

// rates are the limits in force; they are replaced as a whole.
type rates struct {
	qos         lun.QoS
	iops, bytes *rate.Limiter // nil: no limit
	replaced    chan struct{} // closed when other rates hold
}

// use returns the limiter of a LUN for a connection, with the limits that access
// tells under the lock, so that of two changes the last one holds.
func (l *limiters) use(client uint64, access func() lun.Access) *limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := access()
	m := l.of[a.UUID]
	if m == nil {
		if l.of == nil {
			l.of = map[string]*limiter{}
		}
		m = &limiter{uuid: a.UUID, users: map[uint64]int{}}
		l.of[a.UUID] = m
	}
	m.users[client]++
	m.set(a.QoS)
	return m
}

func (l *limiters) release(client uint64, m *limiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m.users[client]--; m.users[client] == 0 {
		delete(m.users, client)
	}
	if len(m.users) == 0 {
		delete(l.of, m.uuid)
	}
}

// changed takes over a LUN's limits for the connections that are attached, and
// returns their ids.
func (l *limiters) changed(access func() lun.Access) map[uint64]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := access()
	m := l.of[a.UUID]
	if m == nil {
		return nil
	}
	m.set(a.QoS)
	attached := make(map[uint64]bool, len(m.users))
	for id := range m.users {
		attached[id] = true
	}
	return attached
}

// set is called under limiters.mu.
func (m *limiter) set(q lun.QoS) {
	old := m.rates.Load()
	if old == nil && q == (lun.QoS{}) || old != nil && old.qos == q {
		return
	}
	m.rates.Store(newRates(q))
	if old != nil {
		close(old.replaced)
	}
}

func newRates(q lun.QoS) *rates {
	if q.IOPS == 0 && q.BytesPerSecond == 0 {
		return nil
	}
	burst := lun.DefaultQoSBurst
	if q.BurstMS > 0 {
		burst = time.Duration(q.BurstMS) * time.Millisecond
	}
	limit := func(perSecond int64) *rate.Limiter {
		if perSecond == 0 {
			return nil
		}
		return rate.NewLimiter(rate.Limit(perSecond), max(int(float64(perSecond)*burst.Seconds()), 1))
	}
	return &rates{qos: q, iops: limit(q.IOPS), bytes: limit(q.BytesPerSecond), replaced: make(chan struct{})}
}

// Admit is nbd.Throttler's.
func (m *limiter) Admit(bytes int) bool {
	r := m.rates.Load()
	return r == nil || r.take(time.Now(), bytes)
}

// take counts a request if all that it needs is there.
func (r *rates) take(now time.Time, bytes int) bool {
	if r.bytes != nil && bytes > 0 {
		n := r.bytes.ReserveN(now, bytes)
		if !n.OK() {
			return false // more than a burst
		}
		if n.DelayFrom(now) > 0 {
			n.CancelAt(now)
			return false
		}
		if r.iops != nil && !r.iops.AllowN(now, 1) {
			n.CancelAt(now)
			return false
		}
		return true
	}
	return r.iops == nil || r.iops.AllowN(now, 1)
}

// Wait is nbd.Throttler's. What is more than a burst is waited for in parts, so
// that a large request leaves others of the LUN their turn. Where the limits
// change meanwhile, the new ones hold for what is left.
func (m *limiter) Wait(ctx context.Context, bytes int) {
	ops := 1
	for r := m.rates.Load(); r != nil && ctx.Err() == nil && ops+bytes > 0; r = m.rates.Load() {
		switch {
		case ops > 0:
			if r.iops == nil || r.wait(ctx, r.iops, 1) {
				ops = 0
			}
		case r.bytes == nil:
			return
		default:
			part := min(bytes, r.bytes.Burst())
			if r.wait(ctx, r.bytes, part) {
				bytes -= part
			}
		}
	}
}

// wait takes n of a limit and waits until it is there. It takes nothing and
// reports false where ctx ends or the limits are replaced before that.
func (r *rates) wait(ctx context.Context, l *rate.Limiter, n int) bool {
	taken := l.ReserveN(time.Now(), n)
	timer := time.NewTimer(taken.Delay())
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.replaced:
	case <-ctx.Done():
	}
	taken.Cancel()
	return false
}
