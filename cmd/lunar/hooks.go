package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// hooks are the commands around a snapshot that make what it holds consistent:
// pre freezes a file system or flushes a database, post lets it go on. They are
// run here, by the user of the command line and where it runs, not by the
// server: whoever may ask a server for a snapshot must not thereby run commands
// as the server's user, and the guest to be frozen is seldom on its machine.
type hooks struct {
	pre, post string
	timeout   time.Duration // of each command, and of the snapshot between them
}

const defaultHookTimeout = 30 * time.Second

// hookRun is one snapshot with its hooks.
type hookRun struct {
	hooks
	luns   []string
	server string // for commands that call lunar themselves
}

// around calls take between the two commands. post runs whatever becomes of the
// rest: a pre that fails, is killed or interrupted, and a snapshot that is
// refused; pre may have frozen something before it failed. take returns the names
// of the snapshots it made.
func (h hookRun) around(ctx context.Context, take func(context.Context) ([]string, error)) error {
	// From here on a signal ends the work in hand and not the process: the second
	// one too, or a terminal that is closed would leave a file system frozen.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := h.run(ctx, "pre", h.pre, nil)
	if err != nil {
		err = fmt.Errorf("%w; no snapshot was taken", err)
	}
	var names []string
	if err == nil {
		names, err = h.take(ctx, take)
	}
	result := "taken"
	if err != nil {
		result = "failed"
	}
	after := h.run(context.WithoutCancel(ctx), "post", h.post, []string{"LUNAR_RESULT=" + result, "LUNAR_SNAPSHOTS=" + strings.Join(names, " ")})
	switch {
	case after == nil:
		return err
	case err == nil:
		return fmt.Errorf("%w; the snapshot was taken: %s", after, strings.Join(names, " "))
	}
	return fmt.Errorf("%w; then %w", err, after)
}

// take asks for the snapshot. What is frozen must not stay so for as long as a
// server likes, so it has a time limit; a signal does not cut it short.
func (h hookRun) take(ctx context.Context, take func(context.Context) ([]string, error)) ([]string, error) {
	if ctx.Err() != nil {
		return nil, errors.New("interrupted by a signal; no snapshot was taken")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.timeout)
	defer cancel()
	names, err := take(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf(`the server did not answer within %s (--hook-timeout); it may take the snapshot yet: see "lunar snapshot list"`, h.timeout)
	}
	return names, err
}

// run runs one of the commands in a process group of its own, so that Ctrl-C on
// the terminal is lunar's to handle, and all of it can be killed.
func (h hookRun) run(ctx context.Context, which, command string, env []string) error {
	if command == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Env = append(os.Environ(), "LUNAR_HOOK="+which, "LUNAR_LUNS="+strings.Join(h.luns, " "), "LUNAR_SERVER="+h.server)
	cmd.Env = append(cmd.Env, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a process that it left behind may hold stderr open
	var said tail
	cmd.Stderr = &said
	err := cmd.Run()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	name := fmt.Sprintf("--%s %q", which, command)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		name += fmt.Sprintf(" was not done after %s (--hook-timeout) and was killed", h.timeout)
	case ctx.Err() != nil:
		name = "interrupted by a signal; " + name + " was killed"
	case cmd.ProcessState != nil && cmd.ProcessState.Exited():
		name += fmt.Sprintf(" failed with status %d", cmd.ProcessState.ExitCode())
	default:
		name += " failed: " + err.Error()
	}
	if line := said.lastLine(); line != "" {
		name += ": " + line
	}
	return errors.New(name)
}

// tail keeps the end of what a command says.
type tail struct{ text []byte }

const tailBytes = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if over := len(t.text) - tailBytes; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

func (t *tail) lastLine() string {
	text := bytes.TrimSpace(t.text)
	return oneLine(string(text[bytes.LastIndexByte(text, '\n')+1:]))
}
