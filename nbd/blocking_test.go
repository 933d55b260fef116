package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

// TestBlockingDoesNotHold: what blocks holds up nothing behind it, from the
// first time on; several can block at a time, up to the limit.
func TestBlockingDoesNotHold(t *testing.T) {
	m, _, addr := serveMemory(t, nbd.Options{Workers: 3}, nbd.ListenerOptions{})
	release := make(chan struct{})
	var blocked atomic.Int32
	m.SetFail(func(op string, _, n int64) error {
		if op == "flush" || op == "write" && n == 100 || op == "read" && n == 200<<10 {
			blocked.Add(1)
			<-release
		}
		return nil
	})
	c := nbdtest.Attach(t, addr, "mem", false)
	c.Send(c.Request(0, nbdtest.CmdFlush, 1, 0, 0))
	c.Send(append(c.Request(nbdtest.FlagFUA, nbdtest.CmdWrite, 2, 0, 100), make([]byte, 100)...))
	c.Send(c.Request(0, nbdtest.CmdRead, 3, 0, 200<<10))
	for cookie := range uint64(5) {
		c.Send(c.Request(0, nbdtest.CmdRead, 10+cookie, 0, 10))
		if r := c.Receive(10); r.Cookie != 10+cookie {
			t.Fatalf("reply to %d before %d", r.Cookie, 10+cookie)
		}
	}
	eventually(t, "three blocked", func() bool { return blocked.Load() == 3 })
	close(release)
	seen := map[uint64]bool{}
	for range 3 {
		// A READ's reply has data; its cookie says whether to take it.
		h := c.Bytes(16)
		seen[uint64(h[15])] = true
		if h[15] == 3 {
			c.Bytes(200 << 10)
		}
	}
	if !seen[1] || !seen[2] || !seen[3] {
		t.Errorf("answered: %v", seen)
	}
	c.Disc()
}

// TestLonely: a client that sends nothing behind its FLUSH is served in line,
// and no longer so when something comes behind one.
func TestLonely(t *testing.T) {
	m, _, addr := serveMemory(t, nbd.Options{}, nbd.ListenerOptions{})
	c := nbdtest.Attach(t, addr, "mem", false)
	for range 30 {
		c.Must(0, nbdtest.CmdFlush, 0, 0, nil)
		c.Must(nbdtest.FlagFUA, nbdtest.CmdWrite, 0, 3, []byte("abc"))
		c.Read(0, 300<<10)
	}
	m.SetFail(func(op string, _, _ int64) error {
		if op == "flush" {
			time.Sleep(20 * time.Millisecond)
		}
		return nil
	})
	overtaken := 0
	for i := range uint64(20) {
		c.Send(c.Request(0, nbdtest.CmdFlush, 2*i+100, 0, 0))
		time.Sleep(2 * time.Millisecond)
		c.Send(c.Request(0, nbdtest.CmdTrim, 2*i+101, 0, 10))
		if c.Receive(0).Cookie%2 == 1 {
			overtaken++
		}
		c.Receive(0)
	}
	if overtaken < 15 {
		t.Errorf("only %d of 20 requests overtook the FLUSH before them", overtaken)
	}
	c.Disc()
}

// TestFlushCovers: a FLUSH is processed after every write that was answered
// before it was sent, on any path.
func TestFlushCovers(t *testing.T) {
	m, _, addr := serveMemory(t, nbd.Options{}, nbd.ListenerOptions{})
	var written, atFlush atomic.Int64
	m.SetFail(func(op string, _, _ int64) error {
		switch op {
		case "write":
			time.Sleep(time.Millisecond)
			written.Add(1)
		case "flush":
			atFlush.Store(written.Load())
		}
		return nil
	})
	c := nbdtest.Attach(t, addr, "mem", false)
	for i := range 20 {
		flags := uint16(i % 2 * nbdtest.FlagFUA)
		for _, n := range []int{100, 200 << 10} {
			c.Must(flags, nbdtest.CmdWrite, 0, uint64(n), make([]byte, n))
		}
		c.Must(0, nbdtest.CmdFlush, 0, 0, nil)
		if got := atFlush.Load(); got != int64(2*i+2) {
			t.Fatalf("FLUSH %d came after %d writes", i, got)
		}
	}
	if m.Flushes.Load() != 20 || m.FUAs.Load() != 20 || m.Owned.Load() != 20 {
		t.Errorf("%d flushes, %d FUA, %d buffers handed over", m.Flushes.Load(), m.FUAs.Load(), m.Owned.Load())
	}
	c.Disc()
}

