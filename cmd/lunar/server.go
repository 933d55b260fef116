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
	"slices"
	"strings"
	"sync"
	"time"

	"lunar/lun"
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
	tls       *nbd.TLS // nil: no listener wants it
	admin     *http.Server
	calls     sync.WaitGroup // of the admin API
	stopCalls context.CancelFunc
	log       *slog.Logger
	events    *eventHub

	nbdListeners  []nbdListener
	adminListener net.Listener
	failed        chan error // a listener that broke
	files         fileShare
}

// nbdListener is one place where NBD is served; Listener is nil until it listens.
type nbdListener struct {
	listenAddress
	net.Listener
	mode nbd.TLSMode
}

// startServer brings everything up, or leaves things as they were. What can be
// refused without touching the pool is refused first.
func startServer(ctx context.Context, a *app, c *config, log *slog.Logger) (_ *server, err error) {
	s := &server{log: log, events: newEventHub(), nbdListeners: planListeners(c)}
	s.failed = make(chan error, len(s.nbdListeners)+1)
	defer func() {
		if err != nil {
			s.closeListeners()
			if s.pool != nil {
				err = errors.Join(err, s.pool.Close())
			}
		}
	}()
	if s.files, err = ownFileShare(len(s.nbdListeners)); err != nil {
		return nil, err
	}
	adminPath := filepath.Join(c.Data, adminSocket)
	if err := s.checkSockets(c.Data, adminPath); err != nil {
		return nil, err
	}
	if err := s.loadTLS(c); err != nil {
		return nil, err
	}
	if err := s.listen(ctx, "tcp"); err != nil {
		return nil, err
	}
	if s.pool, err = a.openPool(ctx, poolOptions{Config: c, Files: s.files.pool, Logger: log, Events: s.events.publish}); err != nil {
		return nil, err
	}
	// The lock is ours: what sockets are in the folder are a dead server's.
	if err := s.listen(ctx, "unix"); err != nil {
		return nil, err
	}
	if s.adminListener, err = listenUnix(ctx, adminPath, 0o600); err != nil {
		return nil, err
	}
	if err := removeTemporarySnapshots(ctx, s.pool); err != nil {
		log.Warn("snapshots of interrupted exports could not be removed", "error", err)
	}
	return s, s.serve(a, c)
}

// planListeners says where NBD will be served: on the addresses of the
// configuration, and on what sockets were passed to this process. A passed socket
// that is bound to a configured address stands for it.
func planListeners(c *config) []nbdListener {
	var list []nbdListener
	if len(c.Listen) > 0 || len(c.Passed) == 0 {
		for _, a := range c.listeners() {
			list = append(list, nbdListener{listenAddress: a, mode: a.mode(c.TLSMode)})
		}
	}
	for _, ln := range c.Passed {
		at := boundAddress(ln)
		i := slices.IndexFunc(list, func(l nbdListener) bool { return l.address == at && l.Listener == nil })
		if i < 0 {
			a := listenAddress{address: at}
			i, list = len(list), append(list, nbdListener{listenAddress: a, mode: a.mode(c.TLSMode)})
		}
		list[i].Listener = ln
	}
	return list
}

// loadTLS loads the certificates if a listener needs them.
func (s *server) loadTLS(c *config) (err error) {
	for _, l := range s.nbdListeners {
		if l.mode == nbd.TLSOff {
			continue
		}
		if c.TLSDir == "" {
			return noCertificates(l.listenAddress, l.mode)
		}
		if s.tls, err = nbd.LoadTLS(c.TLSDir, c.TLSClientCerts); err != nil {
			return fmt.Errorf("%w; \"lunar tls init DIR\" makes a folder of certificates", err)
		}
		s.logTLS("TLS certificates loaded")
		return nil
	}
	return nil
}

func (s *server) logTLS(message string) {
	level := slog.LevelInfo
	if time.Until(s.tls.NotAfter()) < 0 {
		level = slog.LevelWarn
	}
	s.log.Log(context.Background(), level, message, "server_certificate_expires", s.tls.NotAfter().UTC().Format(time.RFC3339))
}

