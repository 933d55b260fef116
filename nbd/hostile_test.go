package nbd_test

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

// serveMemory serves one memory device of 8 MiB.
func serveMemory(t *testing.T, o nbd.Options, lo nbd.ListenerOptions) (*nbdtest.Memory, *nbd.Server, net.Addr) {
	t.Helper()
	m := nbdtest.NewMemory("mem", 8<<20)
	o.Backend = nbdtest.NewBackend(m)
	s, addr := nbdtest.Serve(t, o, lo)
	return m, s, addr
}

// wellBehaved writes and verifies all along, until stop is closed; what other
// clients do must not reach it.
func wellBehaved(t *testing.T, addr net.Addr) (stop func()) {
	c := nbdtest.Attach(t, addr, "mem", true)
	_ = c.Conn.SetDeadline(time.Now().Add(55 * time.Second))
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := byte(1); ; i++ {
			p := bytes.Repeat([]byte{i}, 5000)
			c.Write(4<<20, p)
			if !bytes.Equal(c.Read(4<<20, len(p)), p) {
				t.Error("the well-behaved client read wrong data")
			}
			select {
			case <-end:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return func() {
		close(end)
		<-ended
		c.Disc()
	}
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in 10 s: %s", what)
		}
	}
}

// conversation is everything a client sends in an ordinary session.
func conversation(c *nbdtest.Client, structured bool) []byte {
	b := []byte{0, 0, 0, 3}
	if structured {
		b = append(b, nbdtest.Option(nbdtest.OptStructuredReply, nil)...)
		b = append(b, nbdtest.Option(nbdtest.OptSetMeta, nbdtest.MetaData("mem", "base:allocation"))...)
	}
	b = append(b, nbdtest.Option(nbdtest.OptList, nil)...)
	b = append(b, nbdtest.Option(nbdtest.OptGo, nbdtest.InfoData("mem", 3))...)
	b = append(b, c.Request(0, nbdtest.CmdWrite, 1, 0, 40)...)
	b = append(b, make([]byte, 40)...)
	b = append(b, c.Request(nbdtest.FlagFUA, nbdtest.CmdWrite, 2, 0, 10)...)
	b = append(b, make([]byte, 10)...)
	b = append(b, c.Request(0, nbdtest.CmdFlush, 3, 0, 0)...)
	b = append(b, c.Request(0, nbdtest.CmdStatus, 4, 0, 4096)...)
	b = append(b, c.Request(0, nbdtest.CmdRead, 5, 0, 300<<10)...)
	return append(b, c.Request(0, nbdtest.CmdDisc, 0, 0, 0)...)
}

// TestDisconnectAnywhere ends a session after each byte of it: the connection
// is gone, everything else goes on, and nothing is left behind.
func TestDisconnectAnywhere(t *testing.T) {
	m, s, addr := serveMemory(t, nbd.Options{}, nbd.ListenerOptions{})
	stop := wellBehaved(t, addr)
	eventually(t, "attached", func() bool { return len(s.Clients()) == 1 })
	before := runtime.NumGoroutine()
	for _, how := range []string{"close", "half", "unread"} {
		b := conversation(&nbdtest.Client{}, how != "half")
		for n := range len(b) + 1 {
			nc, err := net.Dial(addr.Network(), addr.String())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = nc.Write(b[:n])
			if how == "half" { // an end of the stream, while replies are still taken
				_ = nc.(*net.UnixConn).CloseWrite()
				_ = nc.SetReadDeadline(time.Now().Add(30 * time.Second))
				buf := make([]byte, 64<<10)
				for err == nil {
					_, err = nc.Read(buf)
				}
				if ne, ok := err.(net.Error); ok && ne.Timeout() {
					t.Fatalf("after %d bytes the server keeps the connection", n)
				}
			}
			_ = nc.Close() // with replies unread, most often
		}
	}
	eventually(t, "goroutines as before", func() bool { return runtime.NumGoroutine() <= before })
	stop()
	eventually(t, "devices closed", func() bool { return m.Opens.Load() == m.Closes.Load() && m.Lent.Load() == 0 })
}

