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
	jobCut
)

// janitor does the background work of a pool: checkpoints when due, cleaning, and
// one thing at a time merging and freeing of deleted versions, recycling, expiry,
// shrinks that a crash left unfinished.
type janitor struct {
	p      *Pool
	wanted atomic.Uint32
	wake   chan struct{} // of the checkpoints
	clean  chan struct{} // of the cleaner
	chore  chan struct{} // of the rest
	quit   chan struct{}
	done   sync.WaitGroup
}

func newJanitor(p *Pool) *janitor {
	return &janitor{p: p, wake: make(chan struct{}, 1), clean: make(chan struct{}, 1), chore: make(chan struct{}, 1), quit: make(chan struct{})}
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
	switch what {
	case jobCheckpoint:
		ch = j.wake
	case jobClean:
		ch = j.clean
	}
	select {
	case ch <- struct{}{}:
	default:
	}
}

// start runs three loops: checkpoints must not wait behind a merge that waits
// for a checkpoint's space, nor writers that wait for a segment behind a merge.
func (j *janitor) start() {
	j.done.Add(3)
	go j.checkpoints()
	go j.cleaner()
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
		if j.p.entries.Load() > 0 && j.p.whyReadOnly() == nil {
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
		if p.whyReadOnly() != nil {
			continue
		}
		if n%8 == 0 {
			p.expire()
		}
		if j.take(jobCut) {
			p.finishCuts()
		}
		if j.take(jobRecycle) {
			p.relieve()
		}
		p.takeBackOver()
		if n%4 == 0 {
			p.followWarnings()
		}
		p.noteRates()
		p.keepBallast()
		if j.take(jobReclaim) || n%30 == 29 && p.deletedLeft() {
			if err := p.Reclaim(); err != nil {
				p.event("reclaim", "", "giving space back stopped: "+err.Error())
			}
		}
	}
}

// deletedLeft says whether there are deleted versions: some waited for a client
// to detach, or are hidden while the versions that need them go on replacing blocks.
func (p *Pool) deletedLeft() bool {
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	return p.tree.DeletedCount() > 0
}

// stopping says that the pool is about to be closed.
func (j *janitor) stopping() bool {
	select {
	case <-j.quit:
		return true
	default:
		return false
	}
}

// pause waits, or returns early when the pool is to be closed.
func (j *janitor) pause(d time.Duration) {
	select {
	case <-j.quit:
	case <-time.After(d):
	}
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
