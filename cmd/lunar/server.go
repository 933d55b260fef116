package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"lunar/nbd"
)

// How long the parts of a stop may take. Clients that do not take their replies
// are cut off; a stop ends within seconds.
const (
	nbdGrace   = 5 * time.Second
	adminGrace = 2 * time.Second
	callsGrace = 10 * time.Second
)

// server is the running process: the pool, its NBD listeners and its admin socket.
type server struct {
	pool      pool
	nbd       nbdServer
	admin     *http.Server
	calls     sync.WaitGroup // of the admin API
	stopCalls context.CancelFunc
	log       *slog.Logger
	events    *eventHub

	nbdListeners  []net.Listener
	adminListener net.Listener
	failed        chan error // a listener that broke
}

// startServer brings everything up, or leaves things as they were. What can be
// refused without touching the pool is refused first.
func startServer(ctx context.Context, a *app, c *config, log *slog.Logger) (_ *server, err error) {
	s := &server{log: log, events: newEventHub(), failed: make(chan error, len(c.Listen)+1)}
	defer func() {
		if err != nil {
			s.closeListeners()
			if s.pool != nil {
				err = errors.Join(err, s.pool.Close())
			}
		}
	}()
	adminPath := filepath.Join(c.Data, adminSocket)
	if err := checkSockets(c, adminPath); err != nil {
		return nil, err
	}
	for _, addr := range c.Listen {
		if addr.network != "tcp" {
			continue
		}
		ln, err := listenTCP(ctx, addr)
		if err != nil {
			return nil, err
		}
		s.nbdListeners = append(s.nbdListeners, ln)
	}
	if s.pool, err = a.openPool(ctx, poolOptions{Config: c, Logger: log, Events: s.events.publish}); err != nil {
		return nil, err
	}
	// The lock is ours: what sockets are in the folder are a dead server's.
	if err := s.listenUnixSockets(ctx, c, adminPath); err != nil {
		return nil, err
	}
	if err := removeTemporarySnapshots(ctx, s.pool); err != nil {
		log.Warn("snapshots of interrupted exports could not be removed", "error", err)
	}
	return s, s.serve(a, c)
}

// checkSockets refuses paths that cannot work.
func checkSockets(c *config, adminPath string) error {
	paths := []string{adminPath}
	for _, addr := range c.Listen {
		if addr.network == "unix" {
			paths = append(paths, addr.addr)
		}
	}
	for i, path := range paths {
		if err := checkUnixPath(path); err != nil {
			return fmt.Errorf("%w; use a shorter --data or --listen", err)
		}
		if i > 0 && path == adminPath {
			return fmt.Errorf("socket %s is the admin socket; give another --listen", path)
		}
	}
	for _, path := range paths {
		err := checkSocketPath(path, c.Data)
		var live *liveSocket
		if path == adminPath && errors.As(err, &live) {
			return fmt.Errorf("data folder %s is in use by another server, pid %s; stop it first, or give another --data", c.Data, live.pid)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *server) listenUnixSockets(ctx context.Context, c *config, adminPath string) error {
	// In the order of the configuration, as the ready line has them.
	tcp := s.nbdListeners
	s.nbdListeners = nil
	for _, addr := range c.Listen {
		if addr.network == "tcp" {
			s.nbdListeners, tcp = append(s.nbdListeners, tcp[0]), tcp[1:]
			continue
		}
		ln, err := listenUnix(ctx, addr.addr, 0)
		if err != nil {
			s.nbdListeners = append(s.nbdListeners, tcp...)
			return err
		}
		s.nbdListeners = append(s.nbdListeners, ln)
	}
	var err error
	s.adminListener, err = listenUnix(ctx, adminPath, 0o600)
	return err
}

// serve starts to answer on all listeners.
func (s *server) serve(a *app, c *config) error {
	var err error
	exports := &backend{pool: s.pool}
	if s.nbd, err = a.newNBD(exports, s.log); err != nil {
		return err
	}
	clients := clientControl{s.nbd}
	s.pool.SetClients(clients)
	for _, ln := range s.nbdListeners {
		go func() {
			err := s.nbd.Serve(context.Background(), ln, nbd.ListenerOptions{Name: boundAddress(ln).String()})
			if err != nil && !errors.Is(err, nbd.ErrServerClosed) {
				s.failed <- fmt.Errorf("NBD on %s ended: %w", boundAddress(ln), err)
			}
		}()
	}
	admin := &admin{pool: s.pool, clients: clients, events: s.events, config: c.values, log: s.log,
		changed: func(name string) { exports.changed(name, s.nbd) },
		info:    serverInfo{Version: buildVersion().Version, PID: os.Getpid(), Data: c.Data, Listen: s.addresses()}}
	base, cancel := context.WithCancel(context.Background())
	s.stopCalls = cancel
	s.admin = &http.Server{
		Handler:           s.counted(admin.handler()),
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	go func() {
		if err := s.admin.Serve(s.adminListener); !errors.Is(err, http.ErrServerClosed) {
			s.failed <- fmt.Errorf("admin socket ended: %w", err)
		}
	}()
	return nil
}

// counted lets the stop wait for calls: the pool is not closed under them.
func (s *server) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		defer s.calls.Done()
		h.ServeHTTP(w, r)
	})
}

func (s *server) addresses() []string {
	var list []string
	for _, ln := range s.nbdListeners {
		list = append(list, boundAddress(ln).String())
	}
	return list
}

// readyLine is the one line on stdout, for scripts that wait for it.
func (s *server) readyLine() string {
	var b strings.Builder
	b.WriteString("ready")
	for _, addr := range s.addresses() {
		b.WriteString(" nbd=" + addr)
	}
	b.WriteString(" admin=" + boundAddress(s.adminListener).String())
	return b.String()
}

// run waits for the end of ctx, or for a listener that breaks, and stops.
func (s *server) run(ctx context.Context) error {
	s.log.Info("ready", "listen", s.addresses(), "admin", boundAddress(s.adminListener).String())
	var err error
	select {
	case <-ctx.Done():
		s.log.Info("stopping")
	case err = <-s.failed:
		s.log.Error("stopping", "error", err)
	}
	return errors.Join(err, s.stop())
}

// stop ends the server: clients get the answers to what they have asked, the
// admin calls end, then the pool is closed. The sockets are gone afterwards.
func (s *server) stop() error {
	s.stopCalls()
	ctx, cancel := context.WithTimeout(context.Background(), nbdGrace)
	defer cancel()
	if err := s.nbd.Shutdown(ctx); err != nil {
		s.log.Warn("some clients were cut off", "error", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), adminGrace)
	defer cancel()
	if err := s.admin.Shutdown(ctx); err != nil {
		_ = s.admin.Close()
	}
	s.waitForCalls()
	// Those that had not begun to serve yet are closed here.
	s.closeListeners()
	if err := s.pool.Close(); err != nil {
		return fmt.Errorf("closing the pool: %w; the next start recovers it", err)
	}
	s.log.Info("stopped")
	return nil
}

func (s *server) waitForCalls() {
	done := make(chan struct{})
	go func() {
		s.calls.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(callsGrace):
		s.log.Warn("an admin call did not end; the pool is closed all the same")
	}
}

func (s *server) closeListeners() {
	for _, ln := range s.nbdListeners {
		_ = ln.Close()
	}
	if s.adminListener != nil {
		_ = s.adminListener.Close()
	}
}
