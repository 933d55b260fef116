package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
)

// Sizes that decide how a request is carried out.
const (
	// smallPayload and less is written straight from the read buffer; more is
	// received into a buffer of its own.
	smallPayload = 64 << 10
	// smallRead and less is collected with other replies; more gets a frame.
	smallRead = 64 << 10
	// smallErase and less is trimmed or zeroed in line; more may take long.
	smallErase = 64 << 20
	// piece is what a request that found no memory is carried out in.
	piece = 64 << 10
	// waiterMemory is what a small WRITE with a goroutine of its own counts beside its
	// payload, so that memory bounds how many there can be.
	waiterMemory = 16 << 10
	// lonelyEnough requests that blocked while nothing else came make a client
	// one that sends nothing behind them.
	lonelyEnough = 8
)

// errDisconnect ends a transmission as the client asked for.
var errDisconnect = errors.New("client disconnected")

// session is the transmission phase of one connection.
//
// One goroutine at a time is its reader: it owns in, batch and what is not
// marked otherwise. A reader that meets a request which may block passes the
// role on to a new goroutine and carries the request out itself, so that neither
// waits for the other.
type session struct {
	conn   *conn
	device Device
	terms
	changes  ChangeReporter // nil when the device is none
	throttle Throttler      // the same
	try      TryWriter      // the same
	settler  Settler        // the same
	header   int            // size of a request header

	in      *input
	batch   batch
	pending int  // requests executed since the last receive
	depth   int  // how many requests came at a time lately, decaying
	bulk    bool // the last request brought a large payload

	// Of all goroutines.
	send     sync.Mutex // held over whole replies
	memory   budget
	blocked  atomic.Int32  // requests that have a goroutine to themselves, of which
	waiting  atomic.Int32  // so many wait for space or their turn, and count for no worker
	arrivals atomic.Uint64 // receives
	lonely   atomic.Int32  // blocking requests in a row behind which nothing came
	readers  sync.WaitGroup
	ended    chan struct{} // closed by the last reader
	end      error         // why it ended; set before ended is closed
}

func newSession(c *conn, a agreed) *session {
	s := &session{conn: c, device: a.device, terms: a.terms, ended: make(chan struct{})}
	s.changes, _ = a.device.(ChangeReporter)
	s.throttle, _ = a.device.(Throttler)
	s.try, _ = a.device.(TryWriter)
	s.settler, _ = a.device.(Settler)
	s.header = s.headerSize()
	s.in = newInput(c.nc, c.srv.opts.SpinTime, &c.srv.spinners)
	s.memory.free.Store(c.srv.opts.MemoryPerConnection)
	return s
}

// serve runs the session and returns when nothing of it is left.
func (s *session) serve() error {
	s.readers.Add(1)
	s.read()
	<-s.ended
	s.readers.Wait()
	s.in.drop()
	s.batch.free()
	return s.end
}

// read is a goroutine's time as the reader, and after it the blocking request,
// if any, for which it passed the role on.
func (s *session) read() {
	defer s.readers.Done()
	j := job{s: s}
	reading := true
	defer func() {
		if p := recover(); p != nil {
			s.conn.recovered(p)
			if reading {
				s.end = fmt.Errorf("panic: %v", p)
				close(s.ended)
			}
		}
		j.free()
	}()
	err := s.requests(&j)
	if reading = !errors.Is(err, errPassedOn); reading {
		if flushErr := s.flush(); flushErr != nil && (err == nil || errors.Is(err, io.EOF)) {
			err = flushErr
		}
		s.end = s.outcome(err)
		reading = false
		close(s.ended)
		return
	}
	j.run()
	s.blocked.Add(-1)
	if j.waits {
		s.waiting.Add(-1)
	}
	s.noteLonely(!j.followed && s.arrivals.Load() == j.arrivals)
}

// outcome tells why a transmission ended; nil is the client's wish.
func (s *session) outcome(err error) error {
	switch {
	case errors.Is(err, errDisconnect), errors.Is(err, io.EOF):
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded) && s.conn.isClosing():
		return errors.New("closed by the server")
	case errors.Is(err, net.ErrClosed):
		return errors.New("connection closed")
	}
	return err
}

// errPassedOn is not an error: the goroutine is no longer the reader.
var errPassedOn = errors.New("reader passed on")

