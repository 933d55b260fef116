package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

// TestErrors maps what devices return to what the protocol knows.
func TestErrors(t *testing.T) {
	m, _, addr := serveMemory(t, nbd.Options{}, nbd.ListenerOptions{})
	c := nbdtest.Attach(t, addr, "mem", true)
	for err, want := range map[error]uint32{
		syscall.EPERM: 1, syscall.EROFS: 1, syscall.EIO: 5, syscall.ENOMEM: 12, syscall.EINVAL: 22, syscall.ENOSPC: 28,
		syscall.EDQUOT: 28, syscall.ESHUTDOWN: 108, syscall.ENOTSUP: 5, syscall.EBADF: 5, errors.New("what?"): 5,
	} {
		m.SetFail(func(string, int64, int64) error { return err })
		for _, typ := range []uint16{nbdtest.CmdWrite, nbdtest.CmdFlush, nbdtest.CmdTrim, nbdtest.CmdZero, nbdtest.CmdRead, nbdtest.CmdCache} {
			for _, n := range []uint64{512, 128 << 10} {
				var payload []byte
				length := n
				switch typ {
				case nbdtest.CmdWrite:
					payload = make([]byte, n)
				case nbdtest.CmdFlush:
					length = 0
				}
				if r := c.Do(0, typ, 0, length, payload); r.Errno != want || !strings.Contains(r.Text, err.Error()) {
					t.Errorf("%v, command %d, %d bytes: error %d %q", err, typ, n, r.Errno, r.Text)
				}
			}
		}
	}
	m.SetFail(func(string, int64, int64) error { return syscall.ENOTSUP })
	if r := c.Do(nbdtest.FlagFastZero, nbdtest.CmdZero, 0, 4096, nil); r.Errno != nbdtest.ENOTSUP {
		t.Errorf("FAST_ZERO: error %d", r.Errno)
	}
	m.SetFail(nil)
	c.Must(nbdtest.FlagFastZero, nbdtest.CmdZero, 0, 4096, nil)
	c.Disc()
}

// TestResize: bounds follow the device, in both directions.
func TestResize(t *testing.T) {
	m, _, addr := serveMemory(t, nbd.Options{}, nbd.ListenerOptions{})
	c := nbdtest.Attach(t, addr, "mem", false)
	m.Resize(9 << 20)
	c.Write(8<<20, []byte("behind the old end"))
	m.Resize(1 << 20)
	if r := c.Do(0, nbdtest.CmdRead, 1<<20, 1, nil); r.Errno != nbdtest.EINVAL {
		t.Errorf("READ behind the new end: %d", r.Errno)
	}
	c.Disc()
}

