package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const commandTimeout = 2 * time.Minute

// environment is the test's own without what would configure lunar.
func environment() []string {
	var list []string
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "LUNAR_") {
			list = append(list, entry)
		}
	}
	return list
}

// Result is how a command ended.
type Result struct {
	Args   []string
	Status int
	Stdout string
	Stderr string
	Took   time.Duration
}

// Command runs the binary with any arguments, in a folder without configuration.
func Command(t testing.TB, dir string, env []string, stdin io.Reader, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, Binary(t), args...)
	cmd.Dir, cmd.Stdin = dir, stdin
	cmd.Env = append(environment(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	if ctx.Err() != nil {
		t.Fatalf("lunar %s: not done after %v\n%s%s", strings.Join(args, " "), commandTimeout, stdout.String(), stderr.String())
	}
	if cmd.ProcessState == nil {
		t.Fatalf("lunar %s: %v", strings.Join(args, " "), err)
	}
	return Result{Args: args, Status: cmd.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String(), Took: took}
}

// Run runs a command against this server, whatever comes of it.
func (s *Server) Run(args ...string) Result {
	s.t.Helper()
	return Command(s.t, filepath.Dir(s.Socket), []string{"LUNAR_SERVER=unix://" + s.Admin}, nil, args...)
}

// Lunar runs a command that must succeed and returns what it printed.
func (s *Server) Lunar(args ...string) string {
	s.t.Helper()
	result := s.Run(args...)
	if result.Status != 0 {
		s.t.Fatalf("lunar %s: status %d\n%s%s\n%s", strings.Join(args, " "), result.Status, result.Stdout, result.Stderr, s.Log())
	}
	return result.Stdout
}

// JSON runs a command with -o json and decodes what it prints.
func (s *Server) JSON(into any, args ...string) {
	s.t.Helper()
	out := s.Lunar(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		s.t.Fatalf("lunar %s -o json: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Refused runs a command that must fail: status 1 or 2 and exactly one line on stderr, which holds all of `want`.
func (s *Server) Refused(want []string, args ...string) Result {
	s.t.Helper()
	result := s.Run(args...)
	result.MustRefuse(s.t, want...)
	return result
}

// MustRefuse checks a refusal.
func (r Result) MustRefuse(t testing.TB, want ...string) {
	t.Helper()
	command := "lunar " + strings.Join(r.Args, " ")
	if r.Status != 1 && r.Status != 2 {
		t.Errorf("%s: status %d, want 1 or 2\n%s%s", command, r.Status, r.Stdout, r.Stderr)
		return
	}
	line := strings.TrimSuffix(r.Stderr, "\n")
	if line == "" || strings.Contains(line, "\n") {
		t.Errorf("%s: want exactly one line on stderr, got:\n%s", command, r.Stderr)
	}
	if strings.TrimSpace(r.Stdout) != "" {
		t.Errorf("%s: printed to stdout although it failed:\n%s", command, r.Stdout)
	}
	for _, word := range want {
		if !strings.Contains(strings.ToLower(line), strings.ToLower(word)) {
			t.Errorf("%s: the message does not name %q: %s", command, word, line)
		}
	}
}
