package lun

import (
	"sync"
	"sync/atomic"
	"time"

	"lunar/cow"
)

// job is a piece of background work that somebody wants done soon.
type job uint32

const (
	jobCheckpoint job = 1 << iota
	jobReclaim
	jobClean
	jobRecycle
)

// janitor does the background work of a pool, one thing at a time: checkpoints
// when due, merging and freeing of deleted versions, cleaning, expiry.
type janitor struct {
	p      *Pool
	wanted atomic.Uint32
	wake   chan struct{} // of the checkpoints
	chore  chan struct{} // of the rest
	quit   chan struct{}
	done   sync.WaitGroup
}

func newJanitor(p *Pool) *janitor {
	return &janitor{p: p, wake: make(chan struct{}, 1), chore: make(chan struct{}, 1), quit: make(chan struct{})}
}

// kick asks for a job. It never waits and may be called with any lock held.
func (j *janitor) kick(what job) {
	if j == nil {
		return
	}
	if old := j.wanted.Or(uint32(what)); old&uint32(what) != 0 {
		return
	}
	ch := j.chore
	if what == jobCheckpoint {
		ch = j.wake
	}
	select {
	case ch <- struct{}{}:
	default:
	}
}

// start runs two loops: checkpoints must not wait behind a merge that waits
// for a checkpoint's space.
func (j *janitor) start() {
	j.done.Add(2)
	go j.checkpoints()
	go j.chores()
}

func (j *janitor) stop() {
	if j == nil {
		return
	}
	close(j.quit)
	j.done.Wait()
}

func (j *janitor) take(what job) bool {
	return j.wanted.And(^uint32(what))&uint32(what) != 0
}

func (j *janitor) checkpoints() {
	defer j.done.Done()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := j.p.now()
	for {
		select {
		case <-j.quit:
			return
		case <-j.wake:
		case <-tick.C:
		}
		due := j.p.now().Sub(last) >= checkpointEvery && j.p.entries.Load() > 0
		if j.take(jobCheckpoint) || due {
			if err := j.p.Checkpoint(); err == nil {
				last = j.p.now()
			}
		}
		if j.p.entries.Load() > 0 && j.p.readOnly.Load() == nil {
			j.mark()
		}
	}
}

// mark puts the synced mark of an idle log on disk, so that damage in front of
// it is told from a torn tail.
func (j *janitor) mark() {
	if next := j.p.log.Next(); next == j.p.marked {
		return
	} else if j.p.log.Synced() == next-1 {
		if j.p.log.Mark() == nil {
			j.p.marked = j.p.log.Next()
		}
	}
}

// chores does the rest: what somebody asked for at once, and once a second what
// is due by itself.
func (j *janitor) chores() {
	defer j.done.Done()
	p := j.p
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-j.quit:
			return
		case <-j.chore:
		case <-tick.C:
		}
		if p.readOnly.Load() != nil {
			continue
		}
		if n%8 == 0 {
			p.expire()
		}
		if j.take(jobRecycle) {
			p.relieve()
		}
		if j.take(jobReclaim) {
			if err := p.Reclaim(); err != nil {
				p.event("reclaim", "", "giving space back stopped: "+err.Error())
			}
		}
		if maxLive := p.cleanDue(j.take(jobClean)); maxLive > 0 {
			if _, err := p.cleanRound(maxLive, 8); err != nil {
				p.event("clean", "", "cleaning stopped: "+err.Error())
			}
			p.spaceBack.wake()
		}
	}
}

// cleanDue says how live a segment may be to be cleaned now, 0 for not at all:
// nothing while the pool holds little more than its live blocks, anything worth
// it when the log has no room.
func (p *Pool) cleanDue(pressed bool) int64 {
	payload, live, sealed := p.space.totals()
	slack := live/4 + 4*int64(p.space.blocks)
	switch {
	case pressed:
		return 97
	case sealed > 4 && payload > live+slack:
		return 80
	}
	return 0
}

// expire deletes the snapshots whose time to live has ended.
func (p *Pool) expire() {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	var ids []cow.VersionID
	for _, id := range p.tree.Expired(p.now()) {
		v := p.tree.Version(id)
		if l := p.tree.LUN(v.LUN); l != nil && len(p.attached(l.Name+"@"+v.Name)) == 0 {
			ids = append(ids, id)
		}
	}
	if len(ids) > 0 {
		if err := p.deleteVersions(ids, "expired"); err != nil {
			p.event("snapshot-delete", "", "expired snapshots could not be deleted: "+err.Error())
		}
	}
}
