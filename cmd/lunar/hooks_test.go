package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hooked runs snapshot create with a pre and a post that write down when they ran
// and what they saw; do is what pre does besides.
func (e *env) hooked(do string, args ...string) (result, []string) {
	e.t.Helper()
	os.Remove("seen")
	see := `echo "$LUNAR_HOOK: $LUNAR_LUNS $LUNAR_RESULT $LUNAR_SNAPSHOTS" >>seen; `
	r := e.lunar(append([]string{"snapshot", "create", "--pre", see + do, "--post", see}, args...)...)
	text, _ := os.ReadFile("seen")
	return r, strings.Split(strings.TrimSpace(string(text)), "\n")
}

func wantSeen(t *testing.T, got []string, want ...string) {
	t.Helper()
	for i := range got {
		got[i] = strings.TrimSpace(got[i])
	}
	if strings.Join(got, "; ") != strings.Join(want, "; ") {
		t.Errorf("the hooks wrote %q, want %q", got, want)
	}
}

func hookEnv(t *testing.T) *env {
	e := newEnv(t)
	e.must("lun", "create", "db", "1G")
	e.must("lun", "create", "log", "1G")
	return e
}

func TestHooks(t *testing.T) {
	e := hookEnv(t)
	r, seen := e.hooked("true", "db@a", "log@b")
	if r.status != exitOK || r.stdout != "db@a\nlog@b\n" || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	wantSeen(t, seen, "pre: db log", "post: db log taken db@a log@b")

	// The status and the last line of stderr are named, and there is no snapshot.
	r, seen = e.hooked("echo first >&2; echo 'no such mount' >&2; exit 7", "db@c")
	r.wantFailure(t, exitFailed, "--pre ", "failed with status 7: no such mount", "no snapshot was taken")
	wantSeen(t, seen, "pre: db", "post: db failed")

	// A refused snapshot, and its reason before that of post.
	r, seen = e.hooked("true", "db@a")
	r.wantFailure(t, exitFailed, "snapshot db@a exists already")
	wantSeen(t, seen, "pre: db", "post: db failed")
	r = e.lunar("snapshot", "create", "db@a", "--post", "echo stuck >&2; exit 1")
	r.wantFailure(t, exitFailed, "snapshot db@a exists already", "then --post", "status 1: stuck")

	// Post fails: the snapshot is there and named on both.
	r = e.lunar("snapshot", "create", "db@d", "--post", "exit 1")
	r.wantFailure(t, exitFailed, `--post "exit 1" failed with status 1`, "the snapshot was taken: db@d")
	if r.stdout != "db@d\n" {
		t.Errorf("stdout %q", r.stdout)
	}
	if list, _ := e.pool.Snapshots("db"); len(list) != 2 {
		t.Errorf("db has %d snapshots, want a and d", len(list))
	}
}

// What cannot work is known before anything is frozen.
func TestHooksAreNotRunForNothing(t *testing.T) {
	e := hookEnv(t)
	r, seen := e.hooked("true", "db@a", "nobody@a")
	r.wantFailure(t, exitFailed, "LUN nobody: there is no such LUN")
	wantSeen(t, seen, "")
	if err := e.stop(); err != nil {
		t.Fatal(err)
	}
	r, seen = e.hooked("true", "db@a")
	r.wantFailure(t, exitFailed, "server at")
	wantSeen(t, seen, "")
}

// At the timeout everything that pre started is killed, and post runs.
func TestHookTimeout(t *testing.T) {
	e := hookEnv(t)
	r, seen := e.hooked("sleep 60 & echo $! >pid; echo waiting >&2; wait", "db@a", "--hook-timeout", "1s")
	r.wantFailure(t, exitFailed, "--pre ", "was not done after 1s (--hook-timeout) and was killed: waiting", "no snapshot was taken")
	wantSeen(t, seen, "pre: db", "post: db failed")
	wantGone(t, "pid")

	// The same for a snapshot that hangs.
	hang := make(chan struct{})
	e.pool.fault = func(method, _ string) error {
		if method == "snapshot" {
			<-hang
			return errors.New("late")
		}
		return nil
	}
	defer close(hang)
	r, seen = e.hooked("true", "db@a", "--hook-timeout", "1s")
	r.wantFailure(t, exitFailed, "did not answer within 1s", "snapshot list")
	wantSeen(t, seen, "pre: db", "post: db failed")
}

func wantGone(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("process %d, which the hook started, still runs", pid)
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

// Ctrl-C while pre runs: it is killed, post runs.
func TestHookInterrupted(t *testing.T) {
	e := hookEnv(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat("began"); err == nil {
				cancel()
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	var stdout, stderr bytes.Buffer
	status := run(ctx, e.app(), []string{"--data", e.dir, "snapshot", "create", "db@a", "--pre", "touch began; sleep 60", "--post", "touch ended"}, nil, &stdout, &stderr)
	result{status, stdout.String(), stderr.String()}.wantFailure(t, exitFailed, "interrupted", "no snapshot was taken")
	if _, err := os.Stat("ended"); err != nil {
		t.Error("post did not run")
	}
	if list, _ := e.pool.Snapshots("db"); len(list) != 0 {
		t.Errorf("snapshots %v", list)
	}
}

// A command may leave a process behind, which may have stderr open.
func TestHookLeavesAProcess(t *testing.T) {
	e := hookEnv(t)
	began := time.Now()
	r := e.lunar("snapshot", "create", "db@a", "--pre", "sleep 120 & echo $! >pid", "--hook-timeout", "110s")
	if r.status != exitOK || time.Since(began) > 60*time.Second {
		t.Errorf("%+v after %v", r, time.Since(began))
	}
	text, _ := os.ReadFile("pid")
	if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func TestTail(t *testing.T) {
	var said tail
	for range 10000 {
		said.Write([]byte("a line that is not the last\n"))
	}
	said.Write([]byte("the last\x1b[31m one\n\n"))
	if got := said.lastLine(); got != "the last [31m one" || len(said.text) > tailBytes {
		t.Errorf("%q of %d bytes", got, len(said.text))
	}
	if got := (&tail{}).lastLine(); got != "" {
		t.Errorf("%q", got)
	}
}
