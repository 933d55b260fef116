package nbd_test

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

// lateListener returns a connection at the moment it is closed, as a real one does whose connection came just then.
type lateListener struct {
	net.Listener
	once   sync.Once
	closed chan struct{}
}

func (l *lateListener) Accept() (net.Conn, error) {
	<-l.closed
	return l.Listener.Accept()
}

func (l *lateListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		time.AfterFunc(50*time.Millisecond, func() { _ = l.Listener.Close() })
	})
	return nil
}

// TestAcceptedAtShutdown: a connection that was accepted while the server began to end is told so, not dropped.
func TestAcceptedAtShutdown(t *testing.T) {
	s, err := nbd.NewServer(nbd.Options{Backend: nbdtest.NewBackend(nbdtest.NewMemory("mem", 1<<20))})
	if err != nil {
		t.Fatal(err)
	}
	inner, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ln := &lateListener{Listener: inner, closed: make(chan struct{})}
	served, shut := make(chan error, 1), make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), ln, nbd.ListenerOptions{}) }()
	nc, err := net.Dial("unix", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	time.Sleep(20 * time.Millisecond) // Serve has called Accept
	go func() { shut <- s.Shutdown(context.Background()) }()
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
	c := &nbdtest.Client{T: t, Conn: nc}
	if greeting := c.Bytes(18); string(greeting[:8]) != "NBDMAGIC" {
		t.Fatalf("greeting %q", greeting)
	}
	c.Send(append([]byte{0, 0, 0, 3}, nbdtest.Option(nbdtest.OptList, nil)...))
	if reply := c.Bytes(20); reply[12] != 0x80 || reply[15] != nbdtest.RepErrShutdown&0xff {
		t.Errorf("reply % x, want ERR_SHUTDOWN", reply)
	}
	for what, ch := range map[string]chan error{"Serve": served, "Shutdown": shut} {
		if err := <-ch; err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