// reload reads again what can change under a running server: the certificates.
// Connections that are there go on with the old ones.
func (s *server) reload() {
	if s.tls == nil {
		s.log.Info("SIGHUP: nothing to read again, no listener uses TLS")
		return
	}
	if err := s.tls.Reload(); err != nil {
		s.log.Error("SIGHUP: the certificates were not read again, the old ones stay in force", "error", err)
		return
	}
	s.logTLS("SIGHUP: TLS certificates read again")
}

// tlsWarning tells of a certificate that ends soon.
func (s *server) tlsWarning() []lun.Warning {
	if s.tls == nil {
		return nil
	}
	left := time.Until(s.tls.NotAfter())
	w := lun.Warning{Level: levelWarning, Message: fmt.Sprintf("the TLS certificate of the server expires in %d days; renew it and send SIGHUP", int(left.Hours()/24))}
	switch {
	case left < 0:
		w = lun.Warning{Level: levelCritical, Message: "the TLS certificate of the server has expired; renew it and send SIGHUP"}
	case left > certificateNotice:
		return nil
	}
	return []lun.Warning{w}
}

// certificateNotice is how long before its end a certificate is warned of.
const certificateNotice = 14 * 24 * time.Hour

// checkSockets refuses paths that cannot work.
func (s *server) checkSockets(data, adminPath string) error {
	paths := []string{adminPath}
	for _, l := range s.nbdListeners {
		if l.network == "unix" && l.Listener == nil {
			paths = append(paths, l.addr)
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
		err := checkSocketPath(path, data)
		var live *liveSocket
		if path == adminPath && errors.As(err, &live) {
			return fmt.Errorf("data folder %s is in use by another server, pid %s; stop it first, or give another --data", data, live.pid)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// listen brings up those listeners of a network that do not listen yet.
func (s *server) listen(ctx context.Context, network string) (err error) {
	for i := range s.nbdListeners {
		l := &s.nbdListeners[i]
		switch {
		case l.network != network || l.Listener != nil:
			continue
		case network == "tcp":
			l.Listener, err = listenTCP(ctx, l.address)
		default:
			l.Listener, err = listenUnix(ctx, l.addr, 0)
		}
		if err != nil {
			l.Listener = nil
			return err
		}
	}
	return nil
}

// serve starts to answer on all listeners.
func (s *server) serve(a *app, c *config) error {
	var err error
	exports := &backend{pool: s.pool}
	o := c.NBD
	o.Backend, o.Logger, o.TLS = exports, s.log, s.tls
	if s.nbd, err = a.newNBD(o); err != nil {
		return err
	}
	clients := clientControl{s.nbd}
	s.pool.SetClients(clients)
	for _, l := range s.nbdListeners {
		lo := nbd.ListenerOptions{Name: boundAddress(l).String(), TLS: l.mode, MaxConnections: s.files.connections(c.PerListener), MaxPerAddress: noLimit(c.PerAddress)}
		go func() {
			err := s.nbd.Serve(context.Background(), l.Listener, lo)
			if err != nil && !errors.Is(err, nbd.ErrServerClosed) {
				s.failed <- fmt.Errorf("NBD on %s ended: %w", lo.Name, err)
			}
		}()
	}
	admin := &admin{pool: s.pool, clients: clients, events: s.events, config: c.values, log: s.log,
		changed: func(name string) { exports.changed(name, s.nbd) }, warnings: s.tlsWarning,
		info: serverInfo{Version: buildVersion().Version, PID: os.Getpid(), Data: c.Data, Listen: s.addresses()}}
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

// noLimit turns the configuration's 0, no limit, into nbd's.
func noLimit(n int) int {
	if n == 0 {
		return -1
	}
	return n
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
	for _, l := range s.nbdListeners {
		list = append(list, boundAddress(l).String())
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
func (s *server) run(ctx context.Context, hangup <-chan os.Signal) error {
	s.log.Info("ready", "listen", s.addresses(), "admin", boundAddress(s.adminListener).String())
	for {
		select {
		case <-hangup:
			s.reload()
		case <-ctx.Done():
			s.log.Info("stopping")
			return s.stop()
		case err := <-s.failed:
			s.log.Error("stopping", "error", err)
			return errors.Join(err, s.stop())
		}
	}
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
	for _, l := range s.nbdListeners {
		if l.Listener != nil {
			_ = l.Close()
		}
	}
	if s.adminListener != nil {
		_ = s.adminListener.Close()
	}
}
