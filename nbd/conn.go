package nbd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

// connState is how far a connection has come.
type connState int

const (
	stateHandshake connState = iota
	stateOpening             // an export is being opened for it
	stateTransmission
)

// shutdownHandshake is how long a handshake may go on during shutdown, to be
// told of it.
const shutdownHandshake = 250 * time.Millisecond

// linger is how long a closed connection is kept for the client to take its
// last replies: closing a TCP socket that has unread input resets it, which
// would throw away replies that are still on their way.
const linger = 500 * time.Millisecond

// refusalLogPause is how long refusals are only counted after one was logged.
const refusalLogPause = 10 * time.Second

// listener counts the connections of one listener, under Server.mu.
type listener struct {
	ListenerOptions
	conns int

	// Of the listener's goroutine.
	refused       int // since refusedLogged
	refusedLogged time.Time
}

// conn is one connection, from accept to the end.
type conn struct {
	srv    *Server
	ctx    context.Context // ends when the connection is being closed
	cancel context.CancelFunc
	done   chan struct{} // closed when the connection holds nothing any more

	// Guarded by srv.mu.
	listener *listener
	client   Client
	state    connState
	closing  bool

	dead sync.Once
	sock net.Conn // as accepted
	nc   net.Conn // sock, or TLS on it; changed by the handshake only
}

// accept takes a new connection, unless there are too many.
func (s *Server) accept(l *listener, sock net.Conn) {
	c := &conn{srv: s, done: make(chan struct{}), listener: l, sock: sock, nc: sock}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.client = Client{ID: s.lastID.Add(1), Address: peerName(sock), IP: peerIP(sock), Listener: l.Name, Since: time.Now()}
	if !s.admit(c) {
		l.noteRefused(s.opts.Logger, c.client.Address)
		c.cancel()
		_ = sock.Close()
		return
	}
	go c.serve()
}

// noteRefused logs the first of many refusals, and the others by their number: whoever comes again and again may not
// fill the log. It is called by the listener's own goroutine only.
func (l *listener) noteRefused(log *slog.Logger, address string) {
	l.refused++
	if now := time.Now(); now.Sub(l.refusedLogged) >= refusalLogPause {
		log.Warn("nbd: too many connections, refused", "listener", l.Name, "last", address, "refused", l.refused)
		l.refused, l.refusedLogged = 0, now
	}
}

// admit counts a connection in. Where the listener is full, the oldest
// connection that has not finished its handshake makes room: those who connect
// and say nothing cannot keep others out.
func (s *Server) admit(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := c.listener
	same := 0
	var oldest *conn
	for _, other := range s.conns {
		if other.listener != l {
			continue
		}
		if c.client.IP.IsValid() && other.client.IP == c.client.IP {
			same++
		}
		if other.state == stateHandshake && !other.closing && (oldest == nil || other.client.ID < oldest.client.ID) {
			oldest = other
		}
	}
	if l.MaxPerAddress > 0 && same >= l.MaxPerAddress {
		return false
	}
	if l.MaxConnections > 0 && l.conns >= l.MaxConnections {
		if oldest == nil {
			return false
		}
		oldest.closing = true
		oldest.abort()
	}
	l.conns++
	s.conns[c.client.ID] = c
	return true
}

func peerName(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil && a.String() != "" && a.String() != "@" {
		return a.String()
	}
	return "unix"
}

func peerIP(nc net.Conn) netip.Addr {
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// serve is the life of a connection. Nothing that goes wrong in it, a panic
// included, may reach beyond it.
func (c *conn) serve() {
	log := c.srv.opts.Logger.With("client", c.client.ID, "address", c.client.Address)
	var device Device
	defer func() {
		c.recovered(recover())
		c.release(device)
	}()
	if err := c.sock.SetDeadline(time.Now().Add(c.srv.opts.HandshakeTimeout)); err != nil {
		return
	}
	n := &negotiation{
		ctx: c.ctx, backend: c.srv.opts.Backend, client: c.client, tls: c.listener.TLS,
		shuttingDown: c.srv.closing.Load, opening: c.opening,
	}
	a, err := c.handshake(n)
	if err != nil {
		level := log.Debug
		if errors.Is(err, os.ErrDeadlineExceeded) {
			level = log.Info
		}
		level("nbd: no transmission", "reason", err)
		c.tellOver()
		return
	}
	device = a.device
	tuneSocket(c.sock, c.srv.opts.SocketBuffer)
	if !c.begin() {
		return
	}
	log.Info("nbd: client attached", "export", c.client.Export, "tls", c.client.TLS)
	started := time.Now()
	err = newSession(c, a).serve()
	log.Info("nbd: client gone", "export", c.client.Export, "after", time.Since(started).Round(time.Millisecond), "reason", reason(err))
	c.tellOver()
}

func reason(err error) string {
	if err == nil || errors.Is(err, io.EOF) {
		return "disconnected"
	}
	return err.Error()
}

// recovered logs a panic; the connection ends, the others do not notice.
func (c *conn) recovered(p any) {
	if p != nil {
		c.srv.opts.Logger.Error("nbd: panic, the connection is closed", "client", c.client.ID, "panic", p, "stack", string(debug.Stack()))
		c.abort()
	}
}

// release gives back everything the connection holds.
func (c *conn) release(device Device) {
	c.cancel()
	c.abort()
	if device != nil {
		func() {
			defer func() { c.recovered(recover()) }()
			if err := device.Close(); err != nil {
				c.srv.opts.Logger.Error("nbd: closing an export failed", "client", c.client.ID, "error", err)
			}
		}()
	}
	c.srv.mu.Lock()
	delete(c.srv.conns, c.client.ID)
	c.listener.conns--
	c.srv.mu.Unlock()
	close(c.done)
}

// opening notes which export is about to be opened.
func (c *conn) opening(name string) {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	c.client.Export, c.state = name, stateOpening
}

// opened notes which export was opened, by its own name.
func (c *conn) opened(name string, d Device) {
	if named, ok := d.(Namer); ok {
		name = named.Name()
	}
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	c.client.Export = name
}

// secured notes that TLS was started.
func (c *conn) secured(nc net.Conn, commonName string) Client {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	c.nc = nc
	c.client.TLS, c.client.CommonName = true, commonName
	return c.client
}

// begin enters transmission: there is no time limit any more. It reports false
// where the connection has been told to close in the meantime.
func (c *conn) begin() bool {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	if c.closing {
		return false
	}
	c.state = stateTransmission
	c.client.Since = time.Now()
	return c.sock.SetDeadline(time.Time{}) == nil
}

// close has the connection end by itself: requests that were read are answered,
// nothing more is read. A client that does not take its replies is cut off.
func (c *conn) close() {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	if c.closing {
		return
	}
	c.closing = true
	if c.state != stateTransmission && c.srv.closing.Load() {
		_ = c.sock.SetDeadline(time.Now().Add(shutdownHandshake))
		return
	}
	_ = c.sock.SetReadDeadline(time.Unix(1, 0))
	_ = c.sock.SetWriteDeadline(time.Now().Add(c.srv.opts.DrainTimeout))
	c.cancel()
}

func (c *conn) isClosing() bool {
	c.srv.mu.Lock()
	defer c.srv.mu.Unlock()
	return c.closing
}

// abort cuts the connection off.
func (c *conn) abort() { c.dead.Do(func() { _ = c.sock.Close() }) }

// tellOver says goodbye where a client may still be reading: it ends our side of
// the stream and gives the client time to take what was sent.
func (c *conn) tellOver() {
	_ = c.sock.SetDeadline(time.Now().Add(linger))
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(c.sock, 2*maxPayload))
}
