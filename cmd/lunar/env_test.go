package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lunar/lun"
)

// asLunar makes this test binary the program itself.
const asLunar = "TEST_AS_LUNAR"

func TestMain(m *testing.M) {
	if os.Getenv(asLunar) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// env is a server over a fake pool, and the command line that finds it.
type env struct {
	t    *testing.T
	dir  string
	pool *fakePool
	srv  *server
	stop func() error
}

// shortDir is a temporary folder whose paths fit a unix address.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "lunar")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// isolate takes away what the machine's own environment could change.
func isolate(t *testing.T) {
	t.Helper()
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, envPrefix+"_") {
			t.Setenv(name, "")
		}
	}
	t.Chdir(shortDir(t))
}

func newEnv(t *testing.T) *env {
	t.Helper()
	isolate(t)
	return startEnv(t, newFakePool())
}

func startEnv(t *testing.T, p *fakePool) *env {
	t.Helper()
	e := &env{t: t, dir: shortDir(t), pool: p}
	c := &config{Data: e.dir, Listen: []listenAddress{{address: address{"unix", filepath.Join(e.dir, "nbd.sock")}}}, values: []configValue{{"index.cache", "256M", "default"}}}
	srv, err := startServer(t.Context(), e.app(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	e.srv = srv
	e.stop = sync.OnceValue(srv.stop)
	t.Cleanup(func() { _ = e.stop() })
	return e
}

// app is the command line's, with the fake pool in place of the real one.
func (e *env) app() *app {
	a := newApp()
	a.openPool = func(_ context.Context, o poolOptions) (pool, error) {
		if o.Events != nil {
			e.pool.events = o.Events
		}
		return e.pool, nil
	}
	a.newNBD = newLiveNBD
	a.repair = func(context.Context, poolOptions, lun.RepairOptions) ([]string, error) {
		return []string{"index rebuilt from the log"}, nil
	}
	return a
}

// result is what a command line did.
type result struct {
	status         int
	stdout, stderr string
}

// lunar runs a command line against the server of e.
func (e *env) lunar(args ...string) result {
	e.t.Helper()
	return e.lunarIn(nil, args...)
}

func (e *env) lunarIn(stdin io.Reader, args ...string) result {
	e.t.Helper()
	if stdin == nil {
		stdin = strings.NewReader("")
	}
	ctx, cancel := context.WithTimeout(e.t.Context(), 20*time.Second)
	defer cancel()
	var stdout, stderr bytes.Buffer
	status := run(ctx, e.app(), append([]string{"--data", e.dir}, args...), stdin, &stdout, &stderr)
	return result{status, stdout.String(), stderr.String()}
}

// must runs a command line that has to succeed, and returns its output.
func (e *env) must(args ...string) string {
	e.t.Helper()
	r := e.lunar(args...)
	if r.status != exitOK {
		e.t.Fatalf("lunar %s: exit %d: %s", strings.Join(args, " "), r.status, r.stderr)
	}
	return r.stdout
}

// wantFailure checks status and the one line on stderr, which holds all of parts.
func (r result) wantFailure(t *testing.T, status int, parts ...string) {
	t.Helper()
	if r.status != status {
		t.Errorf("exit status %d, want %d; stderr: %s", r.status, status, r.stderr)
	}
	if !strings.HasPrefix(r.stderr, "lunar: ") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("stderr is not one line of lunar's: %q", r.stderr)
	}
	for _, p := range parts {
		if !strings.Contains(r.stderr, p) {
			t.Errorf("stderr %q does not say %q", r.stderr, p)
		}
	}
}
