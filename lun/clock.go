package lun

import (
	"fmt"
	"sync"
	"time"
)

// wallClock tells the passing of time from a clock that was set.
type wallClock struct {
	began time.Time // of the pool
	mu    sync.Mutex
	shown time.Time     // what the clock showed when it was looked at
	at    time.Duration // when that was, since began
	ahead time.Duration // by how much it was set forward a short while ago
	until time.Duration // when it is believed, since began
}

const (
	clockJump = time.Hour // forward, against the time that has passed: by then the clock was set
	clockHold = time.Hour // until it is believed, so that somebody can set it right
)

// look takes what the clock shows and the time that has passed, and returns the time by which lives and protections end: for
// clockHold after the clock was set forward, as if it had not been. jumped says that it was, since the last look.
func (c *wallClock) look(shown time.Time, passed time.Duration) (now time.Time, jumped time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	shift := shown.Sub(c.shown) - (passed - c.at)
	if c.shown.IsZero() {
		shift = 0
	}
	c.shown, c.at = shown, passed
	if passed >= c.until {
		c.ahead = 0
	}
	switch {
	case shift >= clockJump:
		c.ahead, c.until, jumped = c.ahead+shift, passed+clockHold, shift
	case shift < 0:
		c.ahead = max(0, c.ahead+shift)
	}
	return shown.Add(-c.ahead), jumped
}

// lifeNow is the time by which lives and protections of snapshots end.
func (p *Pool) lifeNow() time.Time {
	// With their monotonic readings two times say what has passed, without them what the clock shows.
	now := p.now()
	life, jumped := p.clock.look(now.Round(0), now.Sub(p.clock.began))
	if jumped > 0 {
		p.event("clock", "", fmt.Sprintf("the clock was set forward by %s, or the machine slept: no snapshot's life or protection ends by that for %s; set it right if it is wrong",
			jumped.Round(time.Second), clockHold))
	}
	return life
}

// since is how long ago a time is that was written down. One that is yet to come was written by a clock that was wrong: it counts
// as long ago, or what is due some time after it would not be for as long as the clock was ahead.
func (p *Pool) since(at time.Time) time.Duration {
	if d := p.now().Sub(at); d >= 0 {
		return d
	}
	return 1<<63 - 1
}
