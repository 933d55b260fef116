package integration

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"lunar/integration/client"
	"lunar/integration/harness"
)

// certificates makes a folder with `lunar tls init` and returns it and what was printed.
func certificates(t *testing.T, clients ...string) (dir, printed string) {
	t.Helper()
	dir = filepath.Join(harness.TempDir(t), "tls")
	args := []string{"tls", "init", dir}
	for _, name := range clients {
		args = append(args, "--client", name)
	}
	r := harness.Command(t, filepath.Dir(dir), nil, nil, args...)
	if r.Status != 0 {
		t.Fatalf("lunar tls init: status %d\n%s", r.Status, r.Stderr)
	}
	return dir, r.Stdout
}

// tlsConfig is that of a client with its certificate, or without one if name is "".
func tlsConfig(t *testing.T, dir, name string) *tls.Config {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	c := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost", MinVersion: tls.VersionTLS12}
	c.RootCAs.AppendCertsFromPEM(text)
	if name != "" {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "clients", name, "client-cert.pem"), filepath.Join(dir, "clients", name, "client-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c
}

// secured is a script behind STARTTLS. The server verifies a client's certificate after the client has seen the
// handshake succeed, so that a refusal shows at the first read.
func secured(t *testing.T, address string, config *tls.Config) (*client.Script, error) {
	t.Helper()
	s, err := client.Greeted("tcp", address)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { s.Close() })
	if err := s.StartTLS(config); err != nil {
		return nil, err
	}
	kind, _, err := s.Ask(client.OptList, nil)
	if err == nil && kind != client.RepAck {
		err = fmt.Errorf("LIST: answer %#x", kind)
	}
	return s, err
}

// nbdsURI is an export's address for libnbd over TLS. Debian's libnbd looks for the host's name in the certificate.
func nbdsURI(address, export, clientDir string) string {
	_, port, _ := net.SplitHostPort(address)
	return fmt.Sprintf("nbds://localhost:%s/%s?tls-certificates=%s", port, export, clientDir)
}

