package lun

import "time"

// errWouldWait says that a write has to wait for space, the cleaner or its turn.
// It never leaves the package.
var errWouldWait = Errorf(ErrRefused, "the write would wait")

// slowFor is for how long after a write was held back the next ones are expected to be.
const slowFor = 100 * time.Millisecond

// TryWrite is WriteAt, or WriteOwned, without FUA for a caller that must not
// wait: where that would, nothing happens, p stays the caller's, and done is false.
func (v *Volume) TryWrite(p []byte, off int64, owned bool) (done bool, err error) {
	if until := v.view.slow.Load(); until != 0 && time.Now().UnixNano() < until {
		return false, nil
	}
	if err := v.mayWrite(off, int64(len(p))); err != nil || len(p) == 0 {
		if owned {
			v.Discard(p)
		}
		return true, err
	}
	w := writePool.Get().(*writeOp)
	defer w.release()
	w.v, w.now = v, true
	if off%blockSize == 0 && len(p)%blockSize == 0 {
		err = w.blocks(p, uint64(off/blockSize), owned)
	} else if err = w.partial(p, off); owned && err != errWouldWait {
		v.Discard(p)
	}
	if err == errWouldWait {
		return false, nil
	}
	return true, err
}

// roomNow takes memory and log room for a write if there is enough of both for
// everybody, and says whether it did.
func (p *Pool) roomNow(blocks, entries int) bool {
	if p.appended.Load() > 2*checkpointBytes/blockSize || p.entries.Load() > 2*checkpointEntries || p.overlayFull() || p.pressure() > 0 {
		return false
	}
	return p.log.Admit(noWait, blocks, entries) == nil
}
