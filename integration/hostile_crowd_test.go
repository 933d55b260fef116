package integration

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"lunar/integration/client"
	"lunar/integration/harness"
)

// silent has a thousand connections that say nothing, not enough, or a byte a second: they are bounded, they make room
// for others, and they end within the limit of a handshake, 10 s.
func (a *arena) silent(t *testing.T) {
	const limit, perAddress = 10 * time.Second, 256
	began := time.Now()
	open := func(from string) *client.Script {
		s, err := client.Connect("tcp", a.s.TCP(), from)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		s.SetDeadline(time.Now().Add(time.Minute))
		return s
	}
	var crowd []*client.Script
	for i := range 1000 {
		s := open(fmt.Sprintf("127.0.1.%d", 1+i%5))
		switch i % 4 { // how far they go
		case 1:
			s.Write([]byte{0, 0, 0, 3})
		case 2:
			s.Write(append([]byte{0, 0, 0, 3}, client.OptionHeader(client.OptGo, 100)...))
		case 3:
			s.Write(append([]byte{0, 0, 0, 3}, client.Option(client.OptStructured, nil)...))
		}
		crowd = append(crowd, s)
	}
	t.Logf("1000 silent connections after %v: %v", time.Since(began).Round(time.Millisecond), a.health())
	drips := a.drip(t, 20)

	// One address has its share, and no more.
	refused := 0
	for range perAddress + 20 {
		s := open("127.0.2.1")
		if err := s.Greet(3); err != nil {
			refused++
		}
	}
	if refused != 20 {
		t.Errorf("%d of %d connections from one address were refused, want 20", refused, perAddress+20)
	}
	// The oldest had to make room for others, long before their time was over.
	if _, err := crowd[0].Ended(time.Second); err != nil {
		t.Errorf("the oldest silent connection, when there were too many: %v", err)
	}
	a.getsIn(t)
	sockets := a.health().sockets
	if most := a.before.sockets + 1024 + 1; sockets > most { // the limit of the listener, and the well-behaved client's
		t.Errorf("the server has %d sockets open, want at most %d", sockets, most)
	}
	for i, s := range crowd {
		if _, err := s.Ended(time.Until(began.Add(limit + harness.Within(3*time.Second)))); err != nil {
			t.Fatalf("silent connection %d: %v", i, err)
		}
	}
	for _, took := range drips() {
		if took > limit+harness.Within(2*time.Second) {
			t.Errorf("a client that sends a byte a second had %v, want %v", took, limit)
		}
	}
	a.getsIn(t)
}

// getsIn: somebody with a real wish is served at once.
func (a *arena) getsIn(t *testing.T) {
	t.Helper()
	began := time.Now()
	s := a.attach("good", client.Terms{Structured: true})
	must(t, s, client.CmdRead, 0, 0, 4096, nil)
	s.Close()
	if took := time.Since(began); took > harness.Within(2*time.Second) {
		t.Errorf("a client got in only after %v", took)
	}
}

// drip starts n clients that send an ordinary session, a byte every half second, and returns how long each had.
func (a *arena) drip(t *testing.T, n int) (wait func() []time.Duration) {
	took := make(chan time.Duration, n)
	for i := range n {
		s, err := client.Connect("tcp", a.s.TCP(), "127.0.3.1")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer s.Close()
			began := time.Now()
			s.SetDeadline(began.Add(time.Minute))
			for _, b := range conversation(allTerms[i%len(allTerms)]) {
				if _, err := s.Write([]byte{b}); err != nil {
					break
				}
				if s.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); ended(s) {
					break
				}
			}
			took <- time.Since(began)
		}()
	}
	return func() []time.Duration {
		var list []time.Duration
		for range n {
			list = append(list, <-took)
		}
		return list
	}
}

// ended reads until the read deadline, and says whether the connection ended before it.
func ended(s *client.Script) bool {
	for p := make([]byte, 4096); ; {
		if _, err := s.Read(p); err != nil {
			timeout, ok := err.(interface{ Timeout() bool })
			return !ok || !timeout.Timeout()
		}
	}
}

