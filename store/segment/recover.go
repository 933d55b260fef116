package segment

import (
	"errors"
	"fmt"
	"sort"
)

// SeqRange is a range of entries, both ends included.
type SeqRange struct{ From, To Seq }

// Recovered is what Recover found.
type Recovered struct {
	Next         Seq           // larger than every entry seen, torn or behind a tear included
	LastReplayed Seq           // from-1 if there was nothing
	Synced       Seq           // the synced mark: the largest that any header carries
	Segments     []SegmentInfo // that hold replayed records, or lead up to them: to be taken as sealed
	Free         []uint64      // candidates with nothing replayed: reusable unless the caller's maps point into them
	Highest      uint64        // the largest number of any segment file
	Torn         bool          // records behind the end were given up
	TornAt       string        // where
	Lost         []SeqRange    // durable entries that were given up: with acceptLoss only
}

// Replay is what Recover calls for each entry, in order. The entry's checksums
// and payload are valid until it returns. payload is that of a Struct, in its
// exact length.
type Replay func(e Entry, seq Seq, loc Loc, payload []byte) error

// Recover replays the log from entry from on. Segments for which sealed is
// true are left alone: nothing at or behind from is in them.
//
// First everything is made durable and dropped from the page cache, so that
// what is read is what the device holds. Then the chain of records is followed
// by their sequence numbers. It ends at the first record that is missing or
// damaged. If any header says that a later entry was durable, that is a
// CorruptError; otherwise it is a torn tail, which no one was promised. With
// acceptLoss it goes on behind such a gap.
func Recover(opts Options, from Seq, sealed func(number uint64) bool, acceptLoss bool, fn Replay) (Recovered, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return Recovered{}, err
	}
	numbers, err := list(opts)
	if err != nil {
		return Recovered{}, err
	}
	from = max(from, 1)
	s := survey{opts: &opts, from: from, byFirst: map[Seq]*candidate{}, accept: acceptLoss}
	defer s.close()
	for _, n := range numbers {
		if !sealed(n) {
			s.candidates = append(s.candidates, &candidate{number: n})
		}
	}
	if err := s.settle(); err != nil {
		return Recovered{}, err
	}
	if err := s.findChain(); err != nil {
		return Recovered{}, err
	}
	r := replay{survey: &s, fn: fn, used: map[uint64]*SegmentInfo{}, last: from - 1}
	if err := r.run(); err != nil {
		return Recovered{}, err
	}
	got := r.result()
	if len(numbers) > 0 {
		got.Highest = numbers[len(numbers)-1]
	}
	return got, nil
}

// settle makes what a dead process left in the page cache durable, and drops it
// from there. A sync that fails here has lost records, and is not repeated.
func (s *survey) settle() error {
	for _, c := range s.candidates {
		f, err := s.opts.FS.OpenReadWrite(s.opts.path(c.number), fileCategory)
		if err != nil {
			return fmt.Errorf("recovering segment %s: %w", Name(c.number), err)
		}
		err = syncData(f)
		if err == nil {
			err = dropCache(f)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("recovering segment %s: %w: %w", Name(c.number), ErrRead, err)
		}
	}
	if len(s.candidates) == 0 {
		return nil
	}
	return syncFolder(s.opts.FS, s.opts.Dir)
}

// replay is the second pass: it reads the records that the survey found, and
// checks what the first had no need to.
type replay struct {
	*survey
	fn     Replay
	h      Header
	used   map[uint64]*SegmentInfo
	last   Seq // replayed
	torn   bool
	tornAt string
	data   blockReader // payload has a window of its own
	bytes  []byte      // of a Struct
}

func (r *replay) run() error {
	for _, run := range r.runs {
		if err := r.segment(run); err != nil || r.torn {
			return err
		}
	}
	if r.end.torn {
		r.tear(r.end.c, r.end.block, r.end.want)
	}
	return nil
}

