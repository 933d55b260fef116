package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"lunar/lun"
)

// serving is a `lunar serve` that runs.
type serving struct {
	ready  string
	cancel context.CancelFunc
	done   chan result
}

// serve runs `lunar serve` with a fake pool until its ready line or its end.
func (e *env) serve(t *testing.T, args ...string) *serving {
	t.Helper()
	return e.serveApp(t, e.app(), args...)
}

func (e *env) serveApp(t *testing.T, a *app, args ...string) *serving {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &serving{cancel: cancel, done: make(chan result, 1)}
	pr, pw := io.Pipe()
	go func() {
		var stderr strings.Builder
		status := run(ctx, a, append([]string{"serve"}, args...), nil, pw, &stderr)
		pw.Close()
		s.done <- result{status: status, stderr: stderr.String()}
	}()
	s.ready, _ = bufio.NewReader(pr).ReadString('\n')
	t.Cleanup(cancel)
	return s
}

func (s *serving) stop(t *testing.T) result {
	t.Helper()
	s.cancel()
	select {
	case r := <-s.done:
		return r
	case <-time.After(60 * time.Second):
		t.Fatal("the server does not stop")
		return result{}
	}
}

// failed returns the result of a server that did not start.
func (s *serving) failed(t *testing.T) result {
	t.Helper()
	if s.ready != "" {
		t.Fatalf("it started: %s", s.ready)
	}
	return <-s.done
}

func newServeEnv(t *testing.T) *env {
	isolate(t)
	return &env{t: t, dir: filepath.Join(shortDir(t), "d"), pool: newFakePool()}
}

func (e *env) made(t *testing.T) { // as the real pool makes it
	t.Helper()
	must(os.MkdirAll(e.dir, 0o755))
}

func TestServeReadyLine(t *testing.T) {
	e := newServeEnv(t)
	e.made(t)
	s := e.serve(t, "--data", e.dir, "--listen", "tcp://127.0.0.1:0", "--listen", "unix://"+e.dir+"/a b.sock", "--listen", "tcp://[::1]:0", "--log-level", "error")
	want := `^ready nbd=tcp://127\.0\.0\.1:[1-9][0-9]* nbd=unix://` + e.dir + `/a b\.sock nbd=tcp://\[::1\]:[1-9][0-9]* admin=unix://` + e.dir + `/admin\.sock\n$`
	if !regexp.MustCompile(want).MatchString(s.ready) {
		t.Fatalf("%q is not %s", s.ready, want)
	}
	for _, word := range strings.Split(strings.TrimSpace(s.ready)[len("ready "):], " nbd=") {
		word, _, _ = strings.Cut(strings.TrimPrefix(word, "nbd="), " admin=")
		a, err := parseAddress(word)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial(a.network, a.addr)
		if err != nil {
			t.Fatal(err)
		}
		magic := make([]byte, 8)
		if _, err := io.ReadFull(conn, magic); err != nil || string(magic) != "NBDMAGIC" {
			t.Errorf("%s answers %q, %v", a, magic, err)
		}
		conn.Close()
	}
	info, err := os.Stat(filepath.Join(e.dir, adminSocket))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("admin socket: %v, %v", info, err)
	}
	if r := s.stop(t); r.status != 0 || r.stderr != "" {
		t.Errorf("exit %d: %s", r.status, r.stderr)
	}
	if !e.pool.closed {
		t.Error("the pool was not closed")
	}
	for _, name := range []string{"a b.sock", adminSocket} {
		if _, err := os.Lstat(filepath.Join(e.dir, name)); err == nil {
			t.Errorf("%s is left", name)
		}
	}
}

// The mode is the socket's from its first moment, whatever the umask.
func TestAdminSocketModeWhateverTheUmask(t *testing.T) {
	dir := shortDir(t)
	for _, mask := range []int{0, 0o022, 0o077, 0o777} {
		old := syscall.Umask(mask)
		ln, err := listenUnix(t.Context(), filepath.Join(dir, "s"), 0o600)
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(dir, "s"))
		if err != nil || info.Mode().Perm() != 0o600&^os.FileMode(mask) {
			t.Errorf("umask %o: %v, %v", mask, info.Mode(), err)
		}
		ln.Close()
	}
}

func TestServeReplacesSocketsOfADeadServer(t *testing.T) {
	e := newServeEnv(t)
	e.made(t)
	for _, name := range []string{"nbd.sock", adminSocket} {
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(e.dir, name), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		ln.SetUnlinkOnClose(false)
		ln.Close()
	}
	s := e.serve(t, "--data", e.dir, "--listen", "unix://"+e.dir+"/nbd.sock")
	if s.ready == "" {
		t.Fatal(s.failed(t).stderr)
	}
	e.must("lun", "list")
	s.stop(t)
}

