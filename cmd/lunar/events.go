package main

import (
	"slices"
	"sync"
	"time"

	"lunar/lun"
)

const (
	eventsKept     = 1000 // in the ring, for those who come later
	followerEvents = 256  // that a follower may be behind
)

// eventHub keeps the last events and hands new ones to followers. publish never
// waits: it is called from the pool's background work and from under its locks,
// so a follower that is too slow is dropped instead.
type eventHub struct {
	mu        sync.Mutex
	ring      []lun.Event
	next      int // of the ring, once it is full
	followers map[*follower]struct{}
}

// follower is one reader. C is closed when it was dropped for being slow.
type follower struct{ C chan lun.Event }

func newEventHub() *eventHub {
	return &eventHub{followers: map[*follower]struct{}{}}
}

func (h *eventHub) publish(e lun.Event) {
	e.Time = e.Time.UTC()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.ring) < eventsKept {
		h.ring = append(h.ring, e)
	} else {
		h.ring[h.next] = e
		h.next = (h.next + 1) % eventsKept
	}
	for f := range h.followers {
		select {
		case f.C <- e:
		default:
			delete(h.followers, f)
			close(f.C)
		}
	}
}

// add publishes an event of the server itself.
func (h *eventHub) add(typ string, lunName *string, message string) {
	h.publish(lun.Event{Time: time.Now(), Type: typ, LUN: lunName, Message: message})
}

// last returns the events kept, oldest first.
func (h *eventHub) last() []lun.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lastLocked()
}

func (h *eventHub) lastLocked() []lun.Event {
	return append(slices.Clone(h.ring[h.next:]), h.ring[:h.next]...)
}

// follow returns the events kept and a follower for those after them: none is
// missed and none is there twice.
func (h *eventHub) follow() ([]lun.Event, *follower) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := &follower{C: make(chan lun.Event, followerEvents)}
	h.followers[f] = struct{}{}
	return h.lastLocked(), f
}

// unfollow ends a follower, dropped or not.
func (h *eventHub) unfollow(f *follower) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.followers, f)
}