// TestTLSClients: the command lines that `lunar tls init` prints work as they stand; the tools copy, map and verify
// over TLS with a client certificate; who has none, or one of another CA, gets nothing.
func TestTLSClients(t *testing.T) {
	harness.Need(t, "nbdinfo", "nbdcopy", "nbdsh", "qemu-img", "qemu-io")
	dir, printed := certificates(t, "good", "other")
	s := harness.Start(t, "--capacity", "4G", "--listen", "tcp://127.0.0.1:0", "--tls", "required", "--tls-dir", dir, "--tls-client-certs", "required")
	s.Lunar("lun", "create", "disk", "64M", "--allow", "cn=good")
	s.Lunar("lun", "create", "copy", "64M", "--allow", "cn=good,unix")
	s.Lunar("lun", "create", "anyone", "1M")
	_, port, err := net.SplitHostPort(s.TCP())
	if err != nil {
		t.Fatal(err)
	}
	good, other := filepath.Join(dir, "clients", "good"), filepath.Join(dir, "clients", "other")
	t.Run("as printed", func(t *testing.T) {
		ran := 0
		for _, line := range strings.Split(printed, "\n") {
			if !strings.HasPrefix(line, "qemu-img ") && !strings.HasPrefix(line, "nbdinfo ") {
				continue
			}
			line = regexp.MustCompile(`\bNAME\b`).ReplaceAllString(strings.ReplaceAll(line, "10809", port), "disk")
			if out := harness.Tool(t, "sh", "-c", line); !strings.Contains(out, "64M") && !strings.Contains(out, "64 MiB") {
				t.Errorf("%s\n%s", line, out)
			}
			ran++
		}
		if ran != 2 {
			t.Errorf("%d command lines of qemu-img and nbdinfo in\n%s", ran, printed)
		}
	})
	creds := []string{"--object", "tls-creds-x509,id=tls0,endpoint=client,dir=" + good}
	image := func(export string) string {
		return fmt.Sprintf("driver=nbd,host=localhost,port=%s,export=%s,tls-creds=tls0", port, export)
	}
	t.Run("qemu", func(t *testing.T) {
		for _, tool := range []string{"qemu-io", filepath.Join(filepath.Dir(harness.Qemu10(t)), "qemu-io")} {
			args := append(creds[:2:2], "--image-opts")
			for _, command := range []string{"write -P 1 0 20M", "write -P 2 1001 3003", "read -P 2 1001 3003", "write -z 4M 1M", "discard 8M 1M", "read -P 0 4M 1M", "flush"} {
				args = append(args, "-c", command)
			}
			if out := harness.Tool(t, tool, append(args, image("disk"))...); strings.Contains(out, "failed") {
				t.Errorf("%s:\n%s", tool, out)
			}
		}
		out := filepath.Join(harness.TempDir(t), "out.qcow2")
		harness.Tool(t, "qemu-img", "convert", creds[0], creds[1], "--image-opts", image("disk"), "-O", "qcow2", out)
		harness.Tool(t, "qemu-img", "compare", creds[0], creds[1], "--image-opts", "driver=qcow2,file.driver=file,file.filename="+out, image("disk"))
	})
	t.Run("libnbd", func(t *testing.T) {
		file := filepath.Join(harness.TempDir(t), "out")
		harness.Tool(t, "nbdcopy", "-C", "4", nbdsURI(s.TCP(), "disk", good), file)
		harness.Tool(t, "nbdcopy", "-C", "4", "--flush", file, nbdsURI(s.TCP(), "copy", good))
		harness.Tool(t, "nbdcopy", s.URI("copy"), file+"2")
		sameFile(t, "disk and copy", file+"2", fileSum(t, file))
		s.Lunar("snapshot", "create", "disk@a")
		sameRuns(t, "nbdinfo --map over TLS", nbdinfoMap(t, nbdsURI(s.TCP(), "disk", good), "lunar:changed:a", changedWords), []run{{0, 64 * mib, "same"}})
	})
	t.Run("refused", func(t *testing.T) {
		foreign, _ := certificates(t, "good")
		for what, uri := range map[string]string{
			"another client's certificate": nbdsURI(s.TCP(), "disk", other),
			"a certificate of another CA":  nbdsURI(s.TCP(), "disk", filepath.Join(foreign, "clients", "good")),
			"no TLS":                       "nbd://localhost:" + port + "/disk",
			"no TLS, any":                  "nbd://localhost:" + port + "/anyone",
		} {
			if out, err := harness.Try("nbdinfo", uri); err == nil {
				t.Errorf("with %s nbdinfo shows\n%s", what, out)
			}
		}
		if out := harness.Tool(t, "nbdinfo", "--list", nbdsURI(s.TCP(), "", other)); strings.Contains(out, `"disk`) || !strings.Contains(out, `"anyone"`) {
			t.Errorf("the list for another client:\n%s", out)
		}
		if out := harness.Tool(t, "nbdinfo", "--list", nbdsURI(s.TCP(), "", good)); !strings.Contains(out, `"disk"`) {
			t.Errorf("the list for the client:\n%s", out)
		}
		mixed := tlsConfig(t, dir, "")
		mixed.Certificates = tlsConfig(t, foreign, "good").Certificates
		for what, config := range map[string]*tls.Config{"no certificate": tlsConfig(t, dir, ""), "a certificate of another CA": mixed} {
			if _, err := secured(t, s.TCP(), config); err == nil {
				t.Errorf("with %s a client is served", what)
			}
		}
		old := tlsConfig(t, dir, "good")
		old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		if _, err := secured(t, s.TCP(), old); err == nil {
			t.Error("TLS 1.1 is served")
		}
		twelve := tlsConfig(t, dir, "good")
		twelve.MaxVersion = tls.VersionTLS12
		if _, err := secured(t, s.TCP(), twelve); err != nil {
			t.Errorf("TLS 1.2: %v", err)
		}
	})
}

// TestTLSReload: SIGHUP takes the new certificate for new connections, leaves the old ones alone, and keeps the old
// certificate if the new files are no good.
func TestTLSReload(t *testing.T) {
	dir, _ := certificates(t, "good")
	s := harness.Start(t, "--listen", "tcp://127.0.0.1:0?tls=required", "--tls-dir", dir)
	s.Lunar("lun", "create", "disk", "1M")
	serial := func() string {
		c, err := secured(t, s.TCP(), tlsConfig(t, dir, "good"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.Conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	old, err := secured(t, s.TCP(), tlsConfig(t, dir, "good"))
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Attach("disk", client.Terms{Structured: true}); err != nil {
		t.Fatal(err)
	}
	first := serial()
	if r := harness.Command(t, filepath.Dir(dir), nil, nil, "tls", "renew", dir); r.Status != 0 {
		t.Fatalf("lunar tls renew: %s", r.Stderr)
	}
	if serial() != first {
		t.Error("the new certificate is in use before SIGHUP")
	}
	hup := func() {
		t.Helper()
		syscall.Kill(s.Pid, syscall.SIGHUP)
	}
	hup()
	second := first
	for deadline := time.Now().Add(60 * time.Second); second == first && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		second = serial()
	}
	if second == first {
		t.Fatal("5 s after SIGHUP the old certificate is still in use")
	}
	must(t, old, client.CmdWrite, 0, 0, 4096, make([]byte, 4096))
	if err := os.WriteFile(filepath.Join(dir, "server-cert.pem"), []byte("no certificate"), 0o644); err != nil {
		t.Fatal(err)
	}
	hup()
	for deadline := time.Now().Add(60 * time.Second); !strings.Contains(s.FullLog(), "server-cert.pem"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the log does not say that the certificate is no good")
		}
	}
	if serial() != second {
		t.Error("another certificate is in use after a failed reload")
	}
	must(t, old, client.CmdRead, 0, 0, 4096, nil)
}
