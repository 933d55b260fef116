package lun

import (
	"sync/atomic"
	"time"
)

// pace slows writers down together: a clock that each of them moves on by what
// its write costs, and then waits for. So the rate of all of them is bounded,
// however many there are, and nobody waits with a lock held.
type pace struct {
	next atomic.Int64 // when the next write is due, Unix nanoseconds
	gain atomic.Int64 // blocks a second that cleaning gave back when it last ran
}

const (
	paceBurst = int64(5 * time.Millisecond) // how far writers may run ahead of the clock
	paceLeast = 512                         // blocks a second: 2 MiB, so that nobody is starved by a bad guess
	paceMost  = time.Second                 // of waiting for one write
	paceEnd   = 4                           // seconds that what is left is made to last for, at every moment, where others fill the file system
)

// ran notes that cleaning gave back blocks in a time; a moving average.
func (c *pace) ran(blocks int64, took time.Duration) {
	if blocks <= 0 || took <= 0 {
		return
	}
	rate := int64(float64(blocks) / took.Seconds())
	if old := c.gain.Load(); old > 0 {
		rate = (3*old + rate) / 4
	}
	c.gain.Store(max(rate, 1))
}

// rate is how many blocks a second may be written at a pressure: what cleaning
// gives back at the middle, twice as much where the pressure begins, towards
// nothing where it ends. Hence the log settles where it is cleaned as fast as it
// is written, without a step anywhere. Where nothing was given back yet, left is what
// the file system has for the log in blocks if others fill it, so that the rate falls
// with it. 0 is no bound.
func (c *pace) rate(pressure float64, left int64) float64 {
	gain := c.gain.Load()
	switch {
	case pressure <= 0:
		return 0
	case gain > 0:
		return max(float64(gain)*2*(1-pressure), paceLeast)
	case left > 0:
		return max(float64(left)/paceEnd, paceLeast)
	}
	return 0
}

// delay takes the turn of a write of blocks and says how long it has to wait for it.
func (c *pace) delay(blocks int, pressure float64, left int64, now time.Time) time.Duration {
	rate := c.rate(pressure, left)
	if rate == 0 {
		return 0
	}
	cost := int64(float64(blocks) / rate * float64(time.Second))
	for {
		old := c.next.Load()
		due := max(old, now.UnixNano()-paceBurst)
		if c.next.CompareAndSwap(old, due+cost) {
			return min(max(time.Duration(due-now.UnixNano()), 0), paceMost)
		}
	}
}
