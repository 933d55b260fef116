package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"lunar/lun"
)

// ask does a request of a client that is not ours.
func (e *env) ask(method, path, body string) (status int, answer string) {
	e.t.Helper()
	c, err := (&app{data: e.dir}).client()
	if err != nil {
		e.t.Fatal(err)
	}
	defer c.close()
	req, err := c.request(e.t.Context(), method, path, strings.NewReader(body))
	if err != nil {
		e.t.Fatal(err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// The server holds the rules too, for those who do not use this command line.
func TestAdminRefusesBadRequests(t *testing.T) {
	e := newEnv(t)
	e.must("lun", "create", "disk", "1M")
	e.must("snapshot", "create", "disk@a")
	before := e.pool.describe()
	for _, c := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"GET", "/v1/nonsense", "", 404, codeNotFound},
		{"GET", "/v2/luns", "", 404, codeNotFound},
		{"PUT", "/v1/luns", "", 404, codeNotFound},
		{"GET", "/v1/luns/nobody", "", 404, codeNotFound},
		{"GET", "/v1/luns/a%20b", "", 400, codeInvalid},
		{"GET", "/v1/luns/disk/snapshots/a%40b", "", 400, codeInvalid},
		{"POST", "/v1/luns", "", 400, codeInvalid},
		{"POST", "/v1/luns", "{", 400, codeInvalid},
		{"POST", "/v1/luns", `{"name":"x","size_bytes":4096}{}`, 400, codeInvalid},
		{"POST", "/v1/luns", `{"name":"x","size_bytes":4096,"newer":1}`, 400, codeInvalid},
		{"POST", "/v1/luns", `{"name":"x","size_bytes":"4096"}`, 400, codeInvalid},
		{"POST", "/v1/luns", `{"name":"x y","size_bytes":4096}`, 400, codeInvalid},
		{"POST", "/v1/luns", `{"name":"x","size_bytes":4097}`, 400, codeInvalid},
		{"POST", "/v1/luns", `{"name":"x","size_bytes":-4096}`, 400, codeInvalid},
		{"POST", "/v1/luns", `{"name":"x","size_bytes":4096,"reserve":"lots"}`, 400, codeInvalid},
		{"POST", "/v1/luns", `{"name":"x","size_bytes":4096,"reserve":"none"}`, 400, codeInvalid},
		{"POST", "/v1/luns", `{"name":"x","size_bytes":4096,"on_full":"burn"}`, 400, codeInvalid},
		{"POST", "/v1/luns", `{"name":"x","size_bytes":4096,"description":"a\nb"}`, 400, codeInvalid},
		{"POST", "/v1/luns", `{"name":"x","description":"` + strings.Repeat("a", maxRequestBytes) + `"}`, 400, codeInvalid},
		{"POST", "/v1/luns", `{"name":"disk","size_bytes":4096}`, 409, codeExists},
		{"PATCH", "/v1/luns/disk", `{"max_snapshots":-1}`, 400, codeInvalid},
		{"PATCH", "/v1/luns/disk", `{"description":"\u001b[31m"}`, 400, codeInvalid},
		{"POST", "/v1/luns/disk/resize", `{"size_bytes":1}`, 400, codeInvalid},
		{"POST", "/v1/luns/disk/resize", `{"size_bytes":4096}`, 403, codeRefused},
		{"POST", "/v1/luns/disk/rename", `{"name":""}`, 400, codeInvalid},
		{"POST", "/v1/luns/disk/clone", `{"name":"@"}`, 400, codeInvalid},
		{"POST", "/v1/luns/disk/rollback", `{"snapshot":""}`, 400, codeInvalid},
		{"DELETE", "/v1/luns/disk", "", 403, codeRefused},
		{"DELETE", "/v1/luns/disk?force=1", "", 403, codeRefused},
		{"POST", "/v1/luns/x/import?size=1", "", 400, codeInvalid},
		{"POST", "/v1/luns/x/import", "", 400, codeInvalid},
		{"POST", "/v1/snapshots", `{}`, 400, codeInvalid},
		{"POST", "/v1/snapshots", `{"targets":[{"lun":""}]}`, 400, codeInvalid},
		{"POST", "/v1/snapshots", `{"targets":[{"lun":"disk","name":"a b"}]}`, 400, codeInvalid},
		{"POST", "/v1/snapshots", `{"targets":[{"lun":"disk"}],"ttl":-1}`, 400, codeInvalid},
		{"POST", "/v1/snapshots", `{"targets":[{"lun":"disk"}],"labels":{"lunar.temporary":"x"}}`, 400, codeInvalid},
		{"POST", "/v1/snapshots/delete", `{}`, 400, codeInvalid},
		{"POST", "/v1/luns/disk/snapshots/a/rename", `{"name":"a b"}`, 400, codeInvalid},
		{"PATCH", "/v1/reservations/disk", `{"on_full":""}`, 400, codeInvalid},
		{"PATCH", "/v1/reservations/disk", `{"reserve":"none"}`, 400, codeInvalid},
		{"GET", "/v1/snapshots?lun=a%20b", "", 400, codeInvalid},
		{"DELETE", "/v1/clients/-1", "", 400, codeInvalid},
		{"DELETE", "/v1/clients/1", "", 404, codeNotFound},
	} {
		status, answer := e.ask(c.method, c.path, c.body)
		var body errorBody
		if err := json.Unmarshal([]byte(answer), &body); err != nil || body.Error == nil {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, answer)
			continue
		}
		if status != c.status || body.Error.Code != c.code || body.Error.Message == "" {
			t.Errorf("%s %s %.60s: %d %+v, want %d %s", c.method, c.path, c.body, status, *body.Error, c.status, c.code)
		}
	}
	if got := e.pool.describe(); got != before {
		t.Errorf("refused requests changed\n%sto\n%s", before, got)
	}
}

