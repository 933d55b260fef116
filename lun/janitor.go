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

// stir wakes the loops of a pool that was at rest: something was written.
func (j *janitor) stir() {
	if j == nil {
		return
	}
	for _, ch := range []chan struct{}{j.wake, j.clean, j.chore} {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// How often a loop looks around: while something happens, and at rest, which it
// comes to by and by.
const (
	beatBusy = time.Second
	beatRest = 10 * time.Second
)

// beat is the pulse of a loop. An idle server must not use the processor, so that
// it gets slower while there is nothing to do; stir quickens it.
type beat struct {
	timer *time.Timer
	gap   time.Duration
}

func newBeat() *beat { return &beat{time.NewTimer(beatBusy), beatBusy} }

// next says when to look again.
func (b *beat) next(busy bool) <-chan time.Time {
	if b.gap = min(2*b.gap, beatRest); busy {
		b.gap = beatBusy
	}
	b.timer.Reset(b.gap)
	return b.timer.C
}

// start runs five loops: checkpoints must not wait behind a merge that waits
// for a checkpoint's space, nor writers that wait for a segment behind a merge.
func (j *janitor) start() {
	j.done.Add(5)
	go j.backUps()
	go j.scrubRound()
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

// checkpoints sleeps while no checkpoint has anything to take: noteAppend wakes it.
func (j *janitor) checkpoints() {
	defer j.done.Done()
	p := j.p
	beat := newBeat()
	defer beat.timer.Stop()
	var since time.Time // when something to be taken was first seen
	for {
		var tick <-chan time.Time
		if p.entries.Load() > 0 {
			tick = beat.next(true)
		} else {
			since = time.Time{}
		}
		select {
		case <-j.quit:
			return
		case <-j.wake:
		case <-tick:
		}
		if since.IsZero() {
			since = p.now()
		}
		due := p.now().Sub(since) >= checkpointEvery && p.entries.Load() > 0
		if j.take(jobCheckpoint) || due {
			if err := p.Checkpoint(); err == nil {
				since = p.now()
			}
		}
		if p.entries.Load() > 0 && p.whyReadOnly() == nil {
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

// Chores that need not be done at each beat.
const (
	expireEvery  = 8 * time.Second
	warnEvery    = 4 * time.Second
	ratesEvery   = 30 * time.Second
	reclaimEvery = 30 * time.Second // what could not be given back is looked at again
)

// chores does the rest: what somebody asked for at once, and by and by what is due
// by itself.
func (j *janitor) chores() {
	defer j.done.Done()
	p := j.p
	beat := newBeat()
	defer beat.timer.Stop()
	var expired, warned, rated timer
	reclaimed := timer(time.Now())
	busy := true
	for {
		select {
		case <-j.quit:
			return
		case <-j.chore:
		case <-beat.next(busy):
		}
		if busy = false; p.whyReadOnly() != nil {
			continue
		}
		now := time.Now()
		if expired.due(now, expireEvery) {
			p.expire()
		}
		if j.take(jobCut) {
			p.finishCuts()
		}
		if j.take(jobRecycle) {
			p.relieve()
		}
		p.takeBackOver()
		if warned.due(now, warnEvery) {
			p.followWarnings()
		}
		if rated.due(now, ratesEvery) {
			p.noteRates()
		}
		ballast := p.ballast.count()
		p.keepBallast()
		if reclaimed.due(now, reclaimEvery) && p.deletedLeft() || j.take(jobReclaim) {
			if err := p.Reclaim(); err != nil {
				p.event("reclaim", "", "giving space back stopped: "+err.Error())
			}
			reclaimed = timer(time.Now())
		}
		busy = p.entries.Load() > 0 || p.ballast.count() != ballast
	}
}

// timer is when something was last done.
type timer time.Time

func (t *timer) due(now time.Time, every time.Duration) bool {
	if now.Sub(time.Time(*t)) < every {
		return false
	}
	*t = timer(now)
	return true
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

// expiry is when the first snapshot's time to live ends, in one state of the
// tree; zero where none has one.
type expiry struct {
	known bool
	of    uint64 // Pool.treeState
	at    time.Time
}

// expire deletes the snapshots whose time to live has ended.
func (p *Pool) expire() {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	if !p.expiry.known || p.expiry.of != p.treeState {
		p.expiry = expiry{true, p.treeState, p.tree.NextExpiry()}
	}
	now := p.lifeNow()
	if p.expiry.at.IsZero() || now.Before(p.expiry.at) {
		return
	}
	var ids []cow.VersionID
	for _, id := range p.tree.Expired(now) {
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
