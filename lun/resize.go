package lun

import (
	"context"
	"errors"

	"lunar/cow"
)

// ResizeLUN grows a LUN, or with force shrinks it; its snapshots keep their own
// sizes and content. The new size is one change: a crash leaves the old or the
// new one. What lies behind the end of a shrunk LUN is given back after that, and
// growing makes sure that nothing is there before it shows it.
func (p *Pool) ResizeLUN(_ context.Context, name string, size int64, force bool) (LUNInfo, error) {
	if err := CheckLUNSize(size); err != nil {
		return LUNInfo{}, err
	}
	p.resizeMu.Lock()
	defer p.resizeMu.Unlock()
	l, err := p.lunByName(name)
	if err != nil {
		return LUNInfo{}, err
	}
	if size < l.Size && !force {
		return LUNInfo{}, Errorf(ErrRefused, "LUN %q is %d bytes; shrinking it to %d would cut off data; take a snapshot (it keeps its size), then use --force", name, l.Size, size)
	}
	if size > l.Size {
		if err := p.clearBehind(l.ID, l.Size, size); err != nil {
			return LUNInfo{}, err
		}
	}
	info, err := p.update(name, func(n *cow.LUN) error {
		if c := p.attached(name); size < n.Size && len(c) > 0 {
			return Errorf(ErrBusy, "LUN %q has %d clients attached; disconnect them before shrinking it", name, len(c))
		}
		if size < n.Size {
			n.Cut = max(n.Cut, n.Size)
		}
		n.Size = size
		return nil
	})
	if err != nil || info.SizeBytes >= l.Size {
		return info, err
	}
	if err := p.finishCut(l.ID); err != nil {
		p.event("resize", name, "LUN "+name+" was shrunk, but what lies behind its end could not be given back yet; the next start tries again: "+err.Error())
	}
	return p.LUN(name)
}

func (p *Pool) lunByName(name string) (*cow.LUN, error) {
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	l, err := p.tree.LUNByName(name)
	return l, apiErr(err)
}

// finishCuts gives back what shrunk LUNs hold behind their ends where a crash
// came in between.
func (p *Pool) finishCuts() {
	p.resizeMu.Lock()
	defer p.resizeMu.Unlock()
	p.treeMu.RLock()
	luns := p.tree.LUNs()
	p.treeMu.RUnlock()
	for _, l := range luns {
		if l.Cut == 0 {
			continue
		}
		if err := p.finishCut(l.ID); err != nil {
			p.event("resize", l.Name, "what lies behind the end of "+l.Name+" could not be given back: "+err.Error())
		}
	}
}

// finishCut frees what a LUN was cut off, and forgets that it was.
func (p *Pool) finishCut(id cow.LUNID) error {
	p.treeMu.RLock()
	l := p.tree.LUN(id)
	p.treeMu.RUnlock()
	if l == nil || l.Cut == 0 {
		return nil
	}
	if l.Cut > l.Size {
		v, err := p.openHead(id)
		if err != nil {
			return err
		}
		defer v.Close()
		_, err = v.eraseRange(uint64(blocksOf(l.Size)), uint64(blocksOf(l.Cut)), asCut)
		// A rollback meanwhile: the new head has nothing that was cut off.
		if err != nil && !errors.Is(err, errGone) {
			return err
		}
	}
	_, err := p.update(l.Name, func(n *cow.LUN) error {
		n.Cut = 0
		return nil
	})
	return err
}

// clearBehind makes sure that the bytes from..to, which lie behind the end of a
// LUN, are zero before it grows over them.
func (p *Pool) clearBehind(id cow.LUNID, from, to int64) error {
	if err := p.writable(); err != nil {
		return err
	}
	v, err := p.openHead(id)
	if err != nil {
		return err
	}
	defer v.Close()
	if in := from % blockSize; in > 0 {
		var b [blockSize]byte
		if err := v.readBlocks(b[:], uint64(from/blockSize)); err != nil {
			return err
		}
		if rest := b[in:]; !allZero(rest) {
			clear(rest)
			w := writePool.Get().(*writeOp)
			defer w.release()
			w.v = v
			if err := w.partial(rest, from); err != nil {
				return err
			}
		}
	}
	_, err = v.eraseRange(uint64(blocksOf(from)), uint64(blocksOf(to)), asCut)
	return err
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// openHead opens the head of a LUN, also one that is offline or read-only.
func (p *Pool) openHead(id cow.LUNID) (*Volume, error) {
	p.viewMu.Lock()
	defer p.viewMu.Unlock()
	w := p.heads[id]
	if w == nil {
		return nil, errGone
	}
	w.opens++
	return &Volume{pool: p, view: w, shard: p.shardNext.Add(1)}, nil
}
