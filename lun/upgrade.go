package lun

import (
	"lunar/cow"
)

// upgrade brings a pool of an older format to this one, once, before it is
// served. From format 1: what versions replaced of each other is computed from
// the pages. A crash on the way leaves the old format, and it begins again.
func (p *Pool) upgrade() error {
	c := newChecker(p)
	if err := c.visible(); err != nil {
		return err
	}
	p.overlay.mu.Lock()
	clear(p.overlay.replaced)
	for k, n := range c.replaced {
		p.overlay.replaceLocked(k.x, k.owner, n)
	}
	p.overlay.mu.Unlock()
	p.state.Format = catalogueFormat
	p.event("upgrade", "", "the pool was brought to catalogue format 2; older versions of lunar cannot open it any more")
	return p.commitIndex(p.takeObjects(p.state.Position), p.overlay.swap())
}

// hides names two versions: x replaced blocks of owner.
type hides struct{ x, owner cow.VersionID }