// TestNoMemory: with no memory to be had, large requests are carried out in
// pieces, with the same results.
func TestNoMemory(t *testing.T) {
	_, addr := nbdtest.Serve(t, nbd.Options{Backend: nbdtest.NewBackend(nbdtest.NewMemory("mem", 8<<20)), MemoryTotal: 1}, nbd.ListenerOptions{})
	for _, structured := range []bool{false, true} {
		c := nbdtest.Attach(t, addr, "mem", structured)
		p := bytes.Repeat([]byte("0123456789"), 100<<10)
		for _, off := range []uint64{0, 4096, 777} {
			for _, flags := range []uint16{0, nbdtest.FlagFUA} {
				c.Must(flags, nbdtest.CmdWrite, off, uint64(len(p)), p)
				if !bytes.Equal(c.Read(off, len(p)), p) {
					t.Error("came back changed")
				}
			}
		}
		if structured {
			r := c.Do(nbdtest.FlagDF, nbdtest.CmdRead, 777, uint64(len(p)), nil)
			if got, err := r.Assemble(true, 777, len(p)); err != nil || !bytes.Equal(got, p) || len(r.Chunks) != 2 {
				t.Errorf("DF: %v, %d chunks", err, len(r.Chunks))
			}
		}
		c.Disc()
	}
}

// TestNoMemoryErrors: errors in the first piece and in a later one.
func TestNoMemoryErrors(t *testing.T) {
	m := nbdtest.NewMemory("mem", 8<<20)
	_, addr := nbdtest.Serve(t, nbd.Options{Backend: nbdtest.NewBackend(m), MemoryTotal: 1}, nbd.ListenerOptions{})
	for _, bad := range []int64{0, 200 << 10} {
		m.SetFail(func(op string, off, n int64) error {
			if op != "extents" && off <= bad && bad < off+n {
				return syscall.EIO
			}
			return nil
		})
		c := nbdtest.Attach(t, addr, "mem", true)
		for _, flags := range []uint16{0, nbdtest.FlagDF} {
			if r := c.Do(flags, nbdtest.CmdRead, 0, 300<<10, nil); r.Errno != nbdtest.EIO {
				t.Errorf("READ with flags %d and an error at %d: error %d", flags, bad, r.Errno)
			}
		}
		if r := c.Do(0, nbdtest.CmdWrite, 0, 300<<10, make([]byte, 300<<10)); r.Errno != nbdtest.EIO {
			t.Errorf("WRITE with an error at %d: error %d", bad, r.Errno)
		}
		c.Read(1<<20, 10)
		c.Disc()
		simple := nbdtest.Attach(t, addr, "mem", false)
		simple.Send(simple.Request(0, nbdtest.CmdRead, 1, 0, 300<<10))
		if bad == 0 {
			if r := simple.Receive(300 << 10); r.Errno != nbdtest.EIO {
				t.Errorf("simple READ: error %d", r.Errno)
			}
			simple.Disc()
			continue
		}
		// The header has said that all is well: only the end can take it back.
		if n := drain(simple.Conn); n >= 16+300<<10 {
			t.Errorf("%d bytes of a READ that failed", n)
		}
	}
}

func drain(c net.Conn) (n int) {
	buf := make([]byte, 64<<10)
	for {
		got, err := c.Read(buf)
		n += got
		if err != nil {
			return n
		}
	}
}

// TestThrottle: a device can hold requests back; closing does not wait for that.
func TestThrottle(t *testing.T) {
	m := &throttled{Memory: nbdtest.NewMemory("mem", 8<<20)}
	s, addr := nbdtest.Serve(t, nbd.Options{Backend: one{m}}, nbd.ListenerOptions{})
	c := nbdtest.Attach(t, addr, "mem", false)
	start := time.Now()
	for range 5 {
		c.Read(0, 4096)
	}
	if took := time.Since(start); took < 50*time.Millisecond {
		t.Errorf("5 requests took %s", took)
	}
	if got := m.bytes.Load(); got != 5*4096 {
		t.Errorf("%d bytes were announced", got)
	}
	m.wait.Store(int64(time.Hour))
	c.Send(c.Request(0, nbdtest.CmdRead, 9, 0, 4))
	eventually(t, "held back", func() bool { return m.bytes.Load() == 5*4096+4 })
	if err := s.DisconnectID(s.Clients()[0].ID); err != nil {
		t.Error(err)
	}
	if r := c.Receive(4); r.Cookie != 9 {
		t.Errorf("reply %+v", r)
	}
}

