package integration

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"lunar/integration/client"
)

// recorder keeps what is sent through a connection.
type recorder struct {
	net.Conn
	mu   sync.Mutex
	sent bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.sent.Write(p)
	r.mu.Unlock()
	return r.Conn.Write(p)
}

// TestHostileTLS: what a client, or somebody between it and the server, can do around STARTTLS.
func TestHostileTLS(t *testing.T) {
	dir, _ := certificates(t, "good")
	config := filepath.Join(dir, "lunar.yaml")
	if err := os.WriteFile(config, []byte("nbd:\n  handshake_timeout: 4s\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	a := newArena(t, "--tls", "allowed", "--tls-dir", dir, "--config", config)
	b := newArena(t, "--tls", "required", "--tls-dir", dir, "--tls-client-certs", "required")
	good := tlsConfig(t, dir, "good")
	warm := func(t *testing.T) {
		for range 3 {
			s := a.greeted(t)
			if err := s.StartTLS(good); err != nil {
				t.Fatal(err)
			}
			s.Close()
		}
	}
	a.begin(t, warm)
	stuck := a.halfTLS(t)
	a.run("injection", func(t *testing.T) { a.injection(t, good) })
	a.run("order", func(t *testing.T) { a.orderTLS(t, good) })
	a.run("leave in the handshake of TLS", func(t *testing.T) { a.leaveTLS(t, good) })
	a.run("leave without a word", func(t *testing.T) { a.abruptTLS(t, good) })
	a.run("required", func(t *testing.T) { b.required(t, good) })
	a.run("half a handshake", stuck)
	a.finish()
}

// injection: what was agreed on in the clear has no effect behind STARTTLS (CVE-2021-3716 and its like), and what comes
// in the clear behind STARTTLS is never taken for an option.
func (a *arena) injection(t *testing.T, config *tls.Config) {
	for _, before := range [][]byte{
		client.Option(client.OptStructured, nil),
		append(client.Option(client.OptStructured, nil), client.Option(client.OptSetMeta, client.MetaData("evil", "base:allocation"))...),
		append(client.Option(client.OptExtended, nil), client.Option(client.OptSetMeta, client.MetaData("evil", "base:allocation"))...),
	} {
		s := a.greeted(t)
		s.Write(append(before, client.Option(client.OptStartTLS, nil)...)) // one packet
		for started := false; !started; {
			option, kind, _, err := s.Answer()
			if err != nil {
				t.Fatal(err)
			}
			started = option == client.OptStartTLS && kind == client.RepAck
		}
		conn := tls.Client(s.Conn, config)
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		s.Conn = conn
		if kind, _, err := s.Ask(client.OptListMeta, client.MetaData("evil")); err != nil || kind != client.RepErrInvalid {
			t.Errorf("LIST_META_CONTEXT behind STARTTLS: answer %#x, %v; structured replies were agreed on in the clear only", kind, err)
		}
		if err := s.Ack(client.OptGo, client.GoData("evil")); err != nil {
			t.Fatal(err)
		}
		// Simple replies and compact requests, as if nothing had been agreed on.
		if r, err := s.Do(client.CmdBlockStatus, 0, 0, 4096, nil); err != nil || r.Errno != eInval {
			t.Errorf("BLOCK_STATUS with a context of the clear: error %d, %v", r.Errno, err)
		}
		if got := must(t, s, client.CmdRead, 0, 0, 100<<10, nil); len(got.Data) != 100<<10 {
			t.Error("the reply to READ is not a simple one")
		}
		s.Close()
	}
	for _, behind := range [][]byte{
		client.Option(client.OptList, nil), client.Option(client.OptGo, client.GoData("good")), client.Option(client.OptExportName, []byte("good")), make([]byte, 1000),
		{22, 3, 1, 0xff, 0xff}, {22, 3, 1, 0, 0}, {21, 3, 1, 0, 2, 1, 0},
	} {
		s := a.greeted(t)
		s.Write(append(client.Option(client.OptStartTLS, nil), behind...))
		if option, kind, _, err := s.Answer(); err != nil || option != client.OptStartTLS || kind != client.RepAck {
			t.Fatalf("STARTTLS: %d %#x %v", option, kind, err)
		}
		s.Conn.(*net.TCPConn).CloseWrite()
		rest, _ := io.ReadAll(s)
		if bytes.Contains(rest, []byte{0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9}) || bytes.Contains(rest, []byte("good")) {
			t.Errorf("% x in the clear behind STARTTLS was answered: % x", behind[:min(20, len(behind))], rest)
		}
		s.Close()
	}
}

// orderTLS does STARTTLS twice, with data, within TLS, and from a client that does not know it.
func (a *arena) orderTLS(t *testing.T, config *tls.Config) {
	s := a.greeted(t)
	if kind, _, err := s.Ask(client.OptStartTLS, []byte("x")); err != nil || kind != client.RepErrInvalid {
		t.Errorf("STARTTLS with data: %#x, %v", kind, err)
	}
	if err := s.StartTLS(config); err != nil {
		t.Fatal(err)
	}
	if kind, _, err := s.Ask(client.OptStartTLS, nil); err != nil || kind != client.RepErrInvalid {
		t.Errorf("STARTTLS within TLS: %#x, %v", kind, err)
	}
	if err := s.Attach("evil", client.Terms{Extended: true, Contexts: []string{"base:allocation"}}); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 5*mib)
	fill(p, 9)
	must(t, s, client.CmdWrite, client.CmdPayloadLen, 4097, 5*mib, p)
	if got, err := must(t, s, client.CmdRead, 0, 4097, 5*mib, nil).Bytes(4097, 5*mib); err != nil || !bytes.Equal(got, p) {
		t.Errorf("5 MiB through TLS: %v", err)
	}
	s.Close()
	old, err := client.Connect("tcp", a.s.TCP(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := old.Greet(2); err != nil { // not fixed newstyle
		t.Fatal(err)
	}
	if kind, _, err := old.Ask(client.OptStartTLS, nil); err != nil || kind == client.RepAck {
		t.Errorf("STARTTLS of a client that is not fixed newstyle: %#x, %v", kind, err)
	}
}

// leaveTLS plays the first flight of a TLS client up to each byte and leaves, and breaks it at each byte.
func (a *arena) leaveTLS(t *testing.T, config *tls.Config) {
	s := a.greeted(t)
	if err := s.Ack(client.OptStartTLS, nil); err != nil {
		t.Fatal(err)
	}
	r := &recorder{Conn: s.Conn}
	if err := tls.Client(r, config).Handshake(); err != nil {
		t.Fatal(err)
	}
	flight := bytes.Clone(r.sent.Bytes())
	s.Close()
	prefix := append([]byte{0, 0, 0, 3}, client.Option(client.OptStartTLS, nil)...)
	err := parallel(3*len(flight), func(i int) error {
		n, way := i/3, leaveWays[i%3]
		s, err := client.Connect("tcp", a.s.TCP(), "")
		if err != nil {
			return err
		}
		b := append(bytes.Clone(prefix), flight[:n]...)
		if i%2 == 1 && n > 0 {
			b = append(bytes.Clone(prefix), flight...)
			b[len(prefix)+n] ^= 0x41
		}
		s.Write(b)
		if err := leave(s, way); err != nil {
			return fmt.Errorf("%s after %d of %d bytes: %w", way, n, len(flight), err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d sessions", 3*len(flight))
}

// abruptTLS leaves in the middle of transmission without the goodbye of TLS, or sends garbage in its place.
func (a *arena) abruptTLS(t *testing.T, config *tls.Config) {
	err := parallel(60, func(i int) error {
		s, err := client.Greeted("tcp", a.s.TCP())
		if err != nil {
			return err
		}
		raw := s.Conn.(*net.TCPConn)
		if err := s.StartTLS(config); err != nil {
			return err
		}
		if err := s.Attach("evil", client.Terms{Structured: true}); err != nil {
			return err
		}
		s.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		for c := range uint64(20) {
			s.Send(client.CmdRead, 0, c*mib, 4*mib, nil)
		}
		s.Send(client.CmdWrite, 0, 0, 32*mib, make([]byte, 1000))
		switch i % 3 {
		case 0:
			raw.SetLinger(0)
		case 1:
			raw.Write(make([]byte, 5000))
		}
		return raw.Close()
	})
	if err != nil {
		t.Error(err)
	}
}

// required: without TLS nothing is told, without the right certificate neither.
func (a *arena) required(t *testing.T, config *tls.Config) {
	s := a.greeted(t)
	for option := uint32(3); option < 13; option++ {
		if option == client.OptStartTLS {
			continue
		}
		data := []byte(nil)
		switch option {
		case client.OptInfo, client.OptGo:
			data = client.GoData("evil")
		case client.OptListMeta, client.OptSetMeta:
			data = client.MetaData("evil", "base:allocation")
		}
		if kind, text, err := s.Ask(option, data); err != nil || kind != client.RepErrTLSRequired {
			t.Errorf("option %d in the clear: answer %#x %q, %v; want ERR_TLS_REQD", option, kind, text, err)
		}
	}
	if kind, _, err := s.Ask(client.OptList, make([]byte, 70<<10)); err != nil || kind != client.RepErrTLSRequired {
		t.Errorf("an option that is too large, in the clear: answer %#x, %v", kind, err)
	}
	if err := s.StartTLS(config); err != nil {
		t.Fatalf("STARTTLS after refusals: %v", err)
	}
	if err := s.Attach("evil", client.Terms{Structured: true}); err != nil {
		t.Errorf("GO through TLS: %v", err)
	}
	for what, message := range map[string][]byte{
		"EXPORT_NAME in the clear": client.Option(client.OptExportName, []byte("evil")),
		"a request in the clear":   client.Request(false, client.CmdRead, 0, 1, 0, 512),
	} {
		s := a.greeted(t)
		s.Write(message)
		if came, err := s.Ended(gone); err != nil || came != 0 {
			t.Errorf("%s: %d bytes came, %v", what, came, err)
		}
	}
	without := config.Clone()
	without.Certificates = nil
	if s, err := secured(t, a.s.TCP(), without); err == nil {
		t.Errorf("without a certificate a client is served: %v", s)
	}
}

// halfTLS starts connections that stop in the middle of TLS's handshake; they must be gone after the limit of 4 s.
func (a *arena) halfTLS(t *testing.T) func(t *testing.T) {
	began := time.Now()
	var crowd []*client.Script
	for i := range 100 {
		s := a.greeted(t)
		s.SetDeadline(began.Add(time.Minute))
		if err := s.Ack(client.OptStartTLS, nil); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			s.Write([]byte{22, 3, 1, 2, 0, 1, 0})
		}
		crowd = append(crowd, s)
	}
	return func(t *testing.T) {
		for _, s := range crowd {
			if _, err := s.Ended(time.Until(began.Add(7 * time.Second))); err != nil {
				t.Fatal(err)
			}
		}
	}
}
