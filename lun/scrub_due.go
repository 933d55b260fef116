package lun

import (
	"context"
	"errors"
	"time"
)

// scrubEvery is the default of Options.ScrubEvery.
const scrubEvery = 30 * 24 * time.Hour

// scrubRound is the loop that scrubs when it is due, and goes on with a scheduled
// scrub that a restart interrupted.
func (j *janitor) scrubRound() {
	defer j.done.Done()
	p := j.p
	if p.opts.ScrubEvery < 0 {
		return
	}
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		if p.writable() == nil && p.scrubDue() && p.scrubs.one.TryLock() {
			ctx, cancel := context.WithCancel(background())
			p.scrubs.mu.Lock()
			p.scrubs.cancel = cancel
			p.scrubs.mu.Unlock()
			_, err := p.scrubHeld(ctx, ScrubOptions{}, nil, true)
			p.scrubs.mu.Lock()
			p.scrubs.cancel = nil
			p.scrubs.mu.Unlock()
			cancel()
			if err != nil && !errors.Is(err, context.Canceled) && !j.stopping() {
				p.event("scrub", "", "the scrub stopped: "+err.Error())
			}
		}
		select {
		case <-j.quit:
			return
		case <-tick.C:
		}
	}
}

// scrubDue says whether a scheduled scrub was interrupted, or the last one, or
// else the making of the pool, is long ago.
func (p *Pool) scrubDue() bool {
	every, s := p.opts.ScrubEvery, p.readScrub()
	switch {
	case !s.Started.IsZero() && s.Finished.IsZero() && s.Scheduled:
		return true
	case s.Started.IsZero():
		return p.since(p.id.Created) >= every
	}
	return p.since(s.Started) >= every
}
