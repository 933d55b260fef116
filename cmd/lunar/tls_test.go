package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"lunar/lun"
	"lunar/nbd/nbdtest"
)

// made runs a verb of `lunar tls` and returns its answer.
func made(t *testing.T, args ...string) tlsAnswer {
	t.Helper()
	r := runAlone(t, append([]string{"tls", "-o", "json"}, args...)...)
	if r.status != 0 {
		t.Fatalf("%v: %s", args, r.stderr)
	}
	var a tlsAnswer
	if err := json.Unmarshal([]byte(r.stdout), &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// verify checks a certificate against the CA of its folder.
func verify(t *testing.T, dir, name string, o x509.VerifyOptions) *x509.Certificate {
	t.Helper()
	read := func(name string) []byte {
		p, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	o.Roots = x509.NewCertPool()
	o.Roots.AppendCertsFromPEM(read(caCertFile))
	cert, err := parsePEM(read(name), x509.ParseCertificate)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Verify(o); err != nil {
		t.Errorf("%s %s: %v", name, o.DNSName, err)
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(dir, name), filepath.Join(dir, strings.Replace(name, "cert", "key", 1))); err != nil {
		t.Error(err)
	}
	return cert
}

func modes(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		p, _ := os.ReadFile(path)
		all[strings.TrimPrefix(path, dir+"/")] = info.Mode().String() + string(p)
		return err
	}))
	return all
}

func TestTLSInit(t *testing.T) {
	isolate(t)
	a := made(t, "init", "certs", "--host", "nbd.example", "--host", "10.0.0.5", "--client", "one", "--client", "two", "--days", "30")
	if !reflect.DeepEqual(a.Hosts, []string{"nbd.example", "10.0.0.5", "localhost", "127.0.0.1", "::1"}) || !reflect.DeepEqual(a.Clients, []string{"clients/one", "clients/two"}) || !filepath.IsAbs(a.Dir) {
		t.Errorf("%+v", a)
	}
	before := modes(t, a.Dir)
	if len(before) != 10 || len(a.Files) != 10 {
		t.Errorf("%d files, %d are named", len(before), len(a.Files))
	}
	for name, mode := range before {
		want := "-rw-r--r--"
		if strings.Contains(name, "key") {
			want = "-rw-------"
		}
		if !strings.HasPrefix(mode, want) {
			t.Errorf("%s is %s", name, mode[:10])
		}
	}
	for _, host := range append(a.Hosts, "[::1]") {
		verify(t, a.Dir, serverCertFile, x509.VerifyOptions{DNSName: host})
	}
	client := verify(t, filepath.Join(a.Dir, "clients/two"), clientCertFile, x509.VerifyOptions{KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if client.Subject.CommonName != "two" || time.Until(client.NotAfter) > 31*24*time.Hour {
		t.Errorf("%v until %v", client.Subject, client.NotAfter)
	}

	// Nothing is overwritten, or half made.
	runAlone(t, "tls", "init", "certs").wantFailure(t, exitFailed, "ca-key.pem", "exists", "--force")
	runAlone(t, "tls", "client", "certs", "three", "two").wantFailure(t, exitFailed, "clients/two", "--force")
	if after := modes(t, a.Dir); !reflect.DeepEqual(before, after) {
		t.Error("a refused verb has changed files")
	}
	made(t, "client", "certs", "three")
	verify(t, filepath.Join(a.Dir, "clients/three"), clientCertFile, x509.VerifyOptions{KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})

	// A renewed certificate has the names of the old one, and the clients' CA.
	if b := made(t, "renew", "certs"); b.Hosts[0] != a.Hosts[0] || !reflect.DeepEqual(slices.Sorted(slices.Values(a.Hosts)), slices.Sorted(slices.Values(b.Hosts))) || len(b.Clients) != 0 {
		t.Errorf("%+v", b)
	}
	renewed := verify(t, a.Dir, serverCertFile, x509.VerifyOptions{DNSName: "10.0.0.5"})
	if b := made(t, "renew", "certs", "--host", "other.example", "--days", "9999"); b.Hosts[0] != "other.example" || b.Expires.Sub(renewed.NotAfter) > 24*time.Hour {
		t.Errorf("a certificate that outlives its CA: %+v", b)
	}
	verify(t, a.Dir, serverCertFile, x509.VerifyOptions{DNSName: "other.example"})
	made(t, "init", "certs", "--force")
	if after := modes(t, a.Dir); after[caKeyFile] == before[caKeyFile] {
		t.Error("--force has left the old CA")
	}
}

func TestTLSVerbsRefuse(t *testing.T) {
	isolate(t)
	for _, c := range []struct {
		args   []string
		status int
		parts  []string
	}{
		{[]string{"init"}, exitUnparsable, []string{"DIR"}},
		{[]string{"init", "d", "--host", "a b"}, exitUnparsable, []string{`"a b"`}},
		{[]string{"init", "d", "--host", "host:10809"}, exitUnparsable, []string{"port"}},
		{[]string{"init", "d", "--host", ""}, exitUnparsable, []string{"host"}},
		{[]string{"init", "d", "--client", "../x"}, exitUnparsable, []string{`"../x"`}},
		{[]string{"init", "d", "--days", "0"}, exitUnparsable, []string{"--days"}},
		{[]string{"client", "d", "x"}, exitFailed, []string{"ca-cert.pem", "lunar tls init"}},
		{[]string{"renew", "d"}, exitFailed, []string{"ca-cert.pem", "lunar tls init"}},
	} {
		runAlone(t, append([]string{"tls"}, c.args...)...).wantFailure(t, c.status, c.parts...)
	}
	if _, err := os.Stat("d"); err == nil {
		t.Error("a refused verb made its folder")
	}
	a := made(t, "init", "d")
	for _, name := range []string{serverCertFile, caKeyFile} {
		writeFileT(t, filepath.Join(a.Dir, name), []byte("rubbish"))
		runAlone(t, "tls", "renew", "d").wantFailure(t, exitFailed, name)
	}
}

func TestTLSCommands(t *testing.T) {
	got := tlsCommands(tlsAnswer{Dir: "/a b", Files: []string{serverCertFile}, Hosts: []string{"::1"}, Clients: []string{"clients/it's"}})
	want := []tlsCommand{
		{"lunar", "lunar serve --data DATA --listen tcp://[::1]:10809 --tls required --tls-dir '/a b'"},
		{"nbd-client", `nbd-client ::1 10809 /dev/nbd0 -name NAME -tlshostname ::1 -cacertfile '/a b/clients/it'\''s/ca-cert.pem' -certfile '/a b/clients/it'\''s/client-cert.pem' -keyfile '/a b/clients/it'\''s/client-key.pem'`},
		{"qemu", `qemu-img info --object 'tls-creds-x509,id=tls0,endpoint=client,dir=/a b/clients/it'\''s' --image-opts driver=nbd,host=::1,port=10809,export=NAME,tls-creds=tls0`},
		{"libnbd", `nbdinfo 'nbds://[::1]:10809/NAME?tls-certificates=/a b/clients/it'\''s'`},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
}

// tlsClient starts TLS on a connection with the certificate of a client's folder.
func tlsClient(t *testing.T, addr net.Addr, dir string) (*nbdtest.Client, error) {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, clientCertFile), filepath.Join(dir, clientKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, caCertFile))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	c := nbdtest.Dial(t, addr)
	c.MustAck(nbdtest.OptStartTLS, nil)
	conn := tls.Client(c.Conn, &tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: []tls.Certificate{cert}})
	c.Conn = conn
	return c, conn.Handshake()
}