// requests reads and executes until the connection ends or j is a request that
// this goroutine has left the reader's role for.
func (s *session) requests(j *job) error {
	for {
		if s.in.buffered() < s.header {
			if err := s.receive(s.header); err != nil {
				return err
			}
		}
		var ok bool
		if j.request, ok = parseRequest(s.in.peek(s.header), s.extended); !ok {
			return fmt.Errorf("bad magic %#x before a request", be.Uint32(s.in.peek(4)))
		}
		s.in.skip(s.header)
		s.pending++
		if err := s.one(j); err != nil {
			return err
		}
	}
}

// receive waits until n bytes are there. What was executed so far is answered
// before, as the client may be waiting for that.
func (s *session) receive(n int) error {
	if err := s.flush(); err != nil {
		return err
	}
	s.batch.free()
	s.depth = max(s.depth-1, s.pending)
	s.in.single = s.depth <= 1 && s.blocked.Load() == 0
	s.pending = 0
	limit := inputSize
	if s.bulk { // the next payload is large too, and should not pass through the buffer
		limit, s.bulk = n, false
	}
	err := s.in.fill(n, limit)
	s.arrivals.Add(1)
	return err
}

// one carries out one request, its payload not yet read.
func (s *session) one(j *job) error {
	j.payload, j.owned = nil, false
	n := j.payloadLen(s.extended)
	why, ok := s.validate(&j.request, uint64(s.device.Size()))
	if j.typ == cmdDisc {
		return errDisconnect
	}
	if !ok {
		if n > s.drainable() {
			return fmt.Errorf("payload of %d bytes", n)
		}
		return s.refuse(&j.request, why, n)
	}
	if s.throttle != nil {
		if err := s.throttled(&j.request); err != nil {
			return err
		}
	}
	switch {
	case j.typ == cmdRead && j.length > smallRead:
		return s.largeRead(j)
	case j.typ == cmdWrite:
		return s.write(j)
	case j.typ == cmdBlockStatus:
		return s.blockStatus(j, int(n))
	case j.typ == cmdFlush, j.typ == cmdCache, j.flags&cmdFlagFUA != 0 && j.typ != cmdRead, erases(j.typ) && j.length > smallErase:
		return s.blocking(j)
	case s.try != nil && (j.typ == cmdTrim || j.typ == cmdWriteZeroes) && j.take(waiterMemory):
		return s.passOn(j, true) // they may wait for space as well
	}
	return s.short(j, nil)
}

// throttled waits until the device's limits let a request begin, with everything
// sent that the client may be waiting for. A connection that is being closed
// does not wait: it answers what it has read at once.
func (s *session) throttled(r *request) error {
	n := 0
	switch r.typ {
	case cmdRead, cmdWrite:
		n = int(r.length)
	case cmdCache:
		n = int(min(r.length, maxPayload))
	}
	if s.throttle.Admit(n) {
		return nil
	}
	if err := s.flush(); err != nil {
		return err
	}
	s.throttle.Wait(s.conn.ctx, n)
	return nil
}

// refuse answers a request that was not carried out, and skips its payload.
func (s *session) refuse(r *request, why refusal, payload uint64) error {
	if payload > 0 {
		if err := s.discard(payload); err != nil {
			return err
		}
	}
	if err := s.makeRoom(maxShortReply); err != nil {
		return err
	}
	s.putError(&s.batch, r, why.code, why.text)
	return nil
}

// discard skips input; replies do not wait for it.
func (s *session) discard(n uint64) error {
	if n > uint64(s.in.buffered()) {
		if err := s.flush(); err != nil {
			return err
		}
	}
	return s.in.discard(n)
}

// receivePayload has n bytes of a payload in the read buffer.
func (s *session) receivePayload(n int) ([]byte, error) {
	if s.in.buffered() < n {
		pending := s.pending
		if err := s.receive(n); err != nil {
			return nil, err
		}
		s.pending = pending
	}
	return s.in.peek(n), nil
}