// neverReads asks for a lot, on the well-behaved client's own LUN, and takes none of it.
func (a *arena) neverReads(t *testing.T) {
	var crowd []*client.Script
	for i := range 12 {
		s := a.attach("good", allTerms[i%len(allTerms)])
		crowd = append(crowd, s)
		go func() {
			for range 200 {
				if _, err := s.Send(client.CmdRead, 0, 32*mib, mib, nil); err != nil {
					return
				}
				if _, err := s.Send(client.CmdFlush, 0, 0, 0, nil); err != nil {
					return
				}
			}
		}()
	}
	time.Sleep(time.Second)
	t.Logf("with 12 clients that do not read: %v", a.health())
	a.bigTransfer(t)
	for _, s := range crowd {
		s.Reset()
	}
}

// neverSends announces more payload than all the memory there is, and sends a third of it.
func (a *arena) neverSends(t *testing.T) {
	leave := a.stall(24)
	t.Logf("with 24 clients that do not send: %v", a.health())
	a.bigTransfer(t)
	leave()
}

// stall has n clients that stop in the middle of a payload of 32 MiB.
func (a *arena) stall(n int) (leave func()) {
	var crowd []*client.Script
	for i := range n {
		terms := allTerms[i%len(allTerms)]
		s := a.attach("good", terms)
		crowd = append(crowd, s)
		go s.Send(client.CmdWrite, payloadFlag(terms), 32*mib, 32*mib, make([]byte, 10*mib))
	}
	time.Sleep(time.Second)
	return func() {
		for _, s := range crowd {
			s.Reset()
		}
	}
}

// bigTransfer is a client with large requests, which must be served though others hold what memory there is.
func (a *arena) bigTransfer(t *testing.T) {
	t.Helper()
	began := time.Now()
	p := make([]byte, 16*mib)
	fill(p, 7)
	for _, terms := range allTerms {
		s := a.attach("good", terms)
		must(t, s, client.CmdWrite, payloadFlag(terms), 16*mib+5, uint64(len(p)), p)
		got, err := must(t, s, client.CmdRead, 0, 16*mib+5, uint64(len(p)), nil).Bytes(16*mib+5, uint64(len(p)))
		if err != nil || !bytes.Equal(got, p) {
			t.Errorf("16 MiB beside them (%s): wrong data, %v", termsName(terms), err)
		}
		s.Close()
	}
	t.Logf("3 x 16 MiB beside them written and read in %v", time.Since(began).Round(time.Millisecond))
}

// TestHostileMemory: connections x requests in flight x 32 MiB are far more than the server may take; it stays within
// its limits whatever the clients demand.
func TestHostileMemory(t *testing.T) {
	const most = 1100 * mib // 512 MiB of payload in flight, the log's and the map's memory, and the collector's share
	a := newArena(t)
	a.begin(t)
	var crowd []*client.Script
	for i := range 64 {
		terms := allTerms[i%len(allTerms)]
		s := a.attach("evil", terms)
		crowd = append(crowd, s)
		go func() {
			if i%2 == 1 { // stops in the middle of a payload
				s.Send(client.CmdWrite, payloadFlag(terms), 0, 32*mib, make([]byte, 20*mib))
				return
			}
			for range 16 {
				if _, err := s.Send(client.CmdRead, client.CmdFUA, 0, 32*mib, nil); err != nil {
					return
				}
			}
		}()
	}
	peak, length := int64(0), 10*time.Second
	if harness.Long() {
		length = time.Minute
	}
	for deadline := time.Now().Add(length); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		high, _, err := harness.ProcessRSS(a.s.Pid)
		if err != nil {
			t.Fatal(err)
		}
		peak = max(peak, high)
	}
	if peak > most {
		t.Errorf("64 clients that demand 17 GiB drove the server to %d MiB of memory, want at most %d", peak/mib, most/mib)
	}
	t.Logf("64 clients that demand 17 GiB: %v, peak RSS %d MiB", a.health(), peak/mib)
	for _, s := range crowd {
		s.Close()
	}
	a.finish()
}