// throttled is a device that holds requests back.
type throttled struct {
	*nbdtest.Memory
	bytes, wait atomic.Int64
}

func (d *throttled) Admit(n int) bool {
	d.bytes.Add(int64(n))
	return false
}

func (d *throttled) Wait(ctx context.Context, _ int) {
	wait := 10 * time.Millisecond
	if w := d.wait.Load(); w != 0 {
		wait = time.Duration(w)
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
	}
}

// TestBadExtents: a device that reports nonsense spoils nothing.
func TestBadExtents(t *testing.T) {
	m := &liar{Memory: nbdtest.NewMemory("mem", 8<<20)}
	_, addr := nbdtest.Serve(t, nbd.Options{Backend: one{m}}, nbd.ListenerOptions{})
	c := nbdtest.Dial(t, addr)
	c.MustAck(nbdtest.OptExtended, nil)
	c.Structured, c.Extended = true, true
	c.MustAck(nbdtest.OptSetMeta, nbdtest.MetaData("mem", "base:allocation"))
	c.Go("mem")
	c.Must(nbdtest.FlagPayload, nbdtest.CmdWrite, 0, 1<<20, bytes.Repeat([]byte{1}, 1<<20))
	for i, report := range [][][2]int64{{}, {{0, 0}}, {{0, -5}}, {{4096, 4096}}, {{0, 1 << 62}}, {{0, 4096}, {0, 4096}}, {{0, 1 << 30}, {1 << 30, 5}}, {{-4096, 8192}}} {
		m.report.Store(&report)
		for _, e := range c.Status(0, 0, 1<<20) {
			if e[0] == 0 || e[0] > 1<<20 {
				t.Errorf("report %d: extent %v", i, e)
			}
		}
		if !bytes.Equal(c.Read(0, 1<<20), bytes.Repeat([]byte{1}, 1<<20)) {
			t.Errorf("report %d has changed the data", i)
		}
	}
	m.broken.Store(true)
	if r := c.Do(0, nbdtest.CmdStatus, 0, 4096, nil); r.Errno != nbdtest.EIO {
		t.Errorf("BLOCK_STATUS that fails: error %d", r.Errno)
	}
	c.Read(0, 1<<20)
	c.Disc()
}

type liar struct {
	*nbdtest.Memory
	report atomic.Pointer[[][2]int64]
	broken atomic.Bool
}

func (l *liar) Extents(_, _ int64, fn func(off, n int64, hole, zero bool) bool) error {
	if l.broken.Load() {
		return errors.New("no map")
	}
	report := l.report.Load()
	for i := 0; report != nil && i < len(*report); i++ {
		if !fn((*report)[i][0], (*report)[i][1], false, false) {
			break
		}
	}
	return nil
}

// slowEraser is a large device that takes its time to zero.
type slowEraser struct {
	*nbdtest.Memory
	release chan struct{}
}

func (slowEraser) Size() int64 { return 1 << 40 }

func (d slowEraser) Zero(int64, int64, bool, bool) error {
	<-d.release
	return nil
}

// TestLargeZero: zeroing what may take long holds up nothing behind it.
func TestLargeZero(t *testing.T) {
	d := slowEraser{nbdtest.NewMemory("mem", 1<<20), make(chan struct{})}
	_, addr := nbdtest.Serve(t, nbd.Options{Backend: one{d}}, nbd.ListenerOptions{})
	c := nbdtest.Attach(t, addr, "mem", false)
	c.Send(c.Request(0, nbdtest.CmdZero, 1, 0, 1<<32-4096))
	c.Send(c.Request(0, nbdtest.CmdRead, 2, 0, 10))
	if r := c.Receive(10); r.Cookie != 2 {
		t.Fatalf("reply to %d", r.Cookie)
	}
	close(d.release)
	if r := c.Receive(0); r.Cookie != 1 || r.Errno != 0 {
		t.Errorf("reply to %d: error %d", r.Cookie, r.Errno)
	}
	c.Disc()
}
