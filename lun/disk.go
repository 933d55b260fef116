package lun

import (
	"fmt"

	"lunar/reservation"
)

// The file system below the pool. Others use it too: what they take of the space
// that the pool still counts on is noticed here, before a write meets it.

// disk is what the file system has for the pool, in bytes. ok is false where it
// cannot tell.
type disk struct {
	avail   int64 // free
	missing int64 // of the capacity, what is neither the pool's yet nor free
	ok      bool
}

// look asks the file system.
func (p *Pool) look() (d disk) {
	du, err := p.fs.GetDiskUsage(p.opts.Dir)
	if err != nil {
		return d
	}
	d.ok, d.avail = true, int64(min(du.AvailBytes, 1<<62))
	toTake := p.state.capacity() - int64(p.index.DiskBytes()) - p.backups.bytes() - p.files()*p.id.SegmentBytes + p.space.given.Load()*blockSize - p.ballast.bytes()
	d.missing = max(toTake-d.avail, 0)
	if d.missing < p.state.capacity()/100 {
		d.missing = 0 // the file system's own bookkeeping
	}
	return d
}

// files is how many segment files there are.
func (p *Pool) files() int64 {
	if log := p.logNow.Load(); log != nil {
		return int64(log.Stats().Files)
	}
	return 0
}

// maxSegments is how many segment files there may be: as many as the capacity has
// room for beside the index, with what holes in others gave back, and no more than
// the file system has.
func (p *Pool) maxSegments() int {
	n := p.aboveFiles(max((p.state.capacity()-p.indexShare())/p.id.SegmentBytes, 8) + p.space.given.Load()/int64(p.space.blocks))
	if d := p.look(); d.ok && p.logNow.Load() != nil {
		n = min(n, p.files()+max(d.avail-p.indexRoom(), 0)/p.id.SegmentBytes+p.ballast.forLog())
	}
	return int(n)
}

// aboveFiles keeps a limit that has fallen below the segments in use, as the capacity
// has shrunk or the index has grown, out of the cleaner's way: to empty some it needs
// others to copy to. So it follows the fewest in use since, a few above them, until
// there is room below the limit again; writers go on slowly meanwhile.
func (p *Pool) aboveFiles(limit int64) int64 {
	log := p.logNow.Load()
	if log == nil {
		return limit
	}
	st := log.Stats()
	used, fewest := int64(st.Files-st.Free-st.Prepared), p.fewest.Load()
	switch {
	case fewest == 0 && used <= limit:
		return limit
	case used+2*keptSegments <= limit:
		p.fewest.Store(0)
		return limit
	case fewest == 0 || used < fewest:
		fewest = used
		p.fewest.Store(used)
	}
	return max(limit, fewest+2*keptSegments)
}

// indexRoom is what is kept free on the file system for the index to grow.
func (p *Pool) indexRoom() int64 {
	return max(p.indexBytes()-int64(p.index.DiskBytes()), 2*p.memTable())
}

// watchDisk tells the ledger and the log what others took, and reports it when it
// begins and when it ends. The janitor calls it.
func (p *Pool) watchDisk() {
	d := p.look()
	p.ledger.SetForeign(d.missing / blockSize)
	p.log.Refresh()
	was := p.foreign.Swap(d.missing)
	switch {
	case was == 0 && d.missing > 0:
		p.event("file-system", "", p.foreignMessage(d)+"; writers are slowed down as it fills")
	case was > 0 && d.missing == 0:
		p.event("file-system", "", "the file system has all the space again that the pool counts on")
	}
}

// leftByOthers is what the log may still take, in blocks, where others fill the file
// system; 0 where they do not.
func (p *Pool) leftByOthers() int64 {
	if p.foreign.Load() == 0 {
		return 0
	}
	return int64(max(p.log.Available()-keptSegments, 1)) * int64(p.space.blocks)
}

func (p *Pool) foreignMessage(d disk) string {
	return fmt.Sprintf("the file system of %s has %s free, which is %s less than the pool counts on: something else fills it; make room there, or lower the capacity with `lunar pool resize`",
		p.opts.Dir, human(d.avail), human(d.missing))
}

// diskWarning is what `lunar status` says about it: critical where promises
// are not covered any more, or the file system is all but full.
func (p *Pool) diskWarning() (reservation.Level, string) {
	d := p.look()
	if d.missing == 0 {
		return reservation.LevelOK, ""
	}
	level := reservation.LevelWarning
	if t := p.ledger.Totals(); t.Over > 0 || d.avail < p.indexRoom()+8*p.id.SegmentBytes {
		level = reservation.LevelCritical
	}
	return level, p.foreignMessage(d)
}