// TestDisconnectInLargeWrite leaves in the middle of a payload: the buffer goes
// back to the device.
func TestDisconnectInLargeWrite(t *testing.T) {
	m, _, addr := serveMemory(t, nbd.Options{}, nbd.ListenerOptions{})
	for _, flags := range []uint16{0, nbdtest.FlagFUA} {
		for _, off := range []uint64{0, 1} {
			c := nbdtest.Attach(t, addr, "mem", false)
			c.Send(append(c.Request(flags, nbdtest.CmdWrite, 1, off, 1<<20), make([]byte, 500<<10)...))
			_ = c.Conn.Close()
		}
	}
	eventually(t, "buffers given back", func() bool { return m.Lent.Load() == 0 && m.Opens.Load() == m.Closes.Load() })
	if m.Owned.Load() != 0 {
		t.Error("half a payload was written")
	}
}

// TestSilent: connections that say nothing are bounded, make room for others,
// and end after the time limit.
func TestSilent(t *testing.T) {
	_, s, addr := serveMemory(t, nbd.Options{HandshakeTimeout: 3 * time.Second}, nbd.ListenerOptions{MaxConnections: 50})
	before := runtime.NumGoroutine()
	var silent []*nbdtest.Client
	for range 300 {
		silent = append(silent, nbdtest.Connect(t, addr))
	}
	// The oldest had to make room, long before their time was over.
	_ = silent[0].Conn.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = silent[0].Conn.Read(make([]byte, 18)) // the greeting
	if err := silent[0].Gone(); err != nil {
		t.Error(err)
	}
	eventually(t, "50 connections", func() bool { return runtime.NumGoroutine() <= before+50 })
	c := nbdtest.Attach(t, addr, "mem", false)
	c.Write(0, []byte("I got in"))
	start := time.Now()
	for _, s := range silent[1:] {
		_, _ = s.Conn.Read(make([]byte, 18)) // the greeting
		if err := s.Gone(); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("the time limit took %s", took)
	}
	if n := len(s.Clients()); n != 1 {
		t.Errorf("%d clients", n)
	}
	c.Disc()
}

