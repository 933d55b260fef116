package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options configure a Server. A zero value of a limit means its default.
type Options struct {
	Backend Backend
	Logger  *slog.Logger
	TLS     *TLS // nil: no listener may ask for TLS

	HandshakeTimeout    time.Duration // all of a handshake; 10 s
	MemoryTotal         int64         // payload of requests in flight, all connections; 512 MiB
	MemoryPerConnection int64         // the same of one connection; 64 MiB
	Workers             int           // requests of one connection that may block at a time; 16
	SpinTime            time.Duration // how long a busy connection polls before it sleeps; 50 us, negative: never
	SocketBuffer        int           // send and receive buffer of each socket; 4 MiB
	DrainTimeout        time.Duration // how long a connection that is being closed may take to accept its last replies; 5 s
}

// ListenerOptions configure one listener. A zero value of a limit means its
// default, a negative one none.
type ListenerOptions struct {
	Name           string // as in Client.Listener
	TLS            TLSMode
	MaxConnections int // 1024
	MaxPerAddress  int // of one IP address; 256
}

func (o *Options) setDefaults() {
	setDefault(&o.HandshakeTimeout, 10*time.Second)
	setDefault(&o.MemoryTotal, 512<<20)
	setDefault(&o.MemoryPerConnection, 64<<20)
	setDefault(&o.Workers, 16)
	setDefault(&o.SpinTime, 50*time.Microsecond)
	setDefault(&o.SocketBuffer, 4<<20)
	setDefault(&o.DrainTimeout, 5*time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Server serves the exports of a Backend.
type Server struct {
	opts   Options
	memory budget
	// spinners bounds how many connections poll at a time, so that polling never
	// takes every processor from those that have work.
	spinners atomic.Int32
	lastID   atomic.Uint64
	closing  atomic.Bool
	// accepting are the calls of Serve that may still take a connection.
	accepting sync.WaitGroup

	mu        sync.Mutex
	conns     map[uint64]*conn
	listeners map[net.Listener]struct{}
}

// NewServer returns a Server; Serve makes it listen.
func NewServer(o Options) (*Server, error) {
	if o.Backend == nil {
		return nil, errors.New("nbd: Options.Backend is missing")
	}
	o.setDefaults()
	s := &Server{opts: o, conns: map[uint64]*conn{}, listeners: map[net.Listener]struct{}{}}
	s.memory.free.Store(o.MemoryTotal)
	return s, nil
}

// Serve accepts connections until ctx ends, Shutdown is called (both return nil)
// or the listener fails. It closes ln. The connections live on until Shutdown.
func (s *Server) Serve(ctx context.Context, ln net.Listener, lo ListenerOptions) error {
	setDefault(&lo.MaxConnections, 1024)
	setDefault(&lo.MaxPerAddress, 256)
	if lo.TLS != TLSOff && s.opts.TLS == nil {
		_ = ln.Close()
		return fmt.Errorf("nbd: listener %s: TLS is %s, but no certificates are configured", ln.Addr(), lo.TLS)
	}
	if !s.addListener(ln) {
		_ = ln.Close()
		return ErrServerClosed
	}
	defer s.removeListener(ln)
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	l := &listener{ListenerOptions: lo}
	for pause := time.Duration(0); ; {
		nc, err := ln.Accept()
		if err == nil {
			pause = 0
			s.accept(l, nc)
			continue
		}
		if ctx.Err() != nil || s.closing.Load() {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("nbd: listener %s: %w", ln.Addr(), err)
		}
		// Out of file descriptors, most likely: it passes when clients leave.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.opts.Logger.Warn("nbd: accept failed, trying again", "listener", ln.Addr().String(), "error", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

func (s *Server) addListener(ln net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	s.listeners[ln] = struct{}{}
	s.accepting.Add(1)
	return true
}

func (s *Server) removeListener(ln net.Listener) {
	_ = ln.Close()
	s.mu.Lock()
	delete(s.listeners, ln)
	s.mu.Unlock()
	s.accepting.Done()
}

// Shutdown stops accepting, has every connection answer the requests that it has
// read, and closes them without reading more: a client that reconnects sends the
// others again, whereas an ESHUTDOWN reply would reach a guest as an I/O error.
// Handshakes are told. When ctx ends first, what is left is cut off.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing.Store(true)
	for ln := range s.listeners {
		_ = ln.Close()
	}
	s.mu.Unlock()
	s.accepting.Wait() // who was accepted a moment ago is told as well
	conns := s.matching(func(*conn) bool { return true })
	for _, c := range conns {
		c.close()
	}
	for _, c := range conns {
		select {
		case <-c.done:
		case <-ctx.Done():
			for _, c := range conns {
				c.abort()
			}
			return fmt.Errorf("nbd: clients had not taken their replies: %w", ctx.Err())
		}
	}
	return nil
}

// Clients lists the connections that have opened an export, oldest first.
func (s *Server) Clients() []Client {
	s.mu.Lock()
	var list []Client
	for _, c := range s.conns {
		if c.state == stateTransmission {
			list = append(list, c.client)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b Client) int { return int(int64(a.ID - b.ID)) })
	return list
}

// DisconnectExport is Disconnect for every connection to an export.
func (s *Server) DisconnectExport(name string) int {
	// The default export may turn out to be this one.
	return s.Disconnect(func(c Client) bool { return c.Export == name || c.Export == "" })
}

// Disconnect closes connections as Shutdown does, and waits until they have let
// go of their exports. It returns how many there were. match is asked for those
// that have opened an export, and for those that are about to: their Export is
// the name asked for, which may be "". It must not call the Server. Clients may
// connect again at once, unless the Backend refuses them.
func (s *Server) Disconnect(match func(Client) bool) int {
	conns := s.matching(func(c *conn) bool { return c.state != stateHandshake && match(c.client) })
	for _, c := range conns {
		c.close()
	}
	for _, c := range conns {
		<-c.done
	}
	return len(conns)
}

// DisconnectID closes one connection as Shutdown does, and waits for it.
func (s *Server) DisconnectID(id uint64) error {
	s.mu.Lock()
	c := s.conns[id]
	s.mu.Unlock()
	if c == nil {
		return fmt.Errorf("%w: %d", ErrUnknownClient, id)
	}
	c.close()
	<-c.done
	return nil
}

func (s *Server) matching(f func(*conn) bool) []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*conn
	for _, c := range s.conns {
		if f(c) {
			list = append(list, c)
		}
	}
	return list
}

// budget bounds memory. It never makes anyone wait: whoever is refused does
// with what it has, so that one who never gives back holds up nobody.
type budget struct{ free atomic.Int64 }

func (b *budget) take(n int64) bool {
	if b.free.Add(-n) < 0 {
		b.free.Add(n)
		return false
	}
	return true
}

func (b *budget) give(n int64) { b.free.Add(n) }
