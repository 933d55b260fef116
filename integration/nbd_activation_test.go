package integration

import (
	"bytes"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lunar/integration/client"
	"lunar/integration/harness"
)

// TestSocketActivation: with a socket that its parent holds, as systemd does, the server is restarted again and again
// while clients connect without a pause: none of them is refused or dropped. They wait, at most for as long as a start
// takes; who was in the middle of a handshake is told ERR_SHUTDOWN and comes again.
func TestSocketActivation(t *testing.T) {
	top := harness.TempDir(t)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	unix, err := net.Listen("unix", top+"/passed.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	defer unix.Close()
	s := harness.New(t, top+"/pool", top+"/own.sock", "--capacity", "4G", "--log-level", "warn")
	for _, listener := range []interface{ File() (*os.File, error) }{tcp.(*net.TCPListener), unix.(*net.UnixListener)} {
		f, err := listener.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		s.Passed = append(s.Passed, f)
	}
	s.Start()
	for _, want := range []string{"nbd=tcp://" + tcp.Addr().String(), "nbd=unix://" + top + "/passed.sock", "nbd=unix://" + top + "/own.sock"} {
		if !strings.Contains(s.Ready+" ", want+" ") {
			t.Errorf("%s is missing from %q", want, s.Ready)
		}
	}
	s.Lunar("lun", "create", "d", "16M")

	var stop atomic.Bool
	var served, told, cut atomic.Int64
	var wg sync.WaitGroup
	for i, listener := range []net.Listener{tcp, unix, tcp, unix} {
		wg.Go(func() {
			network, address := listener.Addr().Network(), listener.Addr().String()
			want, got := make([]byte, 8192), make([]byte, 8192)
			for round := uint64(1); !stop.Load(); round++ {
				c, err := client.Dial(network, address, "d")
				var refused *client.OptionError
				switch {
				case errors.As(err, &refused) && refused.Code == client.RepErrShutdown:
					told.Add(1)
					continue
				case err != nil:
					t.Errorf("a new connection by %s: %v", network, err)
					return
				}
				fill(want, round<<4+uint64(i))
				err = errors.Join(c.Write(want, int64(i)*mib, round%4 == 0), c.Read(got, int64(i)*mib))
				var reply syscall.Errno
				switch {
				case errors.As(err, &reply):
					t.Errorf("a request by %s: %v", network, err)
				case err != nil:
					cut.Add(1) // the server ended between two requests
				case !bytes.Equal(got, want):
					t.Errorf("round %d by %s: read something else than was written", round, network)
				default:
					served.Add(1)
				}
				c.Disconnect()
			}
		})
	}
	restarts := 8
	if harness.Long() {
		restarts = 100
	}
	for range restarts {
		time.Sleep(150 * time.Millisecond)
		s.Restart()
	}
	time.Sleep(100 * time.Millisecond)
	stop.Store(true)
	wg.Wait()
	if served.Load() < int64(restarts)*10 {
		t.Errorf("only %d connections were served", served.Load())
	}
	t.Logf("%d restarts: %d connections served, %d told ERR_SHUTDOWN, %d ended between requests", restarts, served.Load(), told.Load(), cut.Load())
}