// TestDrip: a client that sends a byte now and then does not get more time.
func TestDrip(t *testing.T) {
	_, _, addr := serveMemory(t, nbd.Options{HandshakeTimeout: time.Second}, nbd.ListenerOptions{})
	c := nbdtest.Dial(t, addr)
	start := time.Now()
	for {
		if _, err := c.Conn.Write([]byte("I")); err != nil {
			break
		}
		if time.Since(start) > 30*time.Second {
			t.Fatal("the server still listens")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestTooMany: attached clients are never pushed out, and one address has its
// own limit.
func TestTooMany(t *testing.T) {
	m := nbdtest.NewMemory("mem", 1<<20)
	s, err := nbd.NewServer(nbd.Options{Backend: nbdtest.NewBackend(m)})
	if err != nil {
		t.Fatal(err)
	}
	for name, lo := range map[string]nbd.ListenerOptions{"all": {MaxConnections: 3}, "address": {MaxPerAddress: 3}} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := nbdtest.ServeOn(t, s, ln, lo)
		var clients []*nbdtest.Client
		for range 3 {
			clients = append(clients, nbdtest.Attach(t, addr, "mem", false))
		}
		if err := nbdtest.Connect(t, addr).Gone(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, c := range clients {
			c.Read(0, 10)
			c.Disc()
		}
		eventually(t, "room again", func() bool { return len(s.Clients()) == 0 })
		nbdtest.Attach(t, addr, "mem", false).Disc()
	}
}

// TestManyOptions: a handshake that never ends is ended.
func TestManyOptions(t *testing.T) {
	_, _, addr := serveMemory(t, nbd.Options{}, nbd.ListenerOptions{})
	c := nbdtest.Dial(t, addr)
	go func() {
		for {
			if _, err := c.Conn.Write(bytes.Repeat(nbdtest.Option(77, nil), 100)); err != nil {
				return
			}
		}
	}()
	buf, total := make([]byte, 64<<10), 0
	for {
		n, err := c.Conn.Read(buf)
		if total += n; err != nil {
			break
		}
	}
	if total > 1<<20 {
		t.Errorf("%d bytes of replies", total)
	}
}

// TestManyOptionBytes: what a handshake may bring is bounded in all.
func TestManyOptionBytes(t *testing.T) {
	_, _, addr := serveMemory(t, nbd.Options{}, nbd.ListenerOptions{})
	c := nbdtest.Dial(t, addr)
	big := nbdtest.Option(77, make([]byte, 60<<10))
	for i := range 30 {
		if _, err := c.Conn.Write(big); err != nil {
			return
		}
		if _, err := io.ReadFull(c.Conn, make([]byte, 20+len("this option is not known here"))); err != nil {
			if i < 10 {
				t.Errorf("refused after %d options", i)
			}
			return
		}
	}
	t.Error("1.8 MB of options were taken")
}

// TestSlowReader: clients that never take their replies hold up themselves, and
// no more memory than configured.
func TestSlowReader(t *testing.T) {
	const total = 16 << 20
	_, _, addr := serveMemory(t, nbd.Options{MemoryTotal: total, MemoryPerConnection: 8 << 20, SocketBuffer: 1 << 20, DrainTimeout: 200 * time.Millisecond},
		nbd.ListenerOptions{})
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range 8 {
		c := nbdtest.Attach(t, addr, "mem", i%2 == 0)
		go func() {
			for j := range uint64(64) { // 64 replies of 4 MiB each
				if _, err := c.Conn.Write(c.Request(0, nbdtest.CmdRead, j, 0, 4<<20)); err != nil {
					return
				}
			}
		}()
	}
	time.Sleep(300 * time.Millisecond)
	c := nbdtest.Attach(t, addr, "mem", true)
	p := bytes.Repeat([]byte("data"), 1<<18)
	for range 5 {
		c.Write(1<<20, p)
		if !bytes.Equal(c.Read(1<<20, len(p)), p) {
			t.Error("wrong data beside slow readers")
		}
	}
	c.Disc()
	var now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&now)
	if grown := int64(now.HeapInuse) - int64(before.HeapInuse); grown > total+64<<20 {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
}

// TestSlowWriter: payloads that are announced and do not come.
func TestSlowWriter(t *testing.T) {
	_, _, addr := serveMemory(t, nbd.Options{MemoryTotal: 40 << 20}, nbd.ListenerOptions{})
	for range 8 {
		c := nbdtest.Attach(t, addr, "mem", false)
		c.Send(append(c.Request(0, nbdtest.CmdWrite, 1, 0, 8<<20), 1, 2, 3))
	}
	time.Sleep(100 * time.Millisecond)
	c := nbdtest.Attach(t, addr, "mem", true)
	p := bytes.Repeat([]byte("abc"), 1<<20)
	c.Write(4096, p)
	if !bytes.Equal(c.Read(4096, len(p)), p) {
		t.Error("wrong data beside slow writers")
	}
	c.Disc()
}

// TestSameCookie: cookies are the client's business.
func TestSameCookie(t *testing.T) {
	_, _, addr := serveMemory(t, nbd.Options{}, nbd.ListenerOptions{})
	c := nbdtest.Attach(t, addr, "mem", false)
	var b []byte
	for range 10 {
		b = append(b, c.Request(0, nbdtest.CmdFlush, 5, 0, 0)...)
		b = append(b, c.Request(0, nbdtest.CmdTrim, 5, 0, 4096)...)
	}
	c.Send(b)
	for range 20 {
		if r := c.Receive(0); r.Cookie != 5 || r.Errno != 0 {
			t.Errorf("reply %+v", r)
		}
	}
	c.Disc()
}
