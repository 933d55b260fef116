package lun

import (
	"lunar/cow"
	"lunar/store/segment"
)

// maxPrefetch bounds what one call reads ahead, in bytes: it is advice, and must
// not push everybody else's blocks out of memory.
const maxPrefetch = 32 << 20

// Prefetch has the maps of a range in memory, and tells the system that its
// blocks will be read soon. It does not wait for them.
func (v *Volume) Prefetch(off, n int64) error {
	if err := v.bounds(off, n); err != nil || n == 0 {
		return err
	}
	n = min(n, maxPrefetch)
	e := entryPool.Get().(*entries)
	defer entryPool.Put(e)
	phase := v.pool.grace.enter(v.shard)
	defer v.pool.grace.leave(v.shard, phase)
	for block, last := uint64(off/blockSize), uint64((off+n-1)/blockSize); block <= last; {
		first := int(block % cow.PageBlocks)
		count := min(cow.PageBlocks-first, int(last-block)+1)
		if err := v.lookup(block/cow.PageBlocks, first, count, e); err != nil {
			return err
		}
		v.pool.prefetch(e.loc[first : first+count])
		block += uint64(count)
	}
	return nil
}

// prefetch reads ahead the blocks at these locations.
func (p *Pool) prefetch(locs []uint64) {
	for i := 0; i < len(locs); {
		run := 1
		if cow.Stored(locs[i]) {
			for i+run < len(locs) && locs[i+run] == locs[i]+uint64(run) && p.space.segment(locs[i+run]) == p.space.segment(locs[i]) {
				run++
			}
			p.log.Prefetch(segment.Loc(locs[i]), run)
		}
		i += run
	}
}
