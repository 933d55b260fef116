package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"lunar/integration/client"
	"lunar/integration/harness"
)

// How a client can leave.
const (
	leaveClose = "close" // the kernel resets the connection if replies are unread
	leaveHalf  = "half"  // end of its own stream, while it still takes replies
	leaveReset = "reset"
)

var leaveWays = []string{leaveClose, leaveHalf, leaveReset}

// leave leaves. After a half-close all replies must come, and then the end.
func leave(s *client.Script, way string) error {
	defer s.Close()
	switch way {
	case leaveReset:
		s.Reset()
	case leaveHalf:
		s.Conn.(*net.TCPConn).CloseWrite()
		_, err := s.Ended(10 * time.Second)
		return err
	}
	return nil
}

// conversation is all that a client sends in an ordinary session.
func conversation(terms client.Terms) []byte {
	b := []byte{0, 0, 0, 3}
	switch {
	case terms.Extended:
		b = append(b, client.Option(client.OptExtended, nil)...)
	case terms.Structured:
		b = append(b, client.Option(client.OptStructured, nil)...)
	}
	if len(terms.Contexts) > 0 {
		b = append(b, client.Option(client.OptSetMeta, client.MetaData("evil", terms.Contexts...))...)
	}
	b = append(b, client.Option(client.OptList, nil)...)
	b = append(b, client.Option(client.OptGo, client.GoData("evil", 3))...)
	request := func(command, flags uint16, off, n uint64, payload int) {
		b = append(b, client.Request(terms.Extended, command, flags, uint64(len(b)), off, n)...)
		b = append(b, bytes.Repeat([]byte{0x55}, payload)...)
	}
	request(client.CmdWrite, payloadFlag(terms), 4096, 24, 24)
	request(client.CmdWrite, payloadFlag(terms)|client.CmdFUA, 8192, 8, 8)
	request(client.CmdFlush, 0, 0, 0, 0)
	if len(terms.Contexts) > 0 {
		request(client.CmdBlockStatus, 0, 0, 1<<20, 0)
	}
	request(client.CmdTrim, 0, 100, 9000, 0)
	request(client.CmdZero, client.CmdFUA, 100, 9000, 0)
	request(client.CmdCache, 0, 0, 1<<20, 0)
	request(client.CmdRead, 0, 0, 300<<10, 0)
	request(client.CmdRead, 0, 4096, 24, 0)
	request(client.CmdDisc, 0, 0, 0, 0)
	return b
}

