package segment

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Visit is what a scan calls for each header, in order, with its offset in the
// file. The header is valid until it returns.
type Visit func(h *Header, at int64) error

// Scan reports the headers of a sealed segment. It ends where the records of
// one epoch end. For a segment that this log sealed, an end before its last
// record is a CorruptError; for others the caller knows how much it expects.
func (l *Log) Scan(number uint64, fn Visit) error {
	if l.isLive(number) {
		return invalid("scan of segment %s, which is in use", Name(number))
	}
	if l.closed.Load() {
		return ErrClosed
	}
	hd, err := l.handle(number)
	if err != nil {
		return err
	}
	defer hd.release()
	end, last, err := scanFile(&l.opts, hd.f, number, fn)
	if err != nil {
		return err
	}
	if info, ok := l.Sealed(number); ok && end < info.Blocks {
		return &CorruptError{Segment: number, Offset: int64(end) * BlockSize, From: max(last+1, info.First), To: info.Last, Why: "a header is unreadable"}
	}
	return nil
}

// ScanFile is Log.Scan for a file that no log has open: for a look at what is
// left of a pool whose index is lost.
func ScanFile(opts Options, number uint64, fn Visit) error {
	opts, err := opts.withDefaults()
	if err != nil {
		return err
	}
	f, err := opts.FS.Open(opts.path(number))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRead, err)
	}
	defer f.Close()
	_, _, err = scanFile(&opts, f, number, fn)
	return err
}

// scanFile follows the records from block 0 on, and says where they end.
func scanFile(opts *Options, f vfs.File, number uint64, fn Visit) (end int, last Seq, err error) {
	r := blockReader{f: f, blocks: opts.segmentBlocks()}
	var h Header
	var epoch uint64
	for ahead := readSome; end < r.blocks; ahead = aheadOf(&h) {
		ours, err := r.header(&h, opts, number, end, ahead)
		if err != nil && !isBadHeader(err) {
			return end, last, err
		}
		if err != nil || !ours || end > 0 && (h.Epoch != epoch || h.First != last+1) {
			break
		}
		if err := fn(&h, int64(end)*BlockSize); err != nil {
			return end, last, err
		}
		epoch, last = h.Epoch, h.Last()
		end += h.Blocks()
	}
	return end, last, nil
}

// Segments lists the numbers of the segment files there are, in order.
func Segments(opts Options) ([]uint64, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	return list(opts)
}
