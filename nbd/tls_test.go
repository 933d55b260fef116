package nbd_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

// certs is a CA with a server and a client certificate, in files and in memory.
type certs struct {
	dir    string
	pool   *x509.CertPool
	client tls.Certificate
	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
}

func makeCerts(t *testing.T) certs {
	t.Helper()
	c := certs{dir: t.TempDir(), pool: x509.NewCertPool()}
	caKey, ca := makeCert(t, "test CA", nil, nil)
	c.pool.AddCert(ca)
	writePEM(t, c.dir, "ca-cert.pem", "CERTIFICATE", ca.Raw)
	serverKey, server := makeCert(t, "localhost", ca, caKey)
	writePEM(t, c.dir, "server-cert.pem", "CERTIFICATE", server.Raw)
	writePEM(t, c.dir, "server-key.pem", "EC PRIVATE KEY", keyBytes(t, serverKey))
	clientKey, client := makeCert(t, "alice", ca, caKey)
	c.client = tls.Certificate{Certificate: [][]byte{client.Raw}, PrivateKey: clientKey}
	c.ca, c.caKey = ca, caKey
	return c
}

func makeCert(t *testing.T, name string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		DNSNames:     []string{name},
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid = true, true
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

func keyBytes(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func writePEM(t *testing.T, dir, name, kind string, der []byte) {
	t.Helper()
	p := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, name), p, 0o600); err != nil {
		t.Fatal(err)
	}
}

func serveTLS(t *testing.T, c certs, clientCerts bool, mode nbd.TLSMode) (*nbd.Server, *nbd.TLS, func() *nbdtest.Client) {
	t.Helper()
	loaded, err := nbd.LoadTLS(c.dir, clientCerts)
	if err != nil {
		t.Fatal(err)
	}
	s, addr := nbdtest.Serve(t, nbd.Options{Backend: nbdtest.NewBackend(nbdtest.NewMemory("mem", 8<<20)), TLS: loaded},
		nbd.ListenerOptions{TLS: mode})
	return s, loaded, func() *nbdtest.Client { return nbdtest.Dial(t, addr) }
}

// upgrade starts TLS on a connection.
func upgrade(c *nbdtest.Client, config *tls.Config) error {
	c.MustAck(nbdtest.OptStartTLS, nil)
	conn := tls.Client(c.Conn, config)
	c.Conn = conn
	return conn.Handshake()
}

func TestTLS(t *testing.T) {
	certs := makeCerts(t)
	s, _, dial := serveTLS(t, certs, true, nbd.TLSRequired)
	c := dial()
	// What is agreed on in the clear has to be forgotten: after TLS, metadata
	// contexts are refused as structured replies are not negotiated.
	if r := c.Last(nbdtest.OptStructuredReply, nil); r.Type != nbdtest.RepErrTLSReqd {
		t.Fatalf("STRUCTURED_REPLY in the clear: %#x", r.Type)
	}
	if err := upgrade(c, &tls.Config{RootCAs: certs.pool, ServerName: "localhost", Certificates: []tls.Certificate{certs.client}}); err != nil {
		t.Fatal(err)
	}
	if r := c.Last(nbdtest.OptSetMeta, nbdtest.MetaData("mem", "base:allocation")); r.Type != nbdtest.RepErrInvalid {
		t.Errorf("SET_META_CONTEXT without structured replies: %#x", r.Type)
	}
	if r := c.Last(nbdtest.OptStartTLS, nil); r.Type != nbdtest.RepErrInvalid {
		t.Errorf("a second STARTTLS: %#x", r.Type)
	}
	c.MustAck(nbdtest.OptStructuredReply, nil)
	c.Structured = true
	c.Go("mem")
	p := make([]byte, 3<<20)
	_, _ = rand.Read(p)
	c.Write(4096, p)
	if string(c.Read(4096, len(p))) != string(p) {
		t.Error("data came back changed over TLS")
	}
	c.Must(nbdtest.FlagFUA, nbdtest.CmdWrite, 0, 5, []byte("hello"))
	if list := s.Clients(); len(list) != 1 || !list[0].TLS || list[0].CommonName != "alice" || list[0].Export != "mem" {
		t.Errorf("Clients: %+v", list)
	}
	c.Disc()
}

func TestTLSStateReset(t *testing.T) {
	certs := makeCerts(t)
	_, _, dial := serveTLS(t, certs, false, nbd.TLSAllowed)
	c := dial()
	c.MustAck(nbdtest.OptExtended, nil)
	c.MustAck(nbdtest.OptSetMeta, nbdtest.MetaData("mem", "base:allocation"))
	if err := upgrade(c, &tls.Config{RootCAs: certs.pool, ServerName: "localhost"}); err != nil {
		t.Fatal(err)
	}
	c.Go("mem")
	if c.Flags&(1<<7) != 0 {
		t.Error("DF is offered: structured replies have survived STARTTLS")
	}
	if string(c.Read(0, 10)) != string(make([]byte, 10)) { // a simple reply, or this fails
		t.Error("not zero")
	}
	c.Disc()
}

// TestTLSInjected: options behind STARTTLS in the clear are not served.
func TestTLSInjected(t *testing.T) {
	_, _, dial := serveTLS(t, makeCerts(t), false, nbd.TLSAllowed)
	c := dial()
	c.Send(append(nbdtest.Option(nbdtest.OptStartTLS, nil), nbdtest.Option(nbdtest.OptGo, nbdtest.InfoData("mem"))...))
	if r := c.Replies(nbdtest.OptStartTLS); len(r) != 1 || r[0].Type != nbdtest.RepAck {
		t.Fatalf("STARTTLS: %v", r)
	}
	p := make([]byte, 64) // an alert of TLS may come, but nothing of NBD
	n, _ := c.Conn.Read(p)
	if n > 7 {
		t.Errorf("the server went on in the clear: %x", p[:n])
	}
}

