package nbd

// extents is what one chunk of BLOCK_STATUS tells; neighbours of equal state are
// one. It ends where the request does: what lies behind was not asked for.
type extents struct {
	p        []byte // descriptors as they are sent
	extended bool
	at, end  int64
	limit    int // descriptors
	count    int
	length   int64 // of the last one
	state    uint32
}

// add takes the next extent and reports whether to go on. What does not follow
// on what came before, or is empty, ends the list rather than spoil it.
func (e *extents) add(off, n int64, state uint32) bool {
	if off != e.at || n <= 0 {
		return false
	}
	n = min(n, e.end-e.at)
	switch {
	case e.count > 0 && e.state == state:
		e.length += n
		e.p = e.p[:len(e.p)-e.size()]
	case e.count == e.limit:
		return false
	default:
		e.length, e.state = n, state
		e.count++
	}
	if e.extended {
		e.p = be.AppendUint64(e.p, uint64(e.length))
		e.p = be.AppendUint64(e.p, uint64(state))
	} else {
		e.p = be.AppendUint32(e.p, uint32(e.length))
		e.p = be.AppendUint32(e.p, state)
	}
	e.at += n
	return e.at < e.end
}

func (e *extents) size() int {
	if e.extended {
		return 16
	}
	return 8
}

// blockStatus carries out BLOCK_STATUS; n bytes of payload follow.
func (s *session) blockStatus(j *job, n int) error {
	j.contexts = 1<<len(s.contexts) - 1
	if n > 0 {
		p, err := s.receivePayload(n)
		if err != nil {
			return err
		}
		selected, why, ok := s.effect(&j.request, p)
		s.in.skip(n)
		if ok {
			why, ok = validateRange(&j.request, uint64(s.device.Size()))
		}
		if !ok {
			return s.refuse(&j.request, why, 0)
		}
		j.contexts = selected
	}
	return s.blocking(j)
}

// sendStatus sends a chunk for each context.
func (j *job) sendStatus() error {
	limit := maxBlockStatusExtent
	if !j.take(int64(limit) * 16) {
		limit = 1024
	}
	for id, c := range j.s.contexts {
		if j.contexts&(1<<id) == 0 {
			continue
		}
		j.contexts &^= 1 << id
		p, err := j.statusChunk(uint32(id+1), c, limit)
		if err != nil {
			return j.sendError(err)
		}
		if err := j.s.sendAll(p); err != nil {
			return err
		}
	}
	return nil
}

// statusChunk makes the chunk for one context; it is the last one when no bit
// of contexts is left.
func (j *job) statusChunk(id uint32, c metaContext, limit int) ([]byte, error) {
	s := j.s
	if j.flags&cmdFlagReqOne != 0 {
		limit = 1
	}
	head := s.chunkHeader() + 4
	if s.extended {
		head += 4
	}
	e := &extents{
		p: make([]byte, head, head+64), extended: s.extended, limit: limit,
		at: int64(j.offset), end: int64(j.offset + j.length),
	}
	if err := s.query(e, c); err != nil {
		return nil, err
	}
	if e.count == 0 { // proto.md: a state of 0 is always safe to report
		e.add(e.at, e.end-e.at, 0)
	}
	flags := uint16(0)
	if j.contexts == 0 {
		flags = replyFlagDone
	}
	typ := chunkBlockStatus
	if s.extended {
		typ = chunkBlockStatusExt
	}
	h := s.putChunk(e.p, &j.request, flags, typ, len(e.p)-s.chunkHeader())
	be.PutUint32(e.p[h:], id)
	if s.extended {
		be.PutUint32(e.p[h+4:], uint32(e.count))
	}
	return e.p, nil
}

// query asks the device.
func (s *session) query(e *extents, c metaContext) error {
	off, n := e.at, e.end-e.at
	if c.since == "" {
		return s.device.Extents(off, n, func(off, n int64, hole, zero bool) bool {
			var state uint32
			if hole {
				state |= stateHole
			}
			if zero {
				state |= stateZero
			}
			return e.add(off, n, state)
		})
	}
	return s.changes.Changed(c.since, off, n, func(off, n int64, changed bool) bool {
		if changed {
			return e.add(off, n, stateDirty)
		}
		return e.add(off, n, 0)
	})
}