// Whatever is in the way is refused in one line, before the pool is opened.
func TestServeRefusals(t *testing.T) {
	e := newServeEnv(t)
	other := shortDir(t)
	live, err := net.Listen("unix", filepath.Join(other, "live.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	writeFileT(t, filepath.Join(other, "file"), []byte("precious"))
	long := "/tmp/" + strings.Repeat("x", 103)
	for _, c := range []struct {
		name   string
		args   []string
		status int
		parts  []string
	}{
		{"no folder", nil, exitUnparsable, []string{"data", "--data"}},
		{"port in use", []string{"--data", e.dir, "--listen", "tcp://" + port.Addr().String()}, exitFailed, []string{port.Addr().String(), "in use"}},
		{"no such host", []string{"--data", e.dir, "--listen", "tcp://192.0.2.1:0"}, exitFailed, []string{"192.0.2.1"}},
		{"live socket", []string{"--data", e.dir, "--listen", "unix://" + other + "/live.sock"}, exitFailed, []string{"live.sock", "answers", "pid"}},
		{"file for a socket", []string{"--data", e.dir, "--listen", "unix://" + other + "/file"}, exitFailed, []string{"file", "something else"}},
		{"no folder for a socket", []string{"--data", e.dir, "--listen", "unix://" + other + "/no/s"}, exitFailed, []string{other + "/no"}},
		{"long path", []string{"--data", e.dir, "--listen", "unix://" + long}, exitFailed, []string{long, "107"}},
		{"long folder", []string{"--data", long}, exitFailed, []string{long, "107"}},
		{"admin socket as NBD's", []string{"--data", e.dir, "--listen", "unix://" + e.dir + "/admin.sock"}, exitFailed, []string{"admin.sock"}},
		{"pprof port", []string{"--data", e.dir, "--pprof", port.Addr().String()}, exitFailed, []string{"pprof"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e.serve(t, c.args...).failed(t).wantFailure(t, c.status, c.parts...)
		})
	}
	if _, err := os.Stat(e.dir); err == nil {
		t.Error("a refused server made its folder")
	}
	if text, _ := os.ReadFile(filepath.Join(other, "file")); string(text) != "precious" {
		t.Error("a refused server removed a file")
	}
}

func TestServeBesideAnother(t *testing.T) {
	e := newServeEnv(t)
	e.made(t)
	first := e.serve(t, "--data", e.dir, "--listen", "tcp://127.0.0.1:0")
	if first.ready == "" {
		t.Fatal(first.failed(t).stderr)
	}
	e.serve(t, "--data", e.dir, "--listen", "tcp://127.0.0.1:0").failed(t).wantFailure(t, exitFailed, e.dir, "in use", "pid")
	e.must("lun", "list")
	if r := first.stop(t); r.status != 0 {
		t.Error(r.stderr)
	}
}

// What the pool refuses is what the user reads; nothing is left behind.
func TestServeWithAPoolThatDoesNotOpen(t *testing.T) {
	e := newServeEnv(t)
	a := e.app()
	a.openPool = func(context.Context, poolOptions) (pool, error) {
		return nil, lun.Errorf(lun.ErrNotPool, "data folder %s has format 9, this lunar knows up to 1; use a newer lunar", e.dir)
	}
	var stdout, stderr strings.Builder
	status := run(t.Context(), a, []string{"serve", "--data", e.dir, "--listen", "tcp://127.0.0.1:0"}, nil, &stdout, &stderr)
	result{status, stdout.String(), stderr.String()}.wantFailure(t, exitFailed, "format 9")
	if stdout.Len() > 0 {
		t.Errorf("stdout: %s", stdout.String())
	}
}

// A stop ends what still runs: followers, imports, clients.
func TestServeStopsUnderLoad(t *testing.T) {
	e := newServeEnv(t)
	e.made(t)
	s := e.serve(t, "--data", e.dir, "--listen", "unix://"+e.dir+"/nbd.sock")
	if s.ready == "" {
		t.Fatal(s.failed(t).stderr)
	}
	e.must("lun", "create", "a", "1M")
	follower := make(chan result, 1)
	go func() { follower <- e.lunar("events", "--follow") }()
	pr, pw := io.Pipe()
	defer pw.Close()
	importer := make(chan result, 1)
	go func() { importer <- e.lunarIn(pr, "lun", "import", "b", "-", "--size", "1G") }()
	if _, err := pw.Write(make([]byte, 2*streamChunk)); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if r := s.stop(t); r.status != 0 {
		t.Errorf("exit %d: %s", r.status, r.stderr)
	}
	if d := time.Since(begin); d > adminGrace+30*time.Second {
		t.Errorf("the stop took %v", d)
	}
	pw.CloseWithError(io.ErrUnexpectedEOF)
	(<-follower).wantFailure(t, exitFailed, "stop")
	(<-importer).wantFailure(t, exitFailed)
	if got := e.pool.describe(); strings.Contains(got, "b ") {
		t.Errorf("a half-made LUN is left: %s", got)
	}
}

func TestServeReportsAPoolThatDoesNotClose(t *testing.T) {
	e := newServeEnv(t)
	e.made(t)
	e.pool.fault = func(method, _ string) error {
		if method == "close" {
			return syscall.EIO
		}
		return nil
	}
	s := e.serve(t, "--data", e.dir, "--listen", "tcp://127.0.0.1:0", "--log-level", "error")
	s.stop(t).wantFailure(t, exitFailed, "closing the pool", "input/output error")
}

func TestServeLogs(t *testing.T) {
	e := newServeEnv(t)
	e.made(t)
	s := e.serve(t, "--data", e.dir, "--listen", "tcp://127.0.0.1:0", "--log-format", "json")
	if r := s.stop(t); !strings.Contains(r.stderr, `"level":"INFO","msg":"ready"`) || !strings.Contains(r.stderr, `"msg":"stopped"`) {
		t.Errorf("%s", r.stderr)
	}
}
