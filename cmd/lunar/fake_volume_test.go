package main

import (
	"syscall"

	"lunar/lun"
)

// fakeVolume is a map of blocks.
type fakeVolume struct {
	pool     *fakePool
	name     string
	snapshot string
	data     map[int64][]byte
	size     func() int64
	ro       bool
}

func (v *fakeVolume) Size() int64 {
	v.pool.mu.Lock()
	defer v.pool.mu.Unlock()
	return v.size()
}

func (v *fakeVolume) Name() string {
	if v.snapshot != "" {
		return v.name + "@" + v.snapshot
	}
	return v.name
}

func (v *fakeVolume) ReadOnly() bool      { return v.ro }
func (v *fakeVolume) Description() string { return "" }
func (v *fakeVolume) Buffer(n int) []byte { return make([]byte, n) }
func (v *fakeVolume) Discard([]byte)      {}
func (v *fakeVolume) Close() error        { return v.pool.failing("close-volume", v.name) }

func (v *fakeVolume) Prefetch(int64, int64) error { return nil }
func (v *fakeVolume) FastZero(int64, int64) bool  { return false }

func (v *fakeVolume) ChangedContexts() []string { return nil }

func (v *fakeVolume) Changed(string, int64, int64, func(int64, int64, bool) bool) error {
	return syscall.ENOENT
}

func (v *fakeVolume) Flush() error { return v.pool.failing("flush", v.name) }

// each calls fn for every part of a block in a range.
func each(off, n int64, fn func(block, at, done, count int64)) {
	for done := int64(0); done < n; {
		at := (off + done) % zeroUnit
		count := min(zeroUnit-at, n-done)
		fn((off+done)/zeroUnit, at, done, count)
		done += count
	}
}

func (v *fakeVolume) ReadAt(p []byte, off int64) error {
	v.pool.mu.Lock()
	defer v.pool.mu.Unlock()
	clear(p)
	each(off, int64(len(p)), func(block, at, done, count int64) {
		if b := v.data[block]; b != nil {
			copy(p[done:done+count], b[at:])
		}
	})
	return v.pool.failing("read", v.name)
}

func (v *fakeVolume) WriteAt(p []byte, off int64, _ bool) error {
	v.pool.mu.Lock()
	defer v.pool.mu.Unlock()
	if v.ro {
		return syscall.EPERM
	}
	if v.pool.onWrite != nil {
		if err := v.pool.onWrite(v.name, int64(len(p))); err != nil {
			return err
		}
	}
	if off+int64(len(p)) > v.size() {
		return syscall.EINVAL
	}
	each(off, int64(len(p)), func(block, at, done, count int64) {
		b := v.data[block]
		if b == nil {
			b = make([]byte, zeroUnit)
			v.data[block] = b
		}
		copy(b[at:], p[done:done+count])
	})
	return nil
}

func (v *fakeVolume) WriteOwned(p []byte, off int64, fua bool) error { return v.WriteAt(p, off, fua) }

func (v *fakeVolume) Zero(off, n int64, _, fua bool) error {
	return v.WriteAt(make([]byte, n), off, fua)
}

func (v *fakeVolume) Trim(off, n int64, fua bool) error { return v.Zero(off, n, false, fua) }

func (v *fakeVolume) Extents(off, n int64, fn func(off, n int64, hole, zero bool) bool) error {
	for end := off + n; off < end; {
		v.pool.mu.Lock()
		hole := v.data[off/zeroUnit] == nil
		next := off
		for next < end && (v.data[next/zeroUnit] == nil) == hole {
			next = min((next/zeroUnit+1)*zeroUnit, end)
		}
		v.pool.mu.Unlock()
		if !fn(off, next-off, hole, hole) {
			return nil
		}
		off = next
	}
	return nil
}

func (v *fakeVolume) Settle() {}

func (v *fakeVolume) TryWrite(p []byte, off int64, _ bool) (bool, error) {
	return true, v.WriteAt(p, off, false)
}

func (p *fakePool) Labelled(label string) (out []lun.SnapshotRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.luns {
		for _, s := range l.snaps {
			if _, ok := s.info.Labels[label]; ok {
				out = append(out, lun.SnapshotRef{LUN: l.info.Name, Name: s.info.Name})
			}
		}
	}
	return out
}
