package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
)

// TLSMode says what a listener does about TLS.
type TLSMode int

// The modes of a listener.
const (
	TLSOff      TLSMode = iota // STARTTLS is refused
	TLSAllowed                 // the client chooses
	TLSRequired                // no option but STARTTLS and ABORT is served without TLS
)

// ParseTLSMode reads a mode as it stands in a configuration.
func ParseTLSMode(s string) (TLSMode, error) {
	switch s {
	case "", "off":
		return TLSOff, nil
	case "allowed":
		return TLSAllowed, nil
	case "required":
		return TLSRequired, nil
	}
	return TLSOff, fmt.Errorf("TLS mode %q is not one of off, allowed, required", s)
}

func (m TLSMode) String() string {
	return [...]string{"off", "allowed", "required"}[m]
}

// TLS holds certificates in the layout that nbd tools share: a folder with
// ca-cert.pem, server-cert.pem and server-key.pem.
type TLS struct {
	dir         string
	clientCerts bool
	current     atomic.Pointer[tls.Config]
	config      *tls.Config
}

// LoadTLS reads the certificates in dir. With clientCerts, a client must show a
// certificate signed by the CA; without it, it may, and its name is then known.
func LoadTLS(dir string, clientCerts bool) (*TLS, error) {
	t := &TLS{dir: dir, clientCerts: clientCerts}
	if err := t.Reload(); err != nil {
		return nil, err
	}
	t.config = &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return t.current.Load(), nil },
	}
	return t, nil
}

// Config returns the configuration for crypto/tls; it follows Reload.
func (t *TLS) Config() *tls.Config { return t.config }

// Reload reads the files again, for connections from now on. If one of them
// cannot be used, what was loaded before stays in force.
func (t *TLS) Reload() error {
	file := func(name string) string { return filepath.Join(t.dir, name) }
	cert, err := tls.LoadX509KeyPair(file("server-cert.pem"), file("server-key.pem"))
	if err != nil {
		return fmt.Errorf("TLS: server-cert.pem and server-key.pem in %s: %w", t.dir, err)
	}
	pem, err := os.ReadFile(file("ca-cert.pem"))
	if err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("TLS: %s holds no certificate", file("ca-cert.pem"))
	}
	c := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{cert},
		ClientCAs:    pool,
		ClientAuth:   tls.VerifyClientCertIfGiven,
	}
	if t.clientCerts {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	t.current.Store(c)
	return nil
}
