package integration

import (
	"bytes"
	"errors"
	"io"
	"syscall"
	"testing"
	"time"

	"lunar/integration/client"
	"lunar/integration/harness"
)

// terminate sends SIGTERM and returns at once.
func terminate(t *testing.T, s *harness.Server) {
	t.Helper()
	if err := syscall.Kill(s.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

func waitEnd(t *testing.T, s *harness.Server) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); s.Running(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the server is still there 60 s after SIGTERM\n%s", s.Log())
		}
	}
}

// TestTermReplies: at SIGTERM a client with many requests in flight gets whole replies, none of them ESHUTDOWN, and then
// the end of the stream, not a reset that would throw replies away. What was answered is there afterwards; a client that
// sends the others again ends where it wanted.
func TestTermReplies(t *testing.T) {
	const blocks = 4000
	s := harness.Start(t, "--capacity", "4G", "--listen", "tcp://127.0.0.1:0")
	s.Lunar("lun", "create", "d", "256M")
	for round, terms := range allTerms {
		terms.Contexts = nil
		c, err := client.Greeted("tcp", s.TCP())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Attach("d", terms); err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 4096)
		fill(data, uint64(round)+1)
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for i := range uint64(blocks) {
				flags := payloadFlag(terms)
				if i%8 == 0 {
					flags |= client.CmdFUA
				}
				if _, err := c.Send(client.CmdWrite, flags, i*4096, 4096, data); err != nil {
					return // the server has closed
				}
			}
		}()
		answered := map[uint64]bool{}
		for {
			r, err := c.Reply(0)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || r.Errno != 0 {
				t.Fatalf("%s: after %d replies: error %d %q, %v; want whole replies without errors, then the end", termsName(terms), len(answered), r.Errno, r.Text, err)
			}
			if answered[r.Cookie] || r.Cookie == 0 || r.Cookie > blocks {
				t.Fatalf("%s: a second or foreign reply, to request %d", termsName(terms), r.Cookie)
			}
			answered[r.Cookie] = true
			if len(answered) == 200 {
				terminate(t, s)
			}
		}
		c.Close()
		<-sent
		waitEnd(t, s)
		if len(answered) == blocks {
			t.Logf("%s: all was answered before the end: nothing was cut", termsName(terms))
		}
		s.Start()
		d := s.Dial("d")
		got := make([]byte, 4096)
		for cookie := range answered {
			if err := d.Read(got, int64(cookie-1)*4096); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%s: write %d was answered and is not there: %v", termsName(terms), cookie, err)
			}
		}
		d.Disconnect()
		t.Logf("%s: %d of %d requests answered", termsName(terms), len(answered), blocks)
	}
}

// TestTermLargeRead: a reply of 32 MiB that is on its way to a slow reader comes whole.
func TestTermLargeRead(t *testing.T) {
	s := harness.Start(t, "--capacity", "4G")
	s.Lunar("lun", "create", "d", "64M")
	want := make([]byte, 32*mib)
	fill(want, 4)
	d := s.Dial("d")
	if err := d.Write(want, 0, true); err != nil {
		t.Fatal(err)
	}
	d.Disconnect()
	c, err := client.Greeted("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Attach("d", client.Terms{Structured: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Send(client.CmdRead, client.CmdDF, 0, 32*mib, nil); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // it was read, and its reply does not fit the socket
	terminate(t, s)
	time.Sleep(500 * time.Millisecond)
	r, err := c.Reply(0)
	if err != nil {
		t.Fatalf("the reply at SIGTERM: %v", err)
	}
	if got, err := r.Bytes(0, 32*mib); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the reply at SIGTERM is wrong: %v", err)
	}
	if came, err := c.Ended(gone); err != nil || came != 0 {
		t.Errorf("behind it: %d bytes, %v", came, err)
	}
	waitEnd(t, s)
}

// TestTermHandshake: who is in the middle of a handshake is told that the server ends.
func TestTermHandshake(t *testing.T) {
	s := harness.Start(t)
	s.Lunar("lun", "create", "d", "1M")
	c, err := client.Greeted("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Ack(client.OptList, nil); err != nil {
		t.Fatal(err)
	}
	terminate(t, s)
	for {
		kind, text, err := c.Ask(client.OptInfo, client.GoData("d"))
		if err != nil {
			t.Fatalf("the handshake was cut off without ERR_SHUTDOWN: %v", err)
		}
		if kind == client.RepErrShutdown {
			t.Logf("ERR_SHUTDOWN %q", text)
			break
		}
		if kind != client.RepAck {
			t.Fatalf("answer %#x %q", kind, text)
		}
	}
	waitEnd(t, s)
}
