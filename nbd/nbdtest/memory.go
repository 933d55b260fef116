// Package nbdtest has what tests of NBD devices share: a device in memory, a
// small client, and a conformance suite for any nbd.Backend.
package nbdtest

import (
	"bytes"
	"context"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"

	"lunar/nbd"
)

const block = 4096

// Memory is a device in memory, sparse by blocks of 4 KiB. Errors can be made to
// happen, and what reached it is counted.
type Memory struct {
	name     string
	readOnly atomic.Bool

	mu     sync.RWMutex
	size   int64
	blocks map[int64][]byte
	marks  map[string]map[int64]bool // by snapshot: blocks that were changed since

	Flushes, FUAs, Opens, Closes, Owned, Lent atomic.Int64

	// Fail, if set, is asked before each operation ("read", "write", "flush",
	// "trim", "zero", "extents"); it may also block or panic.
	Fail atomic.Pointer[func(op string, off, n int64) error]
}

// NewMemory returns a device of so many bytes, all zero.
func NewMemory(name string, size int64) *Memory {
	return &Memory{name: name, size: size, blocks: map[int64][]byte{}, marks: map[string]map[int64]bool{}}
}

// SetReadOnly makes connections from now on read-only.
func (m *Memory) SetReadOnly(ro bool) { m.readOnly.Store(ro) }

// SetFail sets Fail; nil takes it away.
func (m *Memory) SetFail(f func(op string, off, n int64) error) {
	if f == nil {
		m.Fail.Store(nil)
		return
	}
	m.Fail.Store(&f)
}

// Snapshot begins to note what changes, as a context of that name.
func (m *Memory) Snapshot(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.marks[name] = map[int64]bool{}
}

func (m *Memory) fail(op string, off, n int64) error {
	if f := m.Fail.Load(); f != nil {
		return (*f)(op, off, n)
	}
	return nil
}

// Name, Size, ReadOnly, Description and FastZero describe the device.
func (m *Memory) Name() string        { return m.name }
func (m *Memory) ReadOnly() bool      { return m.readOnly.Load() }
func (m *Memory) Description() string { return "memory device " + m.name }

// FastZero is nbd.FastZeroer's: for whole blocks of 512 bytes.
func (m *Memory) FastZero(off, n int64) bool { return off%512 == 0 && n%512 == 0 }

// Size is the size now.
func (m *Memory) Size() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.size
}

// Resize changes the size.
func (m *Memory) Resize(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.size = size
}

// Buffer, Discard and WriteOwned lend out buffers and count them back.
func (m *Memory) Buffer(n int) []byte { m.Lent.Add(1); return make([]byte, n) }

// Discard takes a buffer back.
func (m *Memory) Discard([]byte) { m.Lent.Add(-1) }