// A fault in one answer does not end a server of block devices.
func TestAdminSurvivesAFault(t *testing.T) {
	e := newEnv(t)
	e.must("lun", "create", "disk", "1M")
	e.pool.fault = func(method, _ string) error { panic("oh dear") }
	e.lunar("lun", "show", "disk").wantFailure(t, exitFailed, "fault", "oh dear")
	e.pool.fault = nil
	// The fake's lock is held by the dead call; the server itself goes on.
	e.must("config", "show", "--running")
}

func TestAdminErrorCodes(t *testing.T) {
	for _, c := range []struct {
		err    error
		code   string
		status int
	}{
		{lun.Errorf(lun.ErrNoSpace, "x"), codeNoSpace, 507},
		{lun.Errorf(lun.ErrBusy, "x"), codeBusy, 409},
		{lun.Errorf(lun.ErrReadOnly, "x"), codeReadOnly, 403},
		{lun.Errorf(lun.ErrCorrupt, "x"), codeCorrupt, 500},
		{fmt.Errorf("wrapped: %w", lun.Errorf(lun.ErrExists, "x")), codeExists, 409},
		{errStopping, codeStopping, 503},
		{fmt.Errorf("inside the pool: %w", context.Canceled), codeInternal, 500},
		{errors.New("x"), codeInternal, 500},
	} {
		body, status := toAPIError(c.err)
		if body.Code != c.code || status != c.status {
			t.Errorf("%v is %s %d, want %s %d", c.err, body.Code, status, c.code, c.status)
		}
	}
}

// Another program behind the socket, or one that breaks off, is said to be so.
func TestClientOfSomethingElse(t *testing.T) {
	isolate(t)
	dir := shortDir(t)
	ln, err := net.Listen("unix", filepath.Join(dir, adminSocket))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/luns", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "who are you?", http.StatusTeapot) })
	mux.HandleFunc("/v1/pool", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"capacity_bytes":`)) })
	mux.HandleFunc("/v1/pool/check", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"progress":{"done":1,"total":2}}`))
	})
	mux.HandleFunc("/v1/clients", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(ln) }()
	defer srv.Close()
	for verb, part := range map[string]string{"lun list": "418", "pool status": "broke off", "pool check": "broke off", "client list": "broke"} {
		runAlone(t, append([]string{"--data", dir}, strings.Fields(verb)...)...).wantFailure(t, exitFailed, part, dir)
	}
}

// The server is found by the first of flag, environment, folder, default.
func TestClientFindsTheServer(t *testing.T) {
	e := newEnv(t)
	e.must("lun", "create", "disk", "1M")
	socket := "unix://" + filepath.Join(e.dir, adminSocket)
	ok := func(args ...string) {
		t.Helper()
		if r := runAlone(t, append(args, "lun", "list")...); !strings.Contains(r.stdout, "disk") {
			t.Errorf("%v: %+v", args, r)
		}
	}
	runAlone(t, "lun", "list").wantFailure(t, exitFailed, "lunar-data/admin.sock", "lunar serve")
	t.Setenv("LUNAR_DATA", e.dir)
	ok()
	runAlone(t, "lun", "list", "--data", "/nonexistent").wantFailure(t, exitFailed, "/nonexistent/admin.sock", "--data")
	t.Setenv("LUNAR_SERVER", socket)
	ok("--data", "/nonexistent")
	runAlone(t, "lun", "list", "--server", "unix:///nonexistent").wantFailure(t, exitFailed, "/nonexistent", "--server")
	t.Setenv("LUNAR_SERVER", "unix:///nonexistent")
	ok("--server", socket)
	runAlone(t, "lun", "list").wantFailure(t, exitFailed, "LUNAR_SERVER")
	t.Setenv("LUNAR_SERVER", "somewhere")
	runAlone(t, "lun", "list").wantFailure(t, exitUnparsable, "LUNAR_SERVER", "somewhere")
	long := "/" + strings.Repeat("x", 107)
	runAlone(t, "--server", "unix://"+long, "lun", "list").wantFailure(t, exitFailed, long, "107")
	// A socket nobody listens on.
	t.Setenv("LUNAR_SERVER", "")
	dir := shortDir(t)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, adminSocket), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	runAlone(t, "--data", dir, "lun", "list").wantFailure(t, exitFailed, "no server is behind")
	r := runAlone(t, "--data", dir, "status", "--check")
	r.wantFailure(t, checkNotReached, "no server is behind")
	if !strings.HasPrefix(r.stdout, "UNKNOWN - ") {
		t.Errorf("%q", r.stdout)
	}
}

