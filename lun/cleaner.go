package lun

import (
	"fmt"
	"time"

	"lunar/store/segment"
)

// keptSegments is how many segments below the limit are kept for the cleaner's
// copies and structural changes: two for the copies of one victim with their
// headers, one for the changes.
const keptSegments = 3

// highMark is how many available segments are enough: above it nothing is cleaned
// in a hurry and nobody is slowed down.
func (p *Pool) highMark() int {
	return keptSegments + min(max(p.maxSegments()/16, 6), 128)
}

// pressure is how short of segments the log is, from 0 to 1. It takes no lock.
func (p *Pool) pressure() float64 {
	return pressureAt(p.log.Available(), keptSegments, int(p.high.Load()))
}

// cleaner is the loop that keeps segments available. It is its own, so that it
// waits behind no merge.
func (j *janitor) cleaner() {
	defer j.done.Done()
	p := j.p
	beat := newBeat()
	defer beat.timer.Stop()
	var burst burst
	var seen segment.Seq
	busy := true
	for {
		idle := false
		select {
		case <-j.quit:
			return
		case <-j.clean:
		case <-beat.next(busy):
			idle = true
			before := p.foreign.Load()
			if p.watchDisk(); p.foreign.Load() != before {
				j.stir()
			}
		}
		busy = p.entries.Load() > 0
		j.take(jobClean)
		p.high.Store(int64(p.highMark()))
		for p.whyReadOnly() == nil && !j.stopping() {
			more, err := p.cleanRound(&burst, idle)
			if err != nil {
				p.event("clean", "", "cleaning stopped: "+err.Error())
			}
			if err != nil || !more {
				break
			}
			busy = true
		}
		if burst.over(p) {
			burst.report(p)
		}
		if idle && p.whyReadOnly() == nil {
			if err := p.idleHoles(); err != nil {
				p.event("clean", "", "giving dead blocks back stopped: "+err.Error())
			}
		}
		if idle && p.pressure() == 0 && p.defragDue() {
			if err := p.defragment(j.defragPause); err != nil {
				p.event("defragment", "", "putting blocks together stopped: "+err.Error())
			}
		}
		if idle && p.whyReadOnly() == nil {
			seen = p.dropIdleSpares(seen)
		}
		if p.pressure() > 0 {
			j.pause(20 * time.Millisecond) // nothing more to be had just now
		}
	}
}

// defragPause keeps putting blocks together to half of the time, and says whether
// to stop: when somebody writes, or segments are short.
func (j *janitor) defragPause(worked time.Duration) bool {
	p := j.p
	if p.clientBytes() != p.defrag.asked || p.pressure() > 0 || p.whyReadOnly() != nil {
		return true
	}
	j.pause(worked)
	return j.stopping()
}

// burst sums up rounds, so that cleaning at full speed is not an event each.
type burst struct {
	began time.Time
	done  int
	moved int64
}

func (b *burst) over(p *Pool) bool {
	return b.done > 0 && (p.pressure() == 0 || time.Since(b.began) > 10*time.Second)
}

func (b *burst) report(p *Pool) {
	p.cleaned(b.done, b.moved)
	*b = burst{}
}

// cleaned reports what was cleaned.
func (p *Pool) cleaned(done int, moved int64) {
	if done > 0 {
		p.event("clean", "", fmt.Sprintf("%d segments emptied, %s moved; write amplification %.2f", done, human(moved*blockSize), p.amplification()))
	}
}

// amplification is the bytes written to the log for each byte that clients and
// administrators appended, since the pool was opened.
func (p *Pool) amplification() float64 {
	if p.log == nil {
		return 1
	}
	st := p.log.Stats()
	asked := int64(st.PayloadBytes) - p.moved.Load()*blockSize
	if asked <= 0 {
		return 1
	}
	return float64(st.Bytes) / float64(asked)
}

// cleanRound empties some segments if there is need, and says whether to go on
// at once. idle allows for work that is not pressing: where the pool takes a
// quarter more than its live blocks.
func (p *Pool) cleanRound(b *burst, idle bool) (more bool, err error) {
	began, before := time.Now(), p.space.released.Load()
	pressure := p.pressure()
	if pressure > 0.5 && p.space.pinned() > 0 {
		if err := p.unpin(); err != nil {
			return false, err
		}
	}
	var vs []victim
	switch {
	case pressure > 0:
		if vs, err = p.pressedVictims(pressure); err != nil {
			return false, err
		}
	case idle && p.slack() > 0:
		vs = bestVictims(p.victims(), 80, false, 8)
	}
	if b.done == 0 {
		b.began = began
	}
	done, moved, err := p.cleanSegments(vs)
	b.done, b.moved = b.done+done, b.moved+moved
	gave := p.space.released.Load() - before
	if pressure > 0 && done > 0 {
		p.pace.ran(gave*int64(p.space.blocks)-moved, time.Since(began))
	}
	if done > 0 || gave > 0 {
		p.spaceBack.wake()
	}
	return err == nil && gave > 0 && (pressure > 0 || idle), err
}

// pressedVictims chooses victims when segments are short. What died since the
// last checkpoint, or lies behind its position, costs no more than a checkpoint.
func (p *Pool) pressedVictims(pressure float64) ([]victim, error) {
	vs := pickVictims(p.victims(), pressure, 8)
	if len(vs) < 8 && p.appended.Load() > 0 || p.space.hasUnreleased() {
		if err := p.Checkpoint(); err != nil {
			return nil, err
		}
		vs = pickVictims(p.victims(), p.pressure(), 8)
	}
	return vs, nil
}

// slack is how many blocks more than the live ones and a quarter the segments hold.
func (p *Pool) slack() int64 {
	payload, live, sealed := p.space.totals()
	if sealed <= 4 {
		return 0
	}
	return payload - live - live/4 - 4*int64(p.space.blocks)
}

// makeRoom is what the cleaner does, for a pool without background work.
func (p *Pool) makeRoom() error {
	p.high.Store(int64(p.highMark()))
	var b burst
	for range 64 {
		if more, err := p.cleanRound(&b, false); err != nil || !more {
			return err
		}
	}
	return nil
}
