package lun

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/dustin/go-humanize"
)

// eventLog keeps the newest events for `lunar events` and status.
type eventLog struct {
	mu   sync.Mutex
	ring []Event
}

const keptEvents = 1000

// event reports something that happened: to the log, to the listener, and to
// those who ask later. lun is empty for the pool.
func (p *Pool) event(kind, lun, message string) {
	e := Event{Time: p.now().UTC(), Type: kind, Message: message}
	if lun != "" {
		e.LUN = &lun
	}
	p.events.mu.Lock()
	p.events.ring = append(p.events.ring, e)
	if len(p.events.ring) >= 2*keptEvents {
		p.events.ring = append([]Event(nil), p.events.ring[len(p.events.ring)-keptEvents:]...)
	}
	p.events.mu.Unlock()
	p.opts.Logger.Info(message, slog.String("event", kind), slog.String("lun", lun))
	if p.opts.Events != nil {
		p.opts.Events(e)
	}
}

// Events returns the newest events, oldest first.
func (p *Pool) Events() []Event {
	p.events.mu.Lock()
	defer p.events.mu.Unlock()
	return append([]Event{}, p.events.ring[max(len(p.events.ring)-keptEvents, 0):]...)
}

func human(bytes int64) string {
	if bytes < 0 {
		return "-" + humanize.IBytes(uint64(-bytes))
	}
	return humanize.IBytes(uint64(bytes))
}

func kindName(thick bool) string {
	if thick {
		return "thick"
	}
	return "thin"
}

func percent(part, whole int64) string {
	if whole <= 0 {
		return "0 %"
	}
	return fmt.Sprintf("%d %%", part*100/whole)
}
