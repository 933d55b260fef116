package lun

import (
	"errors"
	"fmt"
	"sync"

	"lunar/cow"
	"lunar/store/segment"
)

// ReadAt fills p with the bytes at off, or fails as a whole. Every block is
// checked against the CRC32C in its map entry.
func (v *Volume) ReadAt(p []byte, off int64) error {
	if err := v.bounds(off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		in := int(off % blockSize)
		if in == 0 && len(p) >= blockSize {
			n := len(p) &^ (blockSize - 1)
			if err := v.readBlocks(p[:n], uint64(off/blockSize)); err != nil {
				return err
			}
			p, off = p[n:], off+int64(n)
			continue
		}
		n := min(blockSize-in, len(p))
		edge := v.pool.buffers().Get(blockSize)
		err := v.readBlocks(edge[:blockSize], uint64(off/blockSize))
		copy(p[:n], edge[in:])
		v.pool.buffers().Put(edge)
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// entries is what a read copies out of one page.
type entries struct {
	loc [cow.PageBlocks]uint64
	crc [cow.PageBlocks]uint32
}

var entryPool = sync.Pool{New: func() any { return new(entries) }}

// readBlocks reads whole blocks from block on.
func (v *Volume) readBlocks(p []byte, block uint64) error {
	for len(p) > 0 {
		first := int(block % cow.PageBlocks)
		n := min(cow.PageBlocks-first, len(p)/blockSize)
		if err := v.readPage(p[:n*blockSize], block/cow.PageBlocks, first); err != nil {
			return err
		}
		p, block = p[n*blockSize:], block+uint64(n)
	}
	return nil
}

// readPage reads len(p)/4096 blocks of one page. A block whose checksum does
// not match is resolved again, since it may have been moved and its segment
// used anew; what does not match then is damaged.
func (v *Volume) readPage(p []byte, num uint64, first int) error {
	n := len(p) / blockSize
	e := entryPool.Get().(*entries)
	defer entryPool.Put(e)
	for try := 0; ; try++ {
		phase := v.pool.grace.enter(v.shard)
		err := v.lookup(num, first, n, e)
		bad := -1
		if err == nil {
			bad, err = v.pool.fetch(p, first, n, e)
		}
		v.pool.grace.leave(v.shard, phase)
		if err == nil && bad < 0 || errors.Is(err, errGone) {
			return err
		}
		if try < 3 {
			if try == 2 {
				v.reload(num)
			}
			continue
		}
		at := int64(num*cow.PageBlocks+uint64(max(bad, first))) * blockSize
		if err == nil {
			err = fmt.Errorf("checksum of the block does not match: %w", errIO)
		}
		v.pool.event("corrupt-block", v.name, fmt.Sprintf("%s: offset %d cannot be read: %v; restore it, or overwrite the whole block", v.name, at, err))
		return Errorf(ErrCorrupt, "%s: read at offset %d: %w", v.name, at, err)
	}
}

func (v *Volume) lookup(num uint64, first, n int, e *entries) error {
	if v.view.dead.Load() {
		return errGone
	}
	pg, err := v.view.get(num)
	if err != nil {
		return err
	}
	defer pg.unpin()
	if err := pg.lock(); err != nil {
		return err
	}
	for i := first; i < first+n; i++ {
		e.loc[i], e.crc[i] = pg.Lookup(i)
	}
	pg.mu.Unlock()
	return nil
}

// reload forgets a clean page, so that the next lookup reads the index.
func (v *Volume) reload(num uint64) {
	pg := v.view.resident(num)
	if pg == nil {
		return
	}
	pg.mu.Lock()
	dropped := pg.dropLocked()
	pg.mu.Unlock()
	if !dropped {
		pg.unpin()
	}
}

// fetch reads the blocks of e into p. It returns the first block whose checksum
// does not match, or -1.
func (p *Pool) fetch(b []byte, first, n int, e *entries) (bad int, err error) {
	for i := first; i < first+n; {
		loc := e.loc[i]
		at := b[(i-first)*blockSize:]
		if !cow.Stored(loc) {
			clear(at[:blockSize])
			i++
			continue
		}
		run := 1
		for i+run < first+n && e.loc[i+run] == loc+uint64(run) && p.space.segment(loc+uint64(run)) == p.space.segment(loc) {
			run++
		}
		if err := p.log.Read(at[:run*blockSize], segment.Loc(loc)); err != nil {
			return i, err
		}
		for k := range run {
			if segment.Checksum(at[k*blockSize:(k+1)*blockSize]) != e.crc[i+k] {
				return i + k, nil
			}
		}
		i += run
	}
	return -1, nil
}

// Extents reports what of the range is allocated (base:allocation): runs of
// blocks that hold data, holes, and charged zeroes.
func (v *Volume) Extents(off, n int64, fn func(off, n int64, hole, zero bool) bool) error {
	if err := v.bounds(off, n); err != nil {
		return err
	}
	m := merger{fn: fn, from: off, to: off + n}
	first, last := uint64(off/blockSize), uint64((off+n+blockSize-1)/blockSize)
	nums, all, err := v.pool.existing(v.view, first/cow.PageBlocks, (last+cow.PageBlocks-1)/cow.PageBlocks)
	if err != nil {
		return err
	}
	var e entries
	next := 0
	for num := first / cow.PageBlocks; num*cow.PageBlocks < last; num++ {
		if !all {
			for next < len(nums) && nums[next] < num {
				next++
			}
			if next == len(nums) {
				m.add(int64(num*cow.PageBlocks)*blockSize, int64(last)*blockSize, true, true)
				break
			}
			if nums[next] > num {
				m.add(int64(num*cow.PageBlocks)*blockSize, int64(nums[next]*cow.PageBlocks)*blockSize, true, true)
				num = nums[next] - 1
				continue
			}
		}
		if err := v.lookup(num, 0, cow.PageBlocks, &e); err != nil {
			return err
		}
		for i := range cow.PageBlocks {
			at := int64(num*cow.PageBlocks+uint64(i)) * blockSize
			if !m.add(at, at+blockSize, e.loc[i] == 0, !cow.Stored(e.loc[i])) {
				return nil
			}
		}
	}
	m.flush()
	return nil
}

// merger joins neighbouring ranges of one kind and cuts them to [from, to).
type merger struct {
	fn         func(off, n int64, hole, zero bool) bool
	from, to   int64
	off, end   int64
	hole, zero bool
	stopped    bool
}

func (m *merger) add(off, end int64, hole, zero bool) bool {
	off, end = max(off, m.from), min(end, m.to)
	if off >= end || m.stopped {
		return !m.stopped
	}
	if m.end == off && m.end > m.off && m.hole == hole && m.zero == zero {
		m.end = end
		return true
	}
	m.flush()
	m.off, m.end, m.hole, m.zero = off, end, hole, zero
	return !m.stopped
}

func (m *merger) flush() {
	if m.end > m.off && !m.stopped {
		m.stopped = !m.fn(m.off, m.end-m.off, m.hole, m.zero)
	}
	m.off, m.end = 0, 0
}
