package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"lunar/lun"
)

// Names of the files that nbd tools share; the key of the CA is needed only
// where certificates are made.
const (
	caCertFile     = "ca-cert.pem"
	caKeyFile      = "ca-key.pem"
	serverCertFile = "server-cert.pem"
	serverKeyFile  = "server-key.pem"
	clientCertFile = "client-cert.pem"
	clientKeyFile  = "client-key.pem"
)

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// identity is a certificate and its key as they stand in files.
type identity struct{ cert, key []byte }

// newAuthority makes a CA.
func newAuthority(from, until time.Time) (*authority, identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, identity{}, err
	}
	a := &authority{key: key, cert: &x509.Certificate{
		Subject: pkix.Name{CommonName: "Lunar CA " + from.UTC().Format("2006-01-02 15:04")}, IsCA: true, BasicConstraintsValid: true,
		MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}}
	id, err := a.sign(a.cert, key, from, until)
	if err != nil {
		return nil, identity{}, err
	}
	block, _ := pem.Decode(id.cert)
	a.cert, err = x509.ParseCertificate(block.Bytes)
	return a, id, err
}

// server makes a certificate for a server that is reached by these names.
func (a *authority) server(hosts []string, from, until time.Time) (identity, error) {
	t := &x509.Certificate{Subject: pkix.Name{CommonName: hosts[0]}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	return a.issue(t, from, until)
}

// client makes a certificate for a client of this name.
func (a *authority) client(name string, from, until time.Time) (identity, error) {
	return a.issue(&x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, from, until)
}

func (a *authority) issue(t *x509.Certificate, from, until time.Time) (identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return identity{}, err
	}
	// qemu demands both, although ECDSA has no use for the second.
	t.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	if until.After(a.cert.NotAfter) {
		until = a.cert.NotAfter
	}
	return a.sign(t, key, from, until)
}

func (a *authority) sign(t *x509.Certificate, key *ecdsa.PrivateKey, from, until time.Time) (id identity, err error) {
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126)); err != nil {
		return id, err
	}
	// Clocks of clients may be a little behind.
	t.NotBefore, t.NotAfter = from.Add(-time.Hour).UTC(), until.UTC()
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return id, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	id.cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	id.key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	return id, err
}

// loadAuthority reads the CA of a folder.
func loadAuthority(dir string) (*authority, []byte, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, caCertFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("folder %s: there is no %s; make one with \"lunar tls init %s\"", dir, caCertFile, dir)
	}
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, nil, fmt.Errorf("the key of the CA: %w; certificates are made where it is", err)
	}
	cert, err := parsePEM(certPEM, x509.ParseCertificate)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", filepath.Join(dir, caCertFile), err)
	}
	any, err := parsePEM(keyPEM, x509.ParsePKCS8PrivateKey)
	key, ok := any.(*ecdsa.PrivateKey)
	if err != nil || !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, nil, fmt.Errorf("%s: not the key of %s, as \"lunar tls init\" makes it", filepath.Join(dir, caKeyFile), caCertFile)
	}
	return &authority{cert, key}, certPEM, nil
}

func parsePEM[T any](p []byte, parse func([]byte) (T, error)) (zero T, err error) {
	block, _ := pem.Decode(p)
	if block == nil {
		return zero, errors.New("no PEM in it")
	}
	return parse(block.Bytes)
}

// certificateHosts are the names in a server's certificate.
func certificateHosts(file string) ([]string, error) {
	p, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	cert, err := parsePEM(p, x509.ParseCertificate)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	hosts := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	// The first one is the subject, and in the commands that are printed.
	if i := slices.Index(hosts, cert.Subject.CommonName); i > 0 {
		hosts = append([]string{hosts[i]}, slices.Delete(hosts, i, i+1)...)
	}
	return hosts, nil
}

// checkHost holds the rule for names of a server.
func checkHost(s string) error {
	label := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_'
	}
	bad := func(c rune) bool { return !label(c) }
	if net.ParseIP(s) == nil && (s == "" || len(s) > 253 || strings.ContainsFunc(s, bad) || strings.Trim(s, ".-") != s) {
		return lun.Errorf(lun.ErrInvalid, "host %q: want a host name or an IP address, without a port", s)
	}
	return nil
}

// certFile is a file to be written.
type certFile struct {
	name    string
	content []byte
	mode    fs.FileMode
}

func (id identity) files(cert, key string) []certFile {
	return []certFile{{key, id.key, 0o600}, {cert, id.cert, 0o644}}
}

// writeCertFiles writes all files, each as a whole or not at all. Unless force,
// none is written if one of them is there.
func writeCertFiles(files []certFile, force bool) error {
	for _, f := range files {
		if _, err := os.Lstat(f.name); err == nil && !force {
			return fmt.Errorf("%s exists already; --force replaces it", f.name)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, f := range files {
		if err := os.MkdirAll(filepath.Dir(f.name), 0o755); err != nil {
			return err
		}
		if err := writeCertFile(f); err != nil {
			return err
		}
	}
	return nil
}

func writeCertFile(f certFile) error {
	t, err := os.CreateTemp(filepath.Dir(f.name), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = t.Write(f.content)
	err = errors.Join(err, t.Chmod(f.mode), t.Sync(), t.Close())
	if err == nil {
		err = os.Rename(t.Name(), f.name)
	}
	if err != nil {
		_ = os.Remove(t.Name())
	}
	return err
}
