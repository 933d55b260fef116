package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
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

// The files that nbd tools share, in one folder.
const (
	fileCA         = "ca-cert.pem"
	fileServerCert = "server-cert.pem"
	fileServerKey  = "server-key.pem"
	fileRevoked    = "ca-crl.pem" // optional
)

// TLS holds certificates in the layout that nbd tools share: a folder with
// ca-cert.pem, server-cert.pem, server-key.pem and, if certificates have been
// revoked, ca-crl.pem.
type TLS struct {
	dir         string
	clientCerts bool
	current     atomic.Pointer[tlsFiles]
	config      *tls.Config
}

// tlsFiles is what was loaded together.
type tlsFiles struct {
	config   *tls.Config
	notAfter time.Time // of the server's certificate
}

// LoadTLS reads the certificates in dir. With clientCerts, a client must show a
// certificate signed by the CA; without it, it may, and its name is then known.
func LoadTLS(dir string, clientCerts bool) (*TLS, error) {
	t := &TLS{dir: dir, clientCerts: clientCerts}
	if err := t.Reload(); err != nil {
		return nil, err
	}
	t.config = &tls.Config{
		MinVersion:             tls.VersionTLS12,
		SessionTicketsDisabled: true,
		GetConfigForClient:     func(*tls.ClientHelloInfo) (*tls.Config, error) { return t.current.Load().config, nil },
	}
	return t, nil
}

// Config returns the configuration for crypto/tls; it follows Reload.
func (t *TLS) Config() *tls.Config { return t.config }

// NotAfter is when the server's certificate expires.
func (t *TLS) NotAfter() time.Time { return t.current.Load().notAfter }

// Reload reads the files again, for connections from now on. If one of them
// cannot be used, what was loaded before stays in force.
func (t *TLS) Reload() error {
	file := func(name string) string { return filepath.Join(t.dir, name) }
	cert, err := tls.LoadX509KeyPair(file(fileServerCert), file(fileServerKey))
	if err != nil {
		return fmt.Errorf("TLS: %s and %s in %s: %w", fileServerCert, fileServerKey, t.dir, err)
	}
	authorities, err := readCertificates(file(fileCA))
	if err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	revoked, err := readRevoked(file(fileRevoked), authorities)
	if err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	pool := x509.NewCertPool()
	for _, a := range authorities {
		pool.AddCert(a)
	}
	c := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{cert},
		ClientCAs:    pool,
		ClientAuth:   tls.VerifyClientCertIfGiven,
		// A session that is resumed would not be verified against new files.
		SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) > 0 && revoked[revocation(s.PeerCertificates[0].RawIssuer, s.PeerCertificates[0].SerialNumber.Bytes())] {
				return errors.New("the client's certificate has been revoked")
			}
			return nil
		},
	}
	if t.clientCerts {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	t.current.Store(&tlsFiles{config: c, notAfter: cert.Leaf.NotAfter})
	return nil
}

// readCertificates reads all certificates of a file, of which there is one at
// least.
func readCertificates(name string) ([]*x509.Certificate, error) {
	rest, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var list []*x509.Certificate
	for block, rest := pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s holds no certificate", name)
	}
	return list, nil
}

// revocation names a certificate by issuer and serial number.
func revocation(issuer, serial []byte) string { return string(serial) + "\x00" + string(issuer) }

// readRevoked reads the revoked certificates, none if there is no such file. A
// list that none of the authorities has signed is an error, rather than no list.
func readRevoked(name string, authorities []*x509.Certificate) (map[string]bool, error) {
	rest, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	revoked := map[string]bool{}
	lists := 0
	for block, rest := pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		signed := false
		for _, a := range authorities {
			signed = signed || list.CheckSignatureFrom(a) == nil
		}
		if !signed {
			return nil, fmt.Errorf("%s: a list in it is signed by none of %s", name, fileCA)
		}
		for _, e := range list.RevokedCertificateEntries {
			revoked[revocation(list.RawIssuer, e.SerialNumber.Bytes())] = true
		}
		lists++
	}
	if lists == 0 {
		return nil, fmt.Errorf("%s holds no revocation list", name)
	}
	return revoked, nil
}
