package nbd

import "syscall"

// execute carries out a request that was validated, and collects its reply;
// payload is what came with it. A READ is at most smallRead here.
func (s *session) execute(r *request, payload []byte, out *batch) {
	fua := r.flags&cmdFlagFUA != 0
	off, n := int64(r.offset), int64(r.length)
	var err error
	switch {
	case r.typ == cmdFlush:
		err = s.device.Flush()
	case n == 0: // left open by the protocol: nothing to do, and no error
	case r.typ == cmdRead:
		s.readSmall(r, out)
		return
	case r.typ == cmdWrite:
		err = s.device.WriteAt(payload, off, fua)
	case r.typ == cmdTrim:
		err = s.device.Trim(off, n, fua)
	case r.typ == cmdWriteZeroes:
		if r.flags&cmdFlagFastZero != 0 && !s.device.(FastZeroer).FastZero(off, n) { // offered, so it is one
			err = syscall.ENOTSUP
			break
		}
		err = s.device.Zero(off, n, r.flags&cmdFlagNoHole != 0, fua)
	case r.typ == cmdCache:
		err = s.prefetch(off, n)
	}
	s.putResult(out, r, err)
}

// readSmall reads to where the reply is sent from.
func (s *session) readSmall(r *request, out *batch) {
	h, n := s.dataHeader(), int(r.length)
	p := out.room(h + n)
	if err := s.device.ReadAt(p[h:], int64(r.offset)); err != nil {
		out.n -= h + n
		s.putError(out, r, replyErrno(r, err), err.Error())
		return
	}
	s.putDataHeader(p, r, replyFlagDone, r.offset, n)
}

// prefetch carries out CACHE. A device that has no way of its own is read; the
// request is a hint, so that the first part of a large one is enough.
func (s *session) prefetch(off, n int64) error {
	if p, ok := s.device.(Prefetcher); ok {
		return p.Prefetch(off, n)
	}
	f := newFrame(piece)
	defer f.free()
	for n = min(n, maxPayload); n > 0; {
		p := f.data(int(min(n, piece)))
		if err := s.device.ReadAt(p, off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}