// `lunar serve` with TLS: who may see a LUN by its certificate, both modes beside
// each other, and new certificates at SIGHUP.
func TestLiveTLS(t *testing.T) {
	isolate(t)
	a := made(t, "init", "certs", "--client", "alice", "--client", "bob")
	dir := filepath.Join(shortDir(t), "d")
	e := &env{t: t}
	t.Setenv("LUNAR_SEGMENT_SIZE", "4M")
	app := newApp()
	s := e.serveApp(t, app, "--data", dir, "--capacity", "256M", "--tls", "required", "--tls-dir", "certs", "--tls-client-certs", "required",
		"--listen", "tcp://127.0.0.1:0", "--listen", "unix://"+dir+"/nbd.sock", "--listen", "tcp://127.0.0.1:0?tls=off", "--log-level", "info")
	if s.ready == "" {
		t.Fatal(s.failed(t).stderr)
	}
	l := &live{t: t, dir: dir}
	at := func(i int) net.Addr {
		word := strings.Fields(s.ready)[1+i]
		a, err := parseAddress(strings.TrimPrefix(word, "nbd="))
		if err != nil {
			t.Fatal(err)
		}
		if a.network == "unix" {
			return &net.UnixAddr{Name: a.addr, Net: "unix"}
		}
		addr, err := net.ResolveTCPAddr("tcp", a.addr)
		must(err)
		return addr
	}
	l.must("lun", "create", "private", "8M", "--allow", "cn=alice")
	l.must("lun", "create", "local", "8M", "--allow", "unix")
	alice, err := tlsClient(t, at(0), filepath.Join(a.Dir, "clients/alice"))
	if err != nil {
		t.Fatal(err)
	}
	alice.Go("private")
	alice.Read(0, 1)
	if list := show[[]lun.ClientInfo](l, "client", "list"); len(list) != 1 || list[0].CommonName != "alice" || !list[0].TLS {
		t.Errorf("%+v", list)
	}
	bob, err := tlsClient(t, at(0), filepath.Join(a.Dir, "clients/bob"))
	if err != nil {
		t.Fatal(err)
	}
	hidden, unknown := bob.Last(nbdtest.OptInfo, nbdtest.InfoData("private")), bob.Last(nbdtest.OptInfo, nbdtest.InfoData("nothing"))
	if !reflect.DeepEqual(hidden, unknown) {
		t.Errorf("a hidden export answers %v, an unknown one %v", hidden, unknown)
	}
	clear := nbdtest.Dial(t, at(0))
	if r := clear.Last(nbdtest.OptInfo, nbdtest.InfoData("private")); r.Type != nbdtest.RepErrTLSReqd {
		t.Errorf("in the clear: %#x", r.Type)
	}
	for _, i := range []int{1, 2} { // without TLS
		c := nbdtest.Dial(t, at(i))
		if r := c.Last(nbdtest.OptStartTLS, nil); r.Type != nbdtest.RepErrPolicy {
			t.Errorf("listener %d: STARTTLS: %#x", i, r.Type)
		}
		want := map[int]uint32{1: nbdtest.RepAck, 2: nbdtest.RepErrUnknown}[i]
		if r := c.Last(nbdtest.OptInfo, nbdtest.InfoData("local")); r.Type != want {
			t.Errorf("listener %d: INFO: %#x", i, r.Type)
		}
	}

	// Another CA: the old clients are not known any more, but alice stays.
	old := filepath.Join(shortDir(t), "old")
	must(os.CopyFS(old, os.DirFS(filepath.Join(a.Dir, "clients"))))
	made(t, "init", "certs", "--client", "alice", "--force")
	hangup(t, func() bool {
		c, err := tlsClient(t, at(0), filepath.Join(a.Dir, "clients/alice"))
		return err == nil && c.Conn.Close() == nil
	})
	if _, err := tlsClient(t, at(0), filepath.Join(old, "alice")); err == nil {
		t.Error("the server still has its old certificate")
	}
	alice.Write(0, []byte("still here"))
	writeFileT(t, filepath.Join(a.Dir, serverKeyFile), []byte("rubbish"))
	hangup(t, func() bool { return true })
	if c, err := tlsClient(t, at(0), filepath.Join(a.Dir, "clients/alice")); err != nil {
		t.Errorf("after a reload that failed: %v", err)
	} else {
		c.Go("private")
	}
	// Who may no longer be attached, is not.
	l.must("lun", "set", "private", "--allow", "cn=carol")
	if err := alice.Gone(); err != nil {
		t.Error(err)
	}
	r := s.stop(t)
	if r.status != 0 || !strings.Contains(r.stderr, "stay in force") || !strings.Contains(r.stderr, "read again") {
		t.Errorf("exit %d: %s", r.status, r.stderr)
	}
}