// parallel runs fn for 0..n-1, a few at a time, and returns the first error.
func parallel(n int, fn func(i int) error) error {
	var wg sync.WaitGroup
	errs := make(chan error, n)
	next := make(chan int)
	for range 4 {
		wg.Go(func() {
			for i := range next {
				if err := fn(i); err != nil {
					errs <- err
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	close(errs)
	return <-errs
}

// leaveAnywhere ends a session after each byte of it, in each way.
func (a *arena) leaveAnywhere(t *testing.T) {
	address, total := a.s.TCP(), 0
	for _, terms := range allTerms {
		b := conversation(terms)
		for _, way := range leaveWays {
			err := parallel(len(b)+1, func(n int) error {
				s, err := client.Connect("tcp", address, "")
				if err != nil {
					return err
				}
				s.Write(b[:n])
				if err := leave(s, way); err != nil {
					return fmt.Errorf("%s, %s after %d of %d bytes: %w", termsName(terms), way, n, len(b), err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			total += len(b) + 1
		}
	}
	t.Logf("%d sessions", total)
}

// leaveQueued leaves while replies are outstanding, which makes nbdkit 1.32 abort: many requests of each kind are sent
// and hardly any reply is read.
func (a *arena) leaveQueued(t *testing.T) {
	address, rounds := a.s.TCP(), 4
	if harness.Long() {
		rounds = 100
	}
	type kind struct {
		command, flags uint16
		n              uint64
		count          int
	}
	kinds := []kind{
		{client.CmdRead, 0, 1 << 20, 48}, {client.CmdRead, 0, 4096, 2000}, {client.CmdFlush, 0, 0, 300}, {client.CmdBlockStatus, 0, 1 << 30, 300},
		{client.CmdWrite, client.CmdFUA, 8192, 100}, {client.CmdWrite, 0, 300 << 10, 40}, {client.CmdZero, client.CmdFUA, 1 << 30, 100}, {client.CmdCache, 0, 32 << 20, 50},
	}
	for _, terms := range allTerms {
		for _, way := range leaveWays {
			err := parallel(rounds*len(kinds), func(i int) error {
				k := kinds[i%len(kinds)]
				s, err := client.Greeted("tcp", address)
				if err != nil {
					return err
				}
				if err := s.Attach("evil", terms); err != nil {
					return err
				}
				if way == leaveHalf { // the replies are read, for they must all come
					defer func() { s.Close() }()
				}
				var b []byte
				for c := range uint64(k.count) {
					flags, payload := k.flags, 0
					if k.command == client.CmdWrite {
						flags, payload = flags|payloadFlag(terms), int(k.n)
					}
					off := uint64(0)
					if k.command != client.CmdFlush {
						off = c * k.n % evilSize
					}
					b = append(b, client.Request(terms.Extended, k.command, flags, c, off, k.n)...)
					b = append(b, make([]byte, payload)...)
				}
				sent := make(chan struct{})
				go func() { // with replies unread the server takes no more at some point
					defer close(sent)
					s.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
					s.Write(b)
				}()
				if way == leaveHalf {
					go func() { <-sent; s.Conn.(*net.TCPConn).CloseWrite() }()
					_, err := s.Ended(20 * time.Second)
					if err != nil {
						return fmt.Errorf("%s, %d x command %d: %w", termsName(terms), k.count, k.command, err)
					}
					return nil
				}
				<-sent
				if i%3 == 0 { // at a moment when it works on them
					time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
				}
				return leave(s, way)
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
}

// mutations sends sessions with errors at random: flipped, lost, doubled and swapped bytes.
func (a *arena) mutations(t *testing.T) {
	length := 3 * time.Second
	if harness.Long() {
		length = 5 * time.Minute
	}
	seed, address := uint64(time.Now().UnixNano()), a.s.TCP()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for worker := range uint64(4) {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(seed, worker))
			for began := time.Now(); time.Since(began) < length; {
				terms := allTerms[random.IntN(len(allTerms))]
				b := mutate(random, conversation(terms))
				s, err := client.Connect("tcp", address, "")
				if err != nil {
					t.Error(err)
					return
				}
				s.SetWriteDeadline(time.Now().Add(time.Second))
				for rest := b; len(rest) > 0; {
					n := min(len(rest), 1+random.IntN(200))
					if _, err := s.Write(rest[:n]); err != nil {
						break
					}
					rest = rest[n:]
				}
				if err := leave(s, leaveWays[random.IntN(len(leaveWays))]); err != nil {
					t.Errorf("%v after % x", err, b)
					return
				}
				mu.Lock()
				total++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%d sessions", total)
}

func mutate(random *rand.Rand, b []byte) []byte {
	for range 1 + random.IntN(4) {
		at := random.IntN(len(b))
		n := min(1+random.IntN(8), len(b)-at)
		switch random.IntN(6) {
		case 0:
			b[at] ^= 1 << random.IntN(8)
		case 1:
			b[at] = 0xff
		case 2: // lost
			b = append(b[:at:at], b[at+n:]...)
		case 3: // doubled
			b = append(b[:at:at], append(bytes.Clone(b[at:at+n]), b[at:]...)...)
		case 4: // a length, most likely
			for i := range n {
				b[at+i] = byte(random.Uint32())
			}
		case 5: // inserted
			b = append(b[:at:at], append(make([]byte, 4*n), b[at:]...)...)
		}
		if len(b) == 0 {
			return []byte{0}
		}
	}
	return b
}
