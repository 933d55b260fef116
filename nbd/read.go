package nbd

// maxSpans bounds the chunks of one reply to READ; their headers fit the page
// that a frame has to spare.
const maxSpans = 64

// minHole is the least number of zeroes that is worth a chunk of its own.
const minHole = preferredBlock

// span is a part of a READ.
type span struct {
	off, n int64
	zero   bool
}

// largeRead carries out a READ whose reply is sent by itself.
func (s *session) largeRead(j *job) error {
	n := int(j.length)
	if !j.take(int64(n)) {
		if err := s.flush(); err != nil {
			return err
		}
		if s.structured && j.flags&cmdFlagDF == 0 {
			return s.readChunks(j)
		}
		return s.readStream(j)
	}
	j.frame = newFrame(n)
	return s.blocking(j)
}

// sendRead reads into the job's frame and sends it, header and data at once.
func (j *job) sendRead() error {
	s, n := j.s, int(j.length)
	if s.structured && j.flags&cmdFlagDF == 0 {
		if spans := j.spans(); len(spans) > 1 || len(spans) == 1 && spans[0].zero {
			return j.sendSpans(spans)
		}
	}
	if err := s.device.ReadAt(j.frame.data(n), int64(j.offset)); err != nil {
		return j.sendError(err)
	}
	h := s.dataHeader()
	p := j.frame.from(h, n)
	s.putDataHeader(p, &j.request, replyFlagDone, j.offset, n)
	return s.sendAll(p)
}

// sendError sends an error by itself.
func (j *job) sendError(err error) error {
	buf := shortReplies.Get().(*[maxShortReply]byte)
	defer shortReplies.Put(buf)
	out := batch{buf: buf[:]}
	j.s.putError(&out, &j.request, replyErrno(&j.request, err), err.Error())
	return j.s.sendAll(out.take())
}

// spans divides a READ into data and holes. A device that does not say is data.
func (j *job) spans() []span {
	list := make([]span, 0, 4)
	at, end := int64(j.offset), int64(j.offset+j.length)
	err := j.s.device.Extents(at, end-at, func(off, n int64, _, zero bool) bool {
		stop := min(off+n, end)
		if off != at || stop <= at {
			return false
		}
		n = stop - at
		zero = zero && n >= minHole
		if last := len(list) - 1; last >= 0 && list[last].zero == zero {
			list[last].n += n
		} else {
			list = append(list, span{at, n, zero})
		}
		at = stop
		return at < end && len(list) < maxSpans-1
	})
	if err != nil {
		return nil
	}
	if last := len(list) - 1; at < end && last >= 0 && !list[last].zero {
		list[last].n += end - at
	} else if at < end {
		list = append(list, span{at, end - at, false})
	}
	return list
}

// sendSpans sends a READ as data and holes, all chunks at once.
func (j *job) sendSpans(spans []span) error {
	s, p, used := j.s, j.frame.all, 0
	for i, sp := range spans {
		flags := uint16(0)
		if i == len(spans)-1 {
			flags = replyFlagDone
		}
		if sp.zero {
			used += s.putHole(p[used:], &j.request, flags, uint64(sp.off), int(sp.n))
			continue
		}
		h := s.dataHeader()
		if err := s.device.ReadAt(p[used+h:used+h+int(sp.n)], sp.off); err != nil {
			return j.sendError(err) // nothing was sent yet
		}
		s.putDataHeader(p[used:], &j.request, flags, uint64(sp.off), int(sp.n))
		used += h + int(sp.n)
	}
	return s.sendAll(p[:used])
}

// readChunks carries out a READ that found no memory, as many small chunks, each
// through the buffer for replies.
func (s *session) readChunks(j *job) error {
	h := s.dataHeader()
	for off, left := j.offset, int(j.length); left > 0; {
		n := min(left, piece)
		p := s.batch.room(h + n)
		if err := s.device.ReadAt(p[h:], int64(off)); err != nil {
			s.batch.n -= h + n
			s.putError(&s.batch, &j.request, replyErrno(&j.request, err), err.Error())
			return s.flush()
		}
		flags := uint16(0)
		if left == n {
			flags = replyFlagDone
		}
		s.putDataHeader(p, &j.request, flags, off, n)
		if err := s.flush(); err != nil {
			return err
		}
		off, left = off+uint64(n), left-n
	}
	return nil
}

// readStream carries out a READ that found no memory and may not be cut into
// chunks: the header first, then the data piece by piece. An error in the first
// piece is a plain error; later, a chunk is completed with zeroes and followed
// by the error, and a simple reply, which cannot take anything back, ends the
// connection.
func (s *session) readStream(j *job) error {
	s.send.Lock()
	defer s.send.Unlock()
	var failed error
	sent := false
	for off, left, h := j.offset, int(j.length), s.dataHeader(); left > 0; h, sent = 0, true {
		n := min(left, piece)
		p := s.batch.room(h + n)
		if failed == nil {
			failed = s.device.ReadAt(p[h:], int64(off))
		}
		if failed != nil {
			if !sent || !s.structured {
				break
			}
			clear(p)
		}
		if !sent {
			s.putDataHeader(p, &j.request, 0, off, int(j.length))
		}
		if err := s.sendLocked(s.batch.take()); err != nil {
			return err
		}
		off, left = off+uint64(n), left-n
	}
	s.batch.n = 0
	switch {
	case failed != nil && sent && !s.structured:
		return failed
	case failed != nil:
		s.putError(&s.batch, &j.request, replyErrno(&j.request, failed), failed.Error())
	case s.structured:
		s.putAck(&s.batch, &j.request)
	default:
		return nil
	}
	return s.sendLocked(s.batch.take())
}
