package segment

import (
	"errors"
	"slices"
)

var errReadOnly = errors.New("opened for reading only")

// OpenRead opens the segments of a pool for Read and Scan alone. Nothing is
// made or changed; Append and Sync fail with ErrFailed.
func OpenRead(opts Options) (*Log, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Log{
		opts: opts, blocks: opts.segmentBlocks(), bufs: opts.Buffers, handles: newHandleTable(opts.MaxOpen), next: 1,
		sealed: map[uint64]SegmentInfo{}, releasing: map[uint64]bool{},
		kickWriter: make(chan struct{}, 1), kickKeeper: make(chan struct{}, 1), kickFinisher: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	l.liveSet.Store(&[]*openSegment{})
	l.group.cond.L = &l.group.mu
	l.failed.Store(&failure{doing: "opening", cause: errReadOnly})
	return l, nil
}

// Whole says whether the file of a segment is known to have all of its space, so
// that nothing in it is a hole.
func Whole(opts Options, number uint64) bool {
	opts, err := opts.withDefaults()
	if err != nil {
		return false
	}
	f, err := opts.FS.Open(opts.path(number))
	if err != nil {
		return false
	}
	defer f.Close()
	return allocated(f, opts.SegmentBytes)
}

// DropSpares removes the files of free segments but keep of them: those that were
// freed last, which are the likeliest to be cached.
func (l *Log) DropSpares(keep int) error {
	l.mu.Lock()
	n := max(len(l.free)-keep, 0)
	free := slices.Clone(l.free[:n])
	l.free = slices.Delete(l.free, 0, n)
	for _, n := range free {
		l.releasing[n] = true
	}
	l.mu.Unlock()
	var errs []error
	for _, n := range free {
		err := l.releaseFile(n, true, true)
		errs = append(errs, err)
		l.mu.Lock()
		delete(l.releasing, n)
		if err == nil {
			l.files--
		} else {
			l.free = append(l.free, n)
		}
		l.noteAvailableLocked()
		l.mu.Unlock()
	}
	return errors.Join(errs...)
}