func TestTLSClientCertificates(t *testing.T) {
	certs, others := makeCerts(t), makeCerts(t)
	s, _, dial := serveTLS(t, certs, true, nbd.TLSRequired)
	for name, config := range map[string]*tls.Config{
		"none":       {RootCAs: certs.pool, ServerName: "localhost"},
		"another CA": {RootCAs: certs.pool, ServerName: "localhost", Certificates: []tls.Certificate{others.client}},
		"TLS 1.1":    {RootCAs: certs.pool, ServerName: "localhost", Certificates: []tls.Certificate{certs.client}, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10},
	} {
		c := dial()
		err := upgrade(c, config)
		if err == nil { // TLS 1.3 reports a refused certificate with the first read
			err = c.Gone()
			if err == nil {
				continue
			}
			t.Errorf("client certificate %s was accepted: %v", name, err)
		}
	}
	if n := len(s.Clients()); n != 0 {
		t.Errorf("%d clients", n)
	}
}

func TestTLSReload(t *testing.T) {
	first, second := makeCerts(t), makeCerts(t)
	_, loaded, dial := serveTLS(t, first, false, nbd.TLSRequired)
	c := dial()
	if err := upgrade(c, &tls.Config{RootCAs: second.pool, ServerName: "localhost"}); err == nil {
		t.Fatal("trusted by the wrong CA")
	}
	for _, name := range []string{"ca-cert.pem", "server-cert.pem", "server-key.pem"} {
		p, err := os.ReadFile(filepath.Join(second.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(first.dir, name), p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := loaded.Reload(); err != nil {
		t.Fatal(err)
	}
	c = dial()
	if err := upgrade(c, &tls.Config{RootCAs: second.pool, ServerName: "localhost"}); err != nil {
		t.Fatalf("after Reload: %v", err)
	}
	c.Go("mem")
	c.Disc()
	if err := os.WriteFile(filepath.Join(first.dir, "server-key.pem"), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if loaded.Reload() == nil {
		t.Error("rubbish was loaded")
	}
	c = dial()
	if err := upgrade(c, &tls.Config{RootCAs: second.pool, ServerName: "localhost"}); err != nil {
		t.Errorf("a failed Reload has changed something: %v", err)
	}
}

func TestTLSNotConfigured(t *testing.T) {
	if _, err := nbd.LoadTLS(t.TempDir(), false); err == nil {
		t.Error("an empty folder was loaded")
	}
	if _, err := nbd.ParseTLSMode("maybe"); err == nil {
		t.Error("an unknown mode was accepted")
	}
}

// config is a client's, without a certificate.
func (c certs) config() *tls.Config { return &tls.Config{RootCAs: c.pool, ServerName: "localhost"} }

// revoke writes a revocation list of a certificate, signed by the CA of by.
func (c certs) revoke(t *testing.T, by certs, der []byte) {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: cert.SerialNumber, RevocationTime: time.Now()}},
	}, by.ca, by.caKey)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, c.dir, "ca-crl.pem", "X509 CRL", list)
}

// TestTLSRevoked: a certificate on the CA's list is refused, and a list that is
// not the CA's is not taken for an empty one.
func TestTLSRevoked(t *testing.T) {
	certs, others := makeCerts(t), makeCerts(t)
	_, loaded, dial := serveTLS(t, certs, false, nbd.TLSRequired)
	config := certs.config()
	config.Certificates = []tls.Certificate{certs.client}
	accepted := func() bool {
		c := dial()
		if upgrade(c, config) != nil {
			return false
		}
		// TLS 1.3 reports a refused certificate with the first read.
		c.Send(nbdtest.Option(nbdtest.OptList, nil))
		n, _ := c.Conn.Read(make([]byte, 20))
		return n > 0
	}
	if !accepted() {
		t.Fatal("refused before it was revoked")
	}
	certs.revoke(t, certs, others.client.Certificate[0])
	if err := loaded.Reload(); err != nil || !accepted() {
		t.Errorf("refused though another is revoked: %v", err)
	}
	certs.revoke(t, certs, certs.client.Certificate[0])
	if err := loaded.Reload(); err != nil || accepted() {
		t.Errorf("a revoked certificate is accepted: %v", err)
	}
	certs.revoke(t, others, certs.client.Certificate[0])
	if loaded.Reload() == nil {
		t.Error("a list by another CA was loaded")
	}
	for _, rubbish := range []string{"", "rubbish", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"} {
		if err := os.WriteFile(filepath.Join(certs.dir, "ca-crl.pem"), []byte(rubbish), 0o600); err != nil {
			t.Fatal(err)
		}
		if loaded.Reload() == nil {
			t.Errorf("%q was loaded", rubbish)
		}
	}
	if accepted() {
		t.Error("a failed Reload has forgotten the list")
	}
}

// TestTLSBadCA: a file with a certificate that cannot be read is refused as a
// whole.
func TestTLSBadCA(t *testing.T) {
	certs := makeCerts(t)
	good, err := os.ReadFile(filepath.Join(certs.dir, "ca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "rubbish", string(good) + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if err := os.WriteFile(filepath.Join(certs.dir, "ca-cert.pem"), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := nbd.LoadTLS(certs.dir, false); err == nil {
			t.Errorf("%q was loaded", bad)
		}
	}
}