func TestDiffThatFailsInTheMiddle(t *testing.T) {
	e := newEnv(t)
	e.must("lun", "create", "disk", "1M")
	e.must("snapshot", "create", "disk@a")
	for i := range 5000 {
		e.pool.diff = append(e.pool.diff, lun.DiffRange{Offset: int64(i) * 8192, Length: 4096, Kind: "data"})
	}
	var list []lun.DiffRange
	if err := json.Unmarshal([]byte(e.must("diff", "disk@a", "-o", "json")), &list); err != nil || len(list) != 5000 {
		t.Errorf("%d ranges, %v", len(list), err)
	}
	e.pool.fault = func(method, _ string) error {
		if method == "diff" {
			return lun.Errorf(lun.ErrCorrupt, "page 3 is damaged; run lunar pool check")
		}
		return nil
	}
	e.lunar("diff", "disk@a").wantFailure(t, exitFailed, "page 3")
}

func TestLongCallsFail(t *testing.T) {
	e := newEnv(t)
	e.pool.fault = func(method, _ string) error { return lun.Errorf(lun.ErrCorrupt, "%s: no; try later", method) }
	for _, verb := range []string{"check", "scrub", "clean"} {
		e.lunar("pool", verb).wantFailure(t, exitFailed, "no; try later")
	}
}

func TestCompletion(t *testing.T) {
	e := newEnv(t)
	e.must("lun", "create", "disk1", "1M")
	e.must("lun", "create", "disk2", "1M")
	e.must("lun", "create", "other", "1M")
	e.must("snapshot", "create", "disk1@a", "disk2@b")
	for line, want := range map[string]string{
		"lun show d":                 "disk1 disk2",
		"lun show disk1 ":            "",
		"snapshot create disk1 ":     "disk2 other",
		"snapshot list ":             "disk1 disk2 other",
		"snapshot show ":             "disk1@a disk2@b",
		"snapshot delete disk1@a ":   "disk2@b",
		"rollback disk1":             "disk1@a",
		"clone disk":                 "disk1 disk2",
		"clone disk1@":               "disk1@a",
		"lun export disk1@":          "disk1@a",
		"diff disk1@a ":              "disk1",
		"lun create ":                "",
		"status -o ":                 "table json",
		"lun create a 1G --on-full ": "recycle freeze",
		"completion ":                "bash zsh fish powershell",
	} {
		words := strings.Split(line, " ")
		out := e.must(append([]string{"__complete"}, words...)...)
		var names []string
		for _, l := range strings.Split(out, "\n") {
			if l != "" && !strings.HasPrefix(l, ":") && !strings.HasPrefix(l, "Completion ended") {
				names = append(names, l)
			}
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%q completes to %q, want %q", line, got, want)
		}
	}
	for _, shell := range shells {
		if out := e.must("completion", shell); len(out) < 1000 || !strings.Contains(out, "lunar") {
			t.Errorf("%s: %d bytes", shell, len(out))
		}
	}
}

// Every verb has a description, an example, and takes -o json and --help.
func TestHelpOfEveryVerb(t *testing.T) {
	isolate(t)
	root := newRootCmd(newApp())
	var walk func(path []string)
	walk = func(path []string) {
		cmd, _, err := root.Find(path)
		if err != nil {
			t.Fatal(err)
		}
		r := runAlone(t, append(path, "--help")...)
		if r.status != 0 || r.stderr != "" || cmd.Short == "" || cmd.Example == "" || !strings.Contains(r.stdout, cmd.Example) {
			t.Errorf("lunar %s --help: %+v", strings.Join(path, " "), r)
		}
		for _, l := range strings.Split(r.stdout, "\n") {
			if len(l) > 120 {
				t.Errorf("lunar %s --help: a line of %d: %s", strings.Join(path, " "), len(l), l)
			}
		}
		for _, sub := range cmd.Commands() {
			if sub.Name() != "help" {
				walk(append(bytesClone(path), sub.Name()))
			}
		}
	}
	walk(nil)
	if r := runAlone(t); r.status != 0 || !strings.Contains(r.stdout, "Usage:") {
		t.Errorf("%+v", r)
	}
}

func bytesClone(s []string) []string { return append([]string{}, s...) }

func TestOneLine(t *testing.T) {
	if got := oneLine("a\nb\t\x1b[31mc\r\n"); got != "a b [31mc" {
		t.Errorf("%q", got)
	}
	var b bytes.Buffer
	if status := report(&b, errors.New("x\ny")); status != 1 || b.String() != "lunar: x y\n" {
		t.Errorf("%d %q", status, b.String())
	}
}