// hangup sends SIGHUP to this process until its effect is there.
func hangup(t *testing.T, effect func() bool) {
	t.Helper()
	must(syscall.Kill(os.Getpid(), syscall.SIGHUP))
	for range 100 {
		time.Sleep(20 * time.Millisecond)
		if effect() {
			return
		}
	}
	t.Fatal("SIGHUP has no effect")
}

func TestTLSOfTheConfiguration(t *testing.T) {
	isolate(t)
	for _, c := range []struct {
		args  []string
		parts []string
	}{
		{[]string{"--tls", "required"}, []string{"tls.dir", "tcp://127.0.0.1:10809", "lunar tls init"}},
		{[]string{"--listen", "unix:///x?tls=allowed"}, []string{"tls.dir", "unix:///x"}},
		{[]string{"--tls", "maybe"}, []string{`"maybe"`, "allowed"}},
		{[]string{"--listen", "tcp://h:1?tls=maybe"}, []string{"?tls=off"}},
		{[]string{"--listen", "tcp://h:1?tls="}, []string{"?tls=off"}},
		{[]string{"--tls-client-certs", "yes"}, []string{"optional"}},
	} {
		r := runAlone(t, append([]string{"config", "show"}, c.args...)...)
		r.wantFailure(t, r.status, c.parts...)
		if r.status == 0 {
			t.Errorf("%v is accepted", c.args)
		}
	}
	// Folders that do not have it all are refused before the pool is touched.
	e := newServeEnv(t)
	e.serve(t, "--data", e.dir, "--listen", "tcp://127.0.0.1:0?tls=allowed", "--tls-dir", "/nowhere").failed(t).
		wantFailure(t, exitFailed, "/nowhere", "server-cert.pem", "lunar tls init")
	if _, err := os.Stat(e.dir); err == nil {
		t.Error("a refused server made its folder")
	}
	values := configOf(t, "--listen", "tcp://h:1?tls=off", "--listen", "unix:///a?b", "--tls", "required", "--tls-dir", "/certs")
	if v := values["listen"].Value; v != "tcp://h:1?tls=off unix:///a?b" {
		t.Errorf("listen is %q", v)
	}
}

func TestTLSWarning(t *testing.T) {
	isolate(t)
	for days, level := range map[string]string{"100": "", "3": levelWarning} {
		a := made(t, "init", "c"+days, "--days", days)
		s := &server{log: newLogger(&strings.Builder{}, &config{LogLevel: "info"}), nbdListeners: []nbdListener{{mode: 1}}}
		if err := s.loadTLS(&config{TLSDir: a.Dir}); err != nil {
			t.Fatal(err)
		}
		w := s.tlsWarning()
		if level == "" && len(w) != 0 || level != "" && (len(w) != 1 || w[0].Level != level || !strings.Contains(w[0].Message, "2 days")) {
			t.Errorf("%s days: %v", days, w)
		}
	}
}