// TestPanic: a panic ends one connection, is logged, and gives back everything.
func TestPanic(t *testing.T) {
	var log syncBuffer
	m, s, addr := serveMemory(t, nbd.Options{Logger: slog.New(slog.NewTextHandler(&log, nil)), MemoryTotal: 1 << 20}, nbd.ListenerOptions{})
	stop := wellBehaved(t, addr)
	var once sync.Mutex
	for _, r := range []struct {
		op    string
		typ   uint16
		flags uint16
		n     uint64
	}{
		{"read", nbdtest.CmdRead, 0, 4095}, {"read", nbdtest.CmdRead, 0, 512 << 10}, {"write", nbdtest.CmdWrite, 0, 4095},
		{"write", nbdtest.CmdWrite, nbdtest.FlagFUA, 4095}, {"write", nbdtest.CmdWrite, 0, 512 << 10}, {"flush", nbdtest.CmdFlush, 0, 0},
	} {
		for range 3 { // memory that leaked would be missed by the third
			once.Lock()
			m.SetFail(func(op string, _, n int64) error {
				if op == r.op && n == int64(r.n) {
					panic("on purpose")
				}
				return nil
			})
			c := nbdtest.Attach(t, addr, "mem", false)
			var payload []byte
			if r.typ == nbdtest.CmdWrite {
				payload = make([]byte, r.n)
			}
			c.Send(append(c.Request(r.flags, r.typ, 1, 0, r.n), payload...))
			if err := c.Gone(); err != nil {
				t.Errorf("%s: %v", r.op, err)
			}
			m.SetFail(nil)
			once.Unlock()
		}
	}
	stop()
	if n := strings.Count(log.String(), `panic="on purpose"`); n != 18 {
		t.Errorf("%d panics were logged", n)
	}
	eventually(t, "devices closed", func() bool { return len(s.Clients()) == 0 && m.Opens.Load() == m.Closes.Load() })
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestClients(t *testing.T) {
	m, s, addr := serveMemory(t, nbd.Options{}, nbd.ListenerOptions{Name: "here"})
	a := nbdtest.Attach(t, addr, "mem", false)
	b := nbdtest.Attach(t, addr, "", false)
	nbdtest.Dial(t, addr)
	a.Read(0, 1)
	b.Read(0, 1)
	list := s.Clients()
	if len(list) != 2 || list[0].Export != "mem" || list[1].Export != "mem" || list[0].ID >= list[1].ID ||
		list[0].Address != "unix" || list[0].Listener != "here" || list[0].TLS || time.Since(list[0].Since) > time.Minute {
		t.Fatalf("Clients: %+v", list)
	}
	if err := s.DisconnectID(list[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := a.Gone(); err != nil {
		t.Error(err)
	}
	if err := s.DisconnectID(list[0].ID); !errors.Is(err, nbd.ErrUnknownClient) {
		t.Errorf("DisconnectID twice: %v", err)
	}
	b.Read(0, 1)
	if n := s.DisconnectExport("another"); n != 0 {
		t.Errorf("DisconnectExport of another: %d", n)
	}
	if n := s.DisconnectExport("mem"); n != 1 {
		t.Errorf("DisconnectExport: %d", n)
	}
	if m.Opens.Load() != m.Closes.Load() {
		t.Error("DisconnectExport has not waited")
	}
	if err := b.Gone(); err != nil {
		t.Error(err)
	}
}

// TestShutdown: requests that were read are answered, with what they take;
// nothing more is read; no request gets an error.
func TestShutdown(t *testing.T) {
	m, s, addr := serveMemory(t, nbd.Options{}, nbd.ListenerOptions{})
	release := make(chan struct{})
	began := make(chan struct{}, 2)
	m.SetFail(func(op string, _, _ int64) error {
		if op == "flush" || op == "write" {
			began <- struct{}{}
			<-release
		}
		return nil
	})
	c := nbdtest.Attach(t, addr, "mem", false)
	talking := nbdtest.Dial(t, addr)
	c.Send(c.Request(0, nbdtest.CmdFlush, 1, 0, 0))
	<-began
	var b []byte
	b = append(c.Request(0, nbdtest.CmdWrite, 2, 0, 4), "data"...)
	b = append(b, c.Request(0, nbdtest.CmdTrim, 3, 0, 4096)...)
	c.Send(b)
	<-began
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }()
	eventually(t, "no more connections", func() bool {
		nc, err := net.Dial(addr.Network(), addr.String())
		if err == nil {
			_ = nc.Close()
		}
		return err != nil
	})
	if r := talking.Last(nbdtest.OptList, nil); r.Type != nbdtest.RepErrShutdown {
		t.Errorf("LIST during shutdown: %#x", r.Type)
	}
	c.Send(c.Request(0, nbdtest.CmdRead, 4, 0, 4)) // not read any more, not answered
	close(release)
	seen := map[uint64]bool{}
	for range 3 {
		r := c.Receive(0)
		if r.Errno != 0 {
			t.Errorf("request %d: error %d", r.Cookie, r.Errno)
		}
		seen[r.Cookie] = true
	}
	if !seen[1] || !seen[2] || !seen[3] {
		t.Errorf("answered: %v", seen)
	}
	if err := c.Gone(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if m.Opens.Load() != m.Closes.Load() {
		t.Error("a device is still open")
	}
}

// TestShutdownStuck: a client that does not take its replies does not hold up
// the end, nor does a device, when the time is over.
func TestShutdownStuck(t *testing.T) {
	_, s, addr := serveMemory(t, nbd.Options{DrainTimeout: 100 * time.Millisecond, SocketBuffer: 64 << 10}, nbd.ListenerOptions{})
	c := nbdtest.Attach(t, addr, "mem", false)
	for i := range uint64(8) {
		c.Send(c.Request(0, nbdtest.CmdRead, i, 0, 4<<20))
	}
	time.Sleep(50 * time.Millisecond)
	start := time.Now()
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("Shutdown took %s", took)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(context.Background(), ln, nbd.ListenerOptions{}); !errors.Is(err, nbd.ErrServerClosed) {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

// TestBackendErrors: what Open may return, and an export that is hidden.
func TestBackendErrors(t *testing.T) {
	for want, err := range map[uint32]error{
		nbdtest.RepErrUnknown:  nbd.ErrUnknownExport,
		nbdtest.RepErrPolicy:   syscall.EPERM,
		nbdtest.RepErrShutdown: syscall.ESHUTDOWN,
	} {
		_, addr := nbdtest.Serve(t, nbd.Options{Backend: failing{err}}, nbd.ListenerOptions{})
		c := nbdtest.Dial(t, addr)
		c.MustAck(nbdtest.OptStructuredReply, nil)
		name := strings.Repeat("n", 4096) // an error that echoes it must be cut
		for option, data := range map[uint32][]byte{
			nbdtest.OptGo: nbdtest.InfoData(name), nbdtest.OptInfo: nbdtest.InfoData(name),
			nbdtest.OptSetMeta: nbdtest.MetaData(name), nbdtest.OptListMeta: nbdtest.MetaData(name), nbdtest.OptList: nil,
		} {
			if r := c.Last(option, data); r.Type != want || len(r.Data) > 4096 {
				t.Errorf("%v, option %d: reply %#x, %d bytes", err, option, r.Type, len(r.Data))
			}
		}
		c.Send(nbdtest.Option(nbdtest.OptExportName, nil))
		if err := c.Gone(); err != nil {
			t.Error(err)
		}
	}
	if _, err := nbd.NewServer(nbd.Options{}); err == nil {
		t.Error("a server without a backend")
	}
}

type failing struct{ err error }

func (f failing) Exports(context.Context, nbd.Client) ([]nbd.ExportInfo, error) { return nil, f.err }

func (f failing) Open(_ context.Context, name string, _ nbd.Client) (nbd.Device, error) {
	return nil, &net.OpError{Op: name, Err: f.err}
}