// ReadAt reads.
func (m *Memory) ReadAt(p []byte, off int64) error {
	if err := m.fail("read", off, int64(len(p))); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if off+int64(len(p)) > m.size {
		return syscall.EIO
	}
	for len(p) > 0 {
		in := off % block
		n := min(int64(len(p)), block-in)
		if b := m.blocks[off/block]; b != nil {
			copy(p[:n], b[in:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
	return nil
}

// WriteAt writes.
func (m *Memory) WriteAt(p []byte, off int64, fua bool) error {
	if err := m.fail("write", off, int64(len(p))); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if off+int64(len(p)) > m.size {
		return syscall.ENOSPC
	}
	m.sync(fua)
	for len(p) > 0 {
		in := off % block
		n := min(int64(len(p)), block-in)
		b := m.blocks[off/block]
		if b == nil {
			b = make([]byte, block)
			m.blocks[off/block] = b
		}
		copy(b[in:], p[:n])
		m.markLocked(off / block)
		p, off = p[n:], off+n
	}
	return nil
}

// WriteOwned writes a buffer of this device.
func (m *Memory) WriteOwned(p []byte, off int64, fua bool) error {
	m.Owned.Add(1)
	m.Lent.Add(-1)
	return m.WriteAt(p, off, fua)
}

func (m *Memory) sync(fua bool) {
	if fua {
		m.FUAs.Add(1)
	}
}

func (m *Memory) markLocked(b int64) {
	for _, changed := range m.marks {
		changed[b] = true
	}
}

// Flush counts.
func (m *Memory) Flush() error {
	if err := m.fail("flush", 0, 0); err != nil {
		return err
	}
	m.Flushes.Add(1)
	return nil
}

// Trim gives whole blocks back.
func (m *Memory) Trim(off, n int64, fua bool) error {
	if err := m.fail("trim", off, n); err != nil {
		return err
	}
	return m.zero(off, n, false, fua)
}

// Zero zeroes a range; whole blocks become holes, unless noHole.
func (m *Memory) Zero(off, n int64, noHole, fua bool) error {
	if err := m.fail("zero", off, n); err != nil {
		return err
	}
	return m.zero(off, n, noHole, fua)
}

func (m *Memory) zero(off, n int64, noHole, fua bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off+n > m.size {
		return syscall.ENOSPC
	}
	m.sync(fua)
	if noHole {
		for at := off; at < off+n; at += block - at%block {
			if m.blocks[at/block] == nil {
				m.blocks[at/block] = make([]byte, block)
			}
		}
	}
	for b, data := range m.blocks {
		from, to := max(off, b*block), min(off+n, (b+1)*block)
		if from >= to {
			continue
		}
		m.markLocked(b)
		if to-from == block && !noHole {
			delete(m.blocks, b)
			continue
		}
		clear(data[from-b*block : to-b*block])
	}
	return nil
}

// Extents reports blocks that are there as data, the others as holes.
func (m *Memory) Extents(off, n int64, fn func(off, n int64, hole, zero bool) bool) error {
	if err := m.fail("extents", off, n); err != nil {
		return err
	}
	m.mu.RLock()
	list := runs(off, n, func(b int64) bool { return m.blocks[b] != nil })
	m.mu.RUnlock()
	for _, r := range list {
		if !fn(r.off, r.n, !r.in, !r.in) {
			break
		}
	}
	return nil
}

// ChangedContexts lists the snapshots.
func (m *Memory) ChangedContexts() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var names []string
	for name := range m.marks {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// Changed reports what was changed since a snapshot.
func (m *Memory) Changed(since string, off, n int64, fn func(off, n int64, changed bool) bool) error {
	m.mu.RLock()
	marks, ok := m.marks[since]
	list := runs(off, n, func(b int64) bool { return marks[b] })
	m.mu.RUnlock()
	if !ok {
		return syscall.EINVAL
	}
	for _, r := range list {
		if !fn(r.off, r.n, r.in) {
			break
		}
	}
	return nil
}

// run is a range of blocks that are all in a set, or all not.
type run struct {
	off, n int64
	in     bool
}

// runs divides a range.
func runs(off, n int64, in func(b int64) bool) (list []run) {
	for end := off + n; off < end; {
		next := min((off/block+1)*block, end)
		if is, last := in(off/block), len(list)-1; last >= 0 && list[last].in == is {
			list[last].n += next - off
		} else {
			list = append(list, run{off, next - off, is})
		}
		off = next
	}
	return list
}

// Close counts.
func (m *Memory) Close() error { m.Closes.Add(1); return nil }

// Equal compares the whole content.
func (m *Memory) Equal(want []byte) bool {
	got := make([]byte, m.Size())
	return m.ReadAt(got, 0) == nil && bytes.Equal(got, want)
}

// Backend serves devices in memory. The first one is the default export.
type Backend struct {
	mu      sync.Mutex
	devices []*Memory
}

// NewBackend returns a backend of these devices.
func NewBackend(devices ...*Memory) *Backend { return &Backend{devices: devices} }

// Remove takes a device away.
func (b *Backend) Remove(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, d := range b.devices {
		if d.name == name {
			b.devices = append(b.devices[:i:i], b.devices[i+1:]...)
			return
		}
	}
}

// Exports lists the devices.
func (b *Backend) Exports(context.Context, nbd.Client) ([]nbd.ExportInfo, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []nbd.ExportInfo
	for _, d := range b.devices {
		list = append(list, nbd.ExportInfo{Name: d.name, Description: d.Description()})
	}
	return list, nil
}

// Open opens a device by name.
func (b *Backend) Open(_ context.Context, name string, _ nbd.Client) (nbd.Device, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, d := range b.devices {
		if d.name == name || name == "" && i == 0 {
			d.Opens.Add(1)
			return d, nil
		}
	}
	return nil, nbd.ErrUnknownExport
}
