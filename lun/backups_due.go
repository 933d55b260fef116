package lun

import (
	"time"
)

const (
	backupEvery      = 10 * time.Minute // default of Options.BackUpEvery
	backupBytes      = 8 << 30          // of log, at most, to the next backup
	backupBytesLeast = 64 << 20
	backupQuiet      = 3 * time.Second // after which a pool at rest lets go of what its older copy holds
	backupHurry      = time.Second     // the least time between copies that hold much
	backupRetry      = time.Minute     // after a failure, or after they were given up
)

// backUps is the loop that copies the index when it is due.
func (j *janitor) backUps() {
	defer j.done.Done()
	p := j.p
	if p.opts.BackUpEvery < 0 {
		return
	}
	beat := newBeat()
	defer beat.timer.Stop()
	var retry time.Time
	var seen int64
	failed := ""
	for {
		pos := p.state.position.Load()
		tick := beat.next(pos != seen)
		seen = pos
		select {
		case <-j.quit:
			return
		case <-tick:
		}
		if p.whyReadOnly() != nil || time.Now().Before(retry) || !p.backupDue() {
			continue
		}
		err := p.BackUp()
		if err == nil {
			failed = ""
			p.releasePinned()
			continue
		}
		retry = time.Now().Add(backupRetry)
		if err.Error() != failed && !j.stopping() {
			failed = err.Error()
			p.event("index-backup", "", failed)
		}
	}
}

// backupDue says whether the index should be copied now: a slot is empty, much
// was written, time has passed, or segments wait for it. A pool in which nothing
// was committed since needs none.
func (p *Pool) backupDue() bool {
	if p.pressure() > 0.25 || p.now().Sub(p.backups.givenAt()) < backupRetry {
		return false
	}
	every := p.opts.BackUpEvery
	have := p.Backups()
	pos := uint64(p.state.position.Load())
	if len(have) == 0 {
		return pos > 1
	}
	newest, oldest := have[0], have[len(have)-1]
	age := p.since(newest.Created)
	_, live, _ := p.space.totals()
	bytes := backupAfter(p.state.capacity(), live*blockSize)
	pinned := int64(p.space.pinned()) * p.id.SegmentBytes
	if newest.Position == pos { // nothing is new, but what the older one holds can go
		return pinned > 0 && oldest.Position != pos && age >= backupQuiet
	}
	if age < backupPause(every, pinned > bytes, time.Duration(p.backups.took.Load())) {
		return false
	}
	written := int64(p.log.Stats().Bytes) - p.backups.logAt.Load()
	return len(have) < 2 || age >= every || written >= bytes || pinned >= int64(max(p.highMark()/4, 8))*p.id.SegmentBytes
}

// backupPause is the least time between copies. Where they hold much, a copy may
// take a twentieth of the time.
func backupPause(every time.Duration, holdMuch bool, took time.Duration) time.Duration {
	if !holdMuch {
		return every / 60
	}
	return min(max(backupHurry, 20*took), every/60)
}

// backupAfter is how many bytes of log make the next copy due: what is dead of two
// such intervals is held, which must stay small beside the data.
func backupAfter(capacity, live int64) int64 {
	return min(max(capacity/16, backupBytesLeast), max(live/8, backupBytesLeast), backupBytes)
}

func (b *backups) givenAt() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.given
}

// renewBackups gives back the segments that only copies of the index need: both
// are made anew, or given up where that fails.
func (p *Pool) renewBackups() error {
	if p.space.pinned() == 0 {
		return nil
	}
	err := p.BackUp()
	if err == nil {
		err = p.BackUp()
	}
	if err != nil {
		p.giveUpBackups(err.Error())
	}
	return p.Checkpoint()
}

// unpinWhenShort gives the copies of the index up where the cleaner would soon
// wait for a segment, for what it empties comes back only when no copy needs it.
func (p *Pool) unpinWhenShort() error {
	if p.log.Available() > keptSegments || p.space.pinned() == 0 && !p.space.hasUnreleased() {
		return nil
	}
	return p.unpin()
}

// unpin gives the copies of the index up for the segments that they hold.
func (p *Pool) unpin() error {
	if !p.giveUpBackups("segments are short") {
		return nil
	}
	return p.Checkpoint()
}

// releasePinned checkpoints if segments have waited for a backup only.
func (p *Pool) releasePinned() {
	if p.space.pinned() == 0 {
		return
	}
	if err := p.Checkpoint(); err != nil {
		p.event("checkpoint", "", "segments that waited for a copy of the index are not back yet: "+err.Error())
	}
}