// write carries out a WRITE.
func (s *session) write(j *job) error {
	n := int(j.length)
	if n > smallPayload {
		return s.largeWrite(j, n)
	}
	if n == 0 {
		return s.short(j, nil)
	}
	p, err := s.receivePayload(n)
	if err != nil {
		return err
	}
	fua := j.flags&cmdFlagFUA != 0
	if !fua && s.try != nil {
		done, err := s.tried(j, p)
		if done {
			s.in.skip(n)
			return err
		}
	}
	if !fua && s.try == nil || !j.take(int64(n)+waiterMemory) {
		err = s.short(j, p)
		s.in.skip(n)
		return err
	}
	// The payload leaves the read buffer, which somebody else may be about to use.
	j.frame = newFrame(n)
	j.payload = j.frame.data(n)
	copy(j.payload, p)
	s.in.skip(n)
	if !fua {
		return s.passOn(j, true)
	}
	return s.blocking(j)
}

// tried carries out a WRITE of p as the reader, if that need not wait.
func (s *session) tried(j *job, p []byte) (done bool, err error) {
	if err := s.makeRoom(maxShortReply); err != nil {
		return true, err
	}
	done, failed := s.try.TryWrite(p, int64(j.offset), j.owned)
	if done {
		s.putResult(&s.batch, &j.request, failed)
	}
	return done, nil
}

// largeWrite carries out a WRITE whose payload is received where it is to stay.
func (s *session) largeWrite(j *job, n int) error {
	if err := s.flush(); err != nil {
		return err
	}
	if !j.take(int64(n)) {
		return s.writePieces(j)
	}
	if j.owned = j.offset%preferredBlock == 0 && n%preferredBlock == 0; j.owned {
		j.payload = s.device.Buffer(n)
	} else {
		j.frame = newFrame(n)
		j.payload = j.frame.data(n)
	}
	s.bulk = true
	if err := s.in.readFull(j.payload); err != nil {
		return err
	}
	s.arrivals.Add(1)
	if j.flags&cmdFlagFUA != 0 {
		return s.blocking(j)
	}
	if s.try == nil {
		return j.inline()
	}
	done, err := s.tried(j, j.payload)
	if !done {
		return s.passOn(j, true)
	}
	if j.owned && err == nil {
		j.handOver()
	}
	j.free()
	return err
}

// writePieces carries out a WRITE that found no memory, through the read buffer.
// Each piece but the first begins at a block of the device, so that none is torn.
func (s *session) writePieces(j *job) error {
	var failed error
	for off, left := int64(j.offset), int(j.length); left > 0; {
		n := min(left, piece-int(off%preferredBlock))
		p, err := s.receivePayload(n)
		if err != nil {
			return err
		}
		if failed == nil {
			failed = s.device.WriteAt(p, off, j.flags&cmdFlagFUA != 0)
		}
		s.in.skip(n)
		off, left = off+int64(n), left-n
	}
	if err := s.makeRoom(maxShortReply); err != nil {
		return err
	}
	s.putResult(&s.batch, &j.request, failed)
	return nil
}

// short executes a request whose reply is small, and collects it with others.
func (s *session) short(j *job, payload []byte) error {
	n := maxShortReply
	if j.typ == cmdRead {
		n += int(j.length)
	}
	if err := s.makeRoom(n); err != nil {
		return err
	}
	s.execute(&j.request, payload, &s.batch)
	return nil
}

// makeRoom makes sure that n more bytes of replies fit.
func (s *session) makeRoom(n int) error {
	if s.batch.fits(n) {
		return nil
	}
	return s.flush()
}

// flush sends the replies that were collected.
func (s *session) flush() error {
	if s.batch.n == 0 {
		return nil
	}
	s.settle(&s.batch)
	return s.sendAll(s.batch.take())
}

// settle makes sure that what is about to be acknowledged outlives the server:
// a client that comes back after a crash of it alone does not send it again.
func (s *session) settle(b *batch) {
	if b.wrote && s.settler != nil {
		s.settler.Settle()
	}
	b.wrote = false
}

// sendAll sends whole replies. A connection that cannot be sent to is dead.
func (s *session) sendAll(p []byte) error {
	s.send.Lock()
	defer s.send.Unlock()
	return s.sendLocked(p)
}

func (s *session) sendLocked(p []byte) error {
	if _, err := s.conn.nc.Write(p); err != nil {
		s.conn.abort()
		return fmt.Errorf("sending replies: %w", err)
	}
	return nil
}
