package lun

import "lunar/cow"

// windowBlocks is the part of a page that is put together as a whole: 256 KiB, so
// that a read of 1 MiB then takes a handful of runs.
const windowBlocks = 64

// window is a part of a page that is worth putting together.
type window struct{ from, stored int }

// scattered plans which parts of a page are put together, from the locations of its
// blocks. least is how many breaks a window must have: places where a block is not stored
// behind the one before it, although both are stored. The rule bounds what it costs:
// since an overwrite makes two breaks at most, 2 x windowBlocks/least blocks at
// most are copied for each block that was written.
func scattered(loc *[cow.PageBlocks]uint64, least int, out []window) []window {
	for from := 0; from < cow.PageBlocks; from += windowBlocks {
		part := loc[from : from+windowBlocks]
		breaks, before := 0, part[0]
		for _, l := range part[1:] {
			if l != before+1 && cow.Stored(l) && cow.Stored(before) {
				breaks++
			}
			before = l
		}
		if breaks < least {
			continue
		}
		w := window{from: from}
		for _, l := range part {
			if cow.Stored(l) {
				w.stored++
			}
		}
		out = append(out, w)
	}
	return out
}

// leastBreaks is the least of scattered: four, beside those that a copy has itself
// where a record or a segment ends in it. So what was put together once is not
// scattered by this measure.
func leastBreaks(recordBlocks, segmentBlocks int) int {
	if recordBlocks == 0 {
		recordBlocks = 256
	}
	return 4 + windowBlocks/min(recordBlocks, segmentBlocks-1)
}

// copiesPerWrite bounds what is put together: so many blocks for each that clients
// wrote, beside once what the pool held when it was opened.
const copiesPerWrite = 4

// defragBudget is how many blocks may be put together now: what is allowed and not
// yet spent, and of the segments above the high mark half, since the originals come
// back only with a checkpoint.
func defragBudget(held, written, spent int64, available, high, segmentBlocks int) int64 {
	allowed := held + copiesPerWrite*written - spent
	room := int64(available-high) / 2 * int64(segmentBlocks)
	return max(min(allowed, room), 0)
}
