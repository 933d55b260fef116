package segment

import (
	"fmt"
	"sort"
)

// survey is the first pass of a recovery: it follows the chain of headers to
// its end, and then looks at everything that the chain did not reach, for what
// tells a torn tail from damage. It reads headers only.
type survey struct {
	opts       *Options
	from       Seq
	accept     bool
	candidates []*candidate
	byFirst    map[Seq]*candidate // by the first entry of a segment

	cur    *candidate // that reader has open
	reader blockReader
	h      Header

	runs   []run // the chain, in order
	loose  []loose
	synced Seq // the largest synced mark of any header
	top    Seq // the largest entry of any header
	lost   []SeqRange
	end    chainEnd
}

// candidate is a segment file that may hold records of the chain.
type candidate struct {
	number uint64
	first  Seq  // of its first record, 0 if that is none of ours
	seen   bool // the chain goes through it
}

// run is a part of the chain that lies in one segment.
type run struct {
	c        *candidate
	from, to int // blocks
}

// loose is a record that was found outside of the chain.
type loose struct {
	c     *candidate
	block int
	first Seq
}

// chainEnd is where the chain could not be followed.
type chainEnd struct {
	c     *candidate // nil if there was no beginning
	block int
	want  Seq // the entry that was expected there
	torn  bool
	why   string
}

// open makes reader read from a candidate.
func (s *survey) open(c *candidate) error {
	if s.cur == c {
		return nil
	}
	s.close()
	f, err := s.opts.FS.Open(s.opts.path(c.number))
	if err != nil {
		return fmt.Errorf("recovering segment %s: %w: %w", Name(c.number), ErrRead, err)
	}
	s.cur = c
	s.reader = blockReader{f: f, blocks: s.opts.segmentBlocks(), buf: s.reader.buf}
	return nil
}

func (s *survey) close() {
	if s.cur != nil {
		s.reader.f.Close() // only read from
		s.cur = nil
	}
}

// header reads the header at a block of the open candidate. ours says that it
// is of this pool and epoch, and at its place.
func (s *survey) header(h *Header, c *candidate, block, ahead int) (ours bool, err error) {
	ours, err = s.reader.header(h, s.opts, c.number, block, ahead)
	if !ours || err != nil || h.Epoch != s.opts.Epoch {
		return false, err
	}
	s.synced = max(s.synced, h.Synced)
	s.top = max(s.top, h.Last())
	return true, nil
}

// findChain finds the chain from the record that holds from to its end.
func (s *survey) findChain() error {
	start, err := s.start()
	if err != nil {
		return err
	}
	s.end.want = s.from
	if start != nil {
		if err := s.follow(start, 0, start.first); err != nil {
			return err
		}
	}
	if err := s.findLoose(); err != nil {
		return err
	}
	for {
		next, err := s.beyond()
		if err != nil || next == nil {
			return err
		}
		if err := s.follow(next.c, next.block, next.first); err != nil {
			return err
		}
	}
}

// start reads the first header of each candidate and returns the one that the
// chain begins in: where from is the first entry, or else the one
// that begins last before it.
func (s *survey) start() (*candidate, error) {
	var start *candidate
	for _, c := range s.candidates {
		if err := s.open(c); err != nil {
			return nil, err
		}
		ours, err := s.header(&s.h, c, 0, readOne)
		if err := formatError(c, 0, err); err != nil {
			return nil, err
		}
		if !ours {
			continue
		}
		c.first = s.h.First
		s.byFirst[c.first] = c
		if c.first <= s.from && (start == nil || c.first > start.first) {
			start = c
		}
	}
	return start, nil
}

// formatError is what stops a recovery: an intact header of a format that is
// not known. Whatever else is wrong with a header ends the chain.
func formatError(c *candidate, block int, err error) error {
	if err == nil || !isFormat(err) {
		return nil
	}
	return fmt.Errorf("segment %s at byte %d: %w; use the version of lunar that wrote it", Name(c.number), int64(block)*BlockSize, err)
}

// follow follows the chain from a record, through the segments, as far as it goes.
func (s *survey) follow(c *candidate, block int, want Seq) error {
	for {
		c.seen = true
		if err := s.open(c); err != nil {
			return err
		}
		from, ahead := block, readSome
		s.end.why = "the segment ends"
		for block < s.reader.blocks {
			ours, err := s.header(&s.h, c, block, ahead)
			if err := formatError(c, block, err); err != nil {
				return err
			}
			if err != nil || !ours || s.h.First != want || block+s.h.Blocks() > s.reader.blocks {
				s.end.why = reason(err)
				break
			}
			want = s.h.Last() + 1
			block += s.h.Blocks()
			ahead = aheadOf(&s.h)
		}
		if block > from {
			s.runs = append(s.runs, run{c, from, block})
		}
		s.end.c, s.end.block, s.end.want = c, block, want
		next := s.byFirst[want]
		if next == nil || next.seen {
			return nil
		}
		c, block = next, 0
	}
}

func reason(err error) string {
	if err == nil {
		return "a record is missing"
	}
	return err.Error()
}

// findLoose looks for records that the chain did not reach: behind its end,
// and in all other candidates. There is no structure to follow there, so each
// block is looked at; a header is one only at the place that it names.
func (s *survey) findLoose() error {
	want := s.end.want
	for _, c := range s.candidates {
		block := 0
		if c.seen {
			if c != s.end.c {
				continue
			}
			block = s.end.block
		}
		if err := s.open(c); err != nil {
			return err
		}
		for ; block < s.reader.blocks; block++ {
			ours, err := s.header(&s.h, c, block, readMany)
			if err == nil && ours && s.h.First >= want && block+s.h.Blocks() <= s.reader.blocks {
				s.loose = append(s.loose, loose{c, block, s.h.First})
			}
		}
	}
	sort.SliceStable(s.loose, func(i, j int) bool { return s.loose[i].first < s.loose[j].first })
	return nil
}

// beyond decides what the end of the chain is. Up to the synced mark, and
// up to from (which a checkpoint covers), it is damage:
//
//	| durable ............... from ........ synced | not promised |
//	   damage here is not      damage: an error,      a torn tail
//	   in what is replayed     or go on behind it
//
// It returns the record to go on with, if any.
func (s *survey) beyond() (*loose, error) {
	want := s.end.want
	for len(s.loose) > 0 && s.loose[0].first < want {
		s.loose = s.loose[1:]
	}
	durable := max(s.synced, s.from-1)
	if want > durable {
		if s.end.torn = len(s.loose) > 0; s.end.torn && s.end.c == nil {
			s.end.c = s.loose[0].c // its first records are missing
		}
		return nil, nil
	}
	gap := SeqRange{max(want, s.from), durable}
	var next *loose
	if len(s.loose) > 0 && s.loose[0].first <= durable+1 {
		next = &s.loose[0]
		gap.To = next.first - 1
	}
	if gap.From <= gap.To {
		if !s.accept {
			return nil, s.damage(gap)
		}
		s.lost = append(s.lost, gap)
	}
	return next, nil
}

func (s *survey) damage(gap SeqRange) error {
	e := &CorruptError{From: gap.From, To: gap.To, Why: s.end.why}
	if s.end.c != nil {
		e.Segment, e.Offset = s.end.c.number, int64(s.end.block)*BlockSize
	} else if len(s.loose) > 0 {
		e.Segment, e.Why = s.loose[0].c.number, "the segment's first records are unreadable"
	}
	return e
}
