package lun

import "sync"

// bases are the snapshots that a handle compares with. Each is opened when it is
// first asked for and kept: while the handle is open, a name stays the snapshot
// that it was, which is neither merged nor recycled even when it is deleted.
type bases struct {
	mu sync.Mutex
	of map[string]*Volume
}

// base returns the handle's snapshot of this name.
func (v *Volume) base(name string) (*Volume, error) {
	v.bases.mu.Lock()
	defer v.bases.mu.Unlock()
	if b := v.bases.of[name]; b != nil {
		return b, nil
	}
	lun, ok := v.lunName()
	if !ok {
		return nil, errGone
	}
	b, err := v.pool.OpenVolume(lun, name)
	if err != nil {
		return nil, err
	}
	if v.bases.of == nil {
		v.bases.of = map[string]*Volume{}
	}
	v.bases.of[name] = b
	return b, nil
}

func (b *bases) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, v := range b.of {
		_ = v.Close()
	}
	b.of = nil
}

// lunName is the present name of the handle's LUN.
func (v *Volume) lunName() (string, bool) {
	v.pool.treeMu.RLock()
	defer v.pool.treeMu.RUnlock()
	l := v.pool.tree.LUN(v.view.lun)
	if l == nil {
		return "", false
	}
	return l.Name, true
}

// Changed reports, for an NBD metadata context, which parts of the range differ
// from a snapshot of the same LUN, or may: by blocks, in order, without gaps.
func (v *Volume) Changed(since string, off, n int64, fn func(off, n int64, changed bool) bool) error {
	if err := v.bounds(off, n); err != nil || n == 0 {
		return err
	}
	old, err := v.base(since)
	if err != nil {
		return err
	}
	m := merger{from: off, to: off + n, fn: func(o, l int64, unchanged, _ bool) bool { return fn(o, l, !unchanged) }}
	at := off
	err = v.eachChange(old, off, off+n, func(o, l int64, _ bool) bool {
		ok := m.add(at, o, true, true) && m.add(o, o+l, false, false)
		at = o + l
		return ok
	})
	if err != nil {
		return err
	}
	m.add(at, off+n, true, true)
	m.flush()
	return nil
}

// ChangedContexts lists the snapshots that Changed knows, newest first.
func (v *Volume) ChangedContexts() []string {
	p := v.pool
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	list := p.tree.Snapshots(v.view.lun)
	out := make([]string, len(list))
	for i, s := range list {
		out[len(list)-1-i] = s.Name
	}
	return out
}
