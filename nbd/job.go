package nbd

import "sync"

// job is a request that a goroutine carries out, with what it holds for it. The
// reader has one, and takes it along when it leaves its role for a request.
type job struct {
	request
	s        *session
	payload  []byte
	owned    bool   // payload is from Device.Buffer, to be handed over
	frame    *frame // payload, or a large reply
	taken    int64  // from the budgets
	contexts uint64 // of BLOCK_STATUS
	arrivals uint64 // session.arrivals when the role was passed on
	followed bool   // more had arrived by then
	waits    bool   // for space or its turn
}

// take takes memory from both budgets, or from none.
func (j *job) take(n int64) bool {
	if !j.s.memory.take(n) {
		return false
	}
	if !j.s.conn.srv.memory.take(n) {
		j.s.memory.give(n)
		return false
	}
	j.taken += n
	return true
}

// free gives back what the job still holds.
func (j *job) free() {
	if j.owned && j.payload != nil {
		j.s.device.Discard(j.payload)
	}
	j.payload, j.owned = nil, false
	if j.frame != nil {
		j.frame.free()
		j.frame = nil
	}
	if j.taken > 0 {
		j.s.memory.give(j.taken)
		j.s.conn.srv.memory.give(j.taken)
		j.taken = 0
	}
}

// handOver is the payload for Device.WriteOwned, which takes it in every outcome.
func (j *job) handOver() []byte {
	p := j.payload
	j.payload, j.owned = nil, false
	return p
}

// blocking carries out a request that may block: on this goroutine, which leaves
// the reader's role to another, or in line where that is better.
func (s *session) blocking(j *job) error {
	if s.alone() || int(s.blocked.Load()-s.waiting.Load()) >= s.conn.srv.opts.Workers {
		return s.blockInline(j)
	}
	return s.passOn(j, false)
}

// passOn carries a request out on this goroutine, and another one becomes the
// reader. Of those that wait for space there can be as many as there is memory
// for; what they hold bounds them.
func (s *session) passOn(j *job, waits bool) error {
	if j.waits = waits; waits {
		s.waiting.Add(1)
	}
	j.arrivals, j.followed = s.arrivals.Load(), s.in.buffered() > 0
	s.blocked.Add(1)
	s.readers.Add(1)
	go s.read()
	return errPassedOn
}

// alone reports that this client sends nothing behind a request that blocks, so
// that handing the reader's role on would only cost.
func (s *session) alone() bool {
	return s.in.raw != nil && s.lonely.Load() >= lonelyEnough && s.in.buffered() == 0
}

// blockInline carries out a blocking request as the reader, and finds out
// whether that held anything up.
func (s *session) blockInline(j *job) error {
	if err := s.flush(); err != nil {
		return err
	}
	err := j.inline()
	if s.in.raw != nil && s.in.buffered() == 0 {
		s.noteLonely(!s.in.lookAhead())
	}
	return err
}

func (s *session) noteLonely(nothingCame bool) {
	if !nothingCame {
		s.lonely.Store(0)
	} else if s.lonely.Load() < lonelyEnough {
		s.lonely.Add(1)
	}
}

// inline carries out the job as the reader.
func (j *job) inline() error {
	defer j.free()
	switch j.typ {
	case cmdRead:
		return j.sendRead()
	case cmdBlockStatus:
		return j.sendStatus()
	}
	if err := j.s.makeRoom(maxShortReply); err != nil {
		return err
	}
	j.execute(&j.s.batch)
	return nil
}

var shortReplies = sync.Pool{New: func() any { return new([maxShortReply]byte) }}

// run carries out the job on a goroutine of its own. An error of the connection
// shows at the reader as well.
func (j *job) run() {
	switch j.typ {
	case cmdRead:
		_ = j.sendRead()
		return
	case cmdBlockStatus:
		_ = j.sendStatus()
		return
	}
	buf := shortReplies.Get().(*[maxShortReply]byte)
	defer shortReplies.Put(buf)
	out := batch{buf: buf[:]}
	j.execute(&out)
	j.s.settle(&out)
	_ = j.s.sendAll(out.take())
}

// execute carries out what has a short reply.
func (j *job) execute(out *batch) {
	if j.typ == cmdWrite && j.owned {
		err := j.s.device.WriteOwned(j.handOver(), int64(j.offset), j.flags&cmdFlagFUA != 0)
		j.s.putResult(out, &j.request, err)
		return
	}
	j.s.execute(&j.request, j.payload, out)
}
