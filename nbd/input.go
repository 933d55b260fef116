package nbd

import (
	"io"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// input is what a client has sent and nobody has looked at yet. It belongs to
// the connection's reader.
type input struct {
	nc  net.Conn
	raw syscall.RawConn // nil under TLS: then there is neither polling nor looking ahead
	// buf is nil while nothing is in it and nothing is being received, so that an
	// idle connection costs no buffer.
	buf  *[inputSize]byte
	r, w int

	// Of the receive that is going on; a callback without captured variables
	// needs no allocation.
	target []byte // where to; nil: into buf
	limit  int    // at most so much
	wait   bool
	n      int
	err    error
	first  [1]byte
	onFD   func(fd uintptr) bool

	// Polling. A connection is hot when its client sent something a moment ago.
	spinTime time.Duration
	spinners *atomic.Int32
	hot      bool
	spinEnd  time.Duration // since epoch; 0: not polling
	parked   time.Duration // since epoch; 0: not asleep
	single   bool          // no more than one request came at a time lately
}

// epoch makes monotonic times out of small numbers.
var epoch = time.Now()

// maxSpinners leaves a processor to those that work; on a single one, polling
// would only keep the client from running.
var maxSpinners = int32(max(runtime.GOMAXPROCS(0)/2, 1))

func newInput(nc net.Conn, spin time.Duration, spinners *atomic.Int32) *input {
	in := &input{nc: nc, spinTime: spin, spinners: spinners}
	if s, ok := nc.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			in.raw = raw
			in.onFD = in.ready
		}
	}
	return in
}

// buffered is how many bytes are there to be looked at.
func (in *input) buffered() int { return in.w - in.r }

// peek returns the next n bytes, which are there; they stay valid until the next
// receive.
func (in *input) peek(n int) []byte { return in.buf[in.r : in.r+n : in.r+n] }

func (in *input) skip(n int) { in.r += n }

// release gives the buffer back when there is nothing in it.
func (in *input) release() {
	if in.buf != nil && in.r == in.w {
		inputs.Put(in.buf)
		in.buf, in.r, in.w = nil, 0, 0
	}
}

// drop gives the buffer back, whatever is in it.
func (in *input) drop() {
	in.r, in.w = 0, 0
	in.release()
}

// fill receives until n bytes are there, at most limit bytes in one go.
func (in *input) fill(n, limit int) error {
	in.compact(n)
	for in.buffered() < n {
		in.target, in.limit, in.wait = nil, max(limit, n-in.buffered()), true
		if err := in.receive(); err != nil {
			return err
		}
	}
	return nil
}

// compact makes room for n bytes from r on.
func (in *input) compact(n int) {
	if in.r == in.w {
		in.r, in.w = 0, 0
	}
	if in.r+n > inputSize {
		in.w = copy(in.buf[:], in.buf[in.r:in.w])
		in.r = 0
	}
}

// lookAhead takes what has arrived, without waiting; it reports whether
// anything had.
func (in *input) lookAhead() bool {
	if in.raw == nil || in.buffered() > 0 {
		return in.raw != nil
	}
	in.r, in.w = 0, 0
	in.target, in.limit, in.wait = nil, inputSize, false
	return in.receive() == nil && in.n > 0
}

// readFull receives exactly p: what is buffered first, the rest straight into p.
func (in *input) readFull(p []byte) error {
	n := copy(p, in.window())
	in.skip(n)
	for p = p[n:]; len(p) > 0; p = p[in.n:] {
		in.target, in.limit, in.wait = p, len(p), true
		if err := in.receive(); err != nil {
			return err
		}
	}
	return nil
}

func (in *input) window() []byte {
	if in.buf == nil {
		return nil
	}
	return in.buf[in.r:in.w]
}

// discard throws n bytes away.
func (in *input) discard(n uint64) error {
	for {
		have := min(uint64(in.buffered()), n)
		in.skip(int(have))
		if n -= have; n == 0 {
			return nil
		}
		if err := in.fill(1, inputSize); err != nil {
			return err
		}
	}
}

// receive does one receive as the fields say; it advances w, or sets n only
// when there is a target.
func (in *input) receive() error {
	in.n, in.err = 0, nil
	if in.raw == nil {
		in.read()
	} else if err := in.raw.Read(in.onFD); err != nil && in.err == nil {
		in.err = err
	}
	if in.spinEnd != 0 {
		in.stopSpin()
	}
	if in.err != nil {
		return in.err
	}
	if in.target == nil {
		in.w += in.n
	}
	return nil
}

// read receives from a connection that cannot be waited for without a buffer. It
// waits for the first byte with none of its own, so that an idle connection
// costs none here either; what has come with it is there at once.
func (in *input) read() {
	if in.target == nil && in.buffered() == 0 {
		in.drop()
		if in.n, in.err = in.nc.Read(in.first[:]); in.n == 0 {
			return
		}
		in.err = nil
		in.space()[0] = in.first[0]
		return
	}
	if in.n, in.err = in.nc.Read(in.space()); in.n > 0 {
		in.err = nil
	}
}

// space is where to receive to.
func (in *input) space() []byte {
	if in.target != nil {
		return in.target
	}
	if in.buf == nil {
		in.buf = inputs.Get().(*[inputSize]byte)
	}
	return in.buf[in.w:min(inputSize, in.w+in.limit)]
}

// ready tries to receive; false puts the goroutine to sleep until there may be
// something.
func (in *input) ready(fd uintptr) bool {
	if in.parked != 0 {
		in.hot = time.Since(epoch)-in.parked < 4*in.spinTime
		in.parked = 0
	}
	for {
		n, errno := recv(int(fd), in.space())
		switch {
		case errno == syscall.EINTR:
			continue
		case errno == syscall.EAGAIN:
			if !in.wait {
				return true
			}
			if in.spin() {
				continue
			}
			if in.target == nil {
				in.release()
			}
			in.parked = time.Since(epoch)
			return false
		case errno != 0:
			in.err = os.NewSyscallError("recv", errno)
		case n == 0:
			in.err = io.EOF
		}
		in.n = n
		return true
	}
}

// spin waits a moment and reports whether to try again. It polls only for a
// client that sends one request at a time and has just done so: there the sleep
// would cost more than the wait. Who was not rewarded does not try it again
// before the client is quick again.
func (in *input) spin() bool {
	if !in.hot || !in.single || in.spinTime <= 0 || in.target != nil {
		return false
	}
	now := time.Since(epoch)
	if in.spinEnd == 0 {
		if in.spinners.Add(1) > maxSpinners {
			in.spinners.Add(-1)
			return false
		}
		in.spinEnd = now + in.spinTime
	}
	if now >= in.spinEnd {
		in.hot = false
		in.stopSpin()
		return false
	}
	_, _, _ = syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0)
	return true
}

func (in *input) stopSpin() {
	in.spinners.Add(-1)
	in.spinEnd = 0
}

// recv reads from a socket that does not block. A small read is done without
// telling the scheduler, which is worth a tenth of it; a large one takes long
// enough for other goroutines to want the processor.
func recv(fd int, p []byte) (int, syscall.Errno) {
	if len(p) > inputSize {
		n, err := syscall.Read(fd, p)
		if err != nil {
			return 0, err.(syscall.Errno)
		}
		return n, 0
	}
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