// segment replays a run of records.
func (r *replay) segment(run run) error {
	if err := r.open(run.c); err != nil {
		return err
	}
	r.data = blockReader{f: r.reader.f, blocks: r.reader.blocks, buf: r.data.buf}
	ahead := readSome
	for at := run.from; at < run.to; {
		if ours, err := r.header(&r.h, run.c, at, ahead); err != nil || !ours {
			return fmt.Errorf("recovering segment %s: the header at byte %d changed between two reads: %w", Name(run.c.number), int64(at)*BlockSize, errors.Join(ErrRead, err))
		}
		if r.h.Last() >= r.from {
			if err := r.record(run.c, at); err != nil || r.torn {
				return err
			}
			r.last = r.h.Last()
		}
		r.note(run.c, at)
		ahead = aheadOf(&r.h)
		at += r.h.Blocks()
	}
	return nil
}

// note counts a record as held by its segment.
func (r *replay) note(c *candidate, at int) {
	info := r.used[c.number]
	if info == nil {
		info = &SegmentInfo{Number: c.number, First: r.h.First}
		r.used[c.number] = info
	}
	info.Last, info.Blocks = r.h.Last(), at+r.h.Blocks()
	info.PayloadBlocks += r.h.Payload
}

// record replays one record. One that was not durable may have a header that
// reached the disk and payload that did not: it is replayed whole or not at all.
func (r *replay) record(c *candidate, at int) error {
	if r.h.Last() > r.synced && !r.intact(at) {
		r.tear(c, at, r.h.First)
		return nil
	}
	block := at + 1
	for i := range r.h.Entries {
		e := &r.h.Entries[i]
		seq, loc := r.h.First+Seq(i), Loc(0)
		n := e.PayloadBlocks()
		if n > 0 {
			loc = r.opts.loc(c.number, block)
		}
		if seq >= r.from {
			payload, err := r.structure(e, c, block, seq)
			if err != nil {
				return err
			}
			if e.Kind != Struct || payload != nil {
				if err := r.fn(*e, seq, loc, payload); err != nil {
					return err
				}
			}
		}
		block += n
	}
	return nil
}

// structure returns the payload of a Struct; nil for other kinds, and for one
// that is damaged where loss is accepted.
func (r *replay) structure(e *Entry, c *candidate, block int, seq Seq) ([]byte, error) {
	if e.Kind != Struct {
		return nil, nil
	}
	r.bytes = r.bytes[:0]
	for i, crc := range e.CRCs {
		b, err := r.data.block(block+i, len(e.CRCs)-i)
		if err == nil && Checksum(b) == crc {
			r.bytes = append(r.bytes, b...)
			continue
		}
		lost := SeqRange{seq, seq}
		if !r.accept {
			return nil, &CorruptError{Segment: c.number, Offset: int64(block+i) * BlockSize, From: seq, To: seq, Why: "the payload of a structural change is damaged"}
		}
		r.lost = append(r.lost, lost)
		return nil, nil
	}
	return r.bytes[:e.Block], nil
}

// intact verifies the payload of a whole record.
func (r *replay) intact(at int) bool {
	block := at + 1
	for i := range r.h.Entries {
		for _, crc := range r.h.Entries[i].CRCs {
			b, err := r.data.block(block, min(readMany, at+r.h.Blocks()-block))
			if err != nil || Checksum(b) != crc {
				return false
			}
			block++
		}
	}
	return true
}

func (r *replay) tear(c *candidate, block int, want Seq) {
	r.torn = true
	r.tornAt = fmt.Sprintf("segment %s at byte %d: entries from %d on", Name(c.number), int64(block)*BlockSize, want)
}

func (r *replay) result() Recovered {
	got := Recovered{
		Next: max(r.top+1, r.from, r.synced+1), LastReplayed: r.last, Synced: r.synced,
		Torn: r.torn, TornAt: r.tornAt, Lost: r.lost,
	}
	for _, c := range r.candidates {
		if info := r.used[c.number]; info != nil {
			got.Segments = append(got.Segments, *info)
		} else {
			got.Free = append(got.Free, c.number)
		}
	}
	sort.Slice(got.Segments, func(i, j int) bool { return got.Segments[i].First < got.Segments[j].First })
	return got
}
