package harness

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lunar/integration/client"
)

const (
	readyTimeout = 30 * time.Second
	stopTimeout  = 30 * time.Second // "exit 0 within seconds"
)

// Server is one `lunar serve` and its pool.
type Server struct {
	Dir    string // the pool
	Socket string // unix socket of the NBD server
	Admin  string // unix socket of the admin API
	Ready  string // the line it printed
	Pid    int
	// NoCheck leaves out the `pool check` at the end of the test, for pools that were damaged on purpose.
	NoCheck bool
	// Files is ulimit -n of the process; 0: as here.
	Files int
	// Passed are listening sockets that the server is started with, as by systemd (LISTEN_FDS).
	Passed []*os.File

	t    testing.TB
	args []string
	cmd  *exec.Cmd
	done chan struct{}
	log  *buffer
}

// buffer collects what a process prints while others read it.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// Start serves a new pool on a unix socket, with more arguments of `lunar serve` if given. At the end of the test the
// pool must pass `pool check`, and the server must end cleanly.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	top := TempDir(t)
	s := New(t, filepath.Join(top, "pool"), filepath.Join(top, "nbd.sock"), args...)
	s.Start()
	return s
}

// New prepares a server that is not started yet.
func New(t testing.TB, dir, socket string, args ...string) *Server {
	t.Helper()
	Binary(t)
	s := &Server{Dir: dir, Socket: socket, Admin: filepath.Join(dir, "admin.sock"), t: t, log: &buffer{}}
	s.args = append([]string{"serve", "--data", dir, "--listen", "unix://" + socket}, args...)
	t.Cleanup(s.finish)
	return s
}

// Start starts the server and waits until it is ready.
func (s *Server) Start() {
	s.t.Helper()
	if err := s.TryStart(); err != nil {
		s.t.Fatalf("%v\n%s", err, s.Log())
	}
}

// TryStart starts the server; the error says what came instead of the ready line.
func (s *Server) TryStart() error {
	s.cmd = exec.Command(Binary(s.t), s.args...)
	if len(s.Passed) > 0 { // LISTEN_PID is the process that the shell becomes
		script := fmt.Sprintf(`LISTEN_FDS=%d LISTEN_PID=$$ exec "$0" "$@"`, len(s.Passed))
		s.cmd = exec.Command("sh", append([]string{"-c", script, Binary(s.t)}, s.args...)...)
		s.cmd.ExtraFiles = s.Passed
	}
	if s.Files > 0 {
		s.cmd = exec.Command("sh", append([]string{"-c", fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, s.Files), Binary(s.t)}, s.args...)...)
	}
	s.cmd.Dir = filepath.Dir(s.Socket) // no lunar.yaml here
	s.cmd.Env = environment()
	s.cmd.Stderr = s.log
	// A test that panics must not leave servers behind.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.Pid = s.cmd.Process.Pid
	lines := make(chan string, 16)
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(lines)
		for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	s.done = make(chan struct{})
	go func() {
		<-read
		s.cmd.Wait()
		close(s.done)
	}()
	select {
	case line, ok := <-lines:
		if ok && strings.HasPrefix(line, "ready ") {
			s.Ready = line
			return nil
		}
		if ok {
			s.Kill()
			return fmt.Errorf("lunar serve printed %q instead of the ready line", line)
		}
		<-s.done
		return fmt.Errorf("lunar serve ended before it was ready: %v", s.cmd.ProcessState)
	case <-time.After(readyTimeout):
		s.Kill()
		return fmt.Errorf("lunar serve was not ready after %v", readyTimeout)
	}
}

// Running says whether the process is there.
func (s *Server) Running() bool {
	if s.done == nil {
		return false
	}
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

// Kill is kill -9.
func (s *Server) Kill() {
	if s.done != nil {
		s.cmd.Process.Kill()
		<-s.done
	}
}

// Stop is SIGTERM: the server must exit with status 0 within seconds. It returns how long that took.
func (s *Server) Stop() time.Duration {
	s.t.Helper()
	began := time.Now()
	if err := s.TryStop(); err != nil {
		s.t.Errorf("%v\n%s", err, s.Log())
	}
	return time.Since(began)
}

// TryStop is Stop with an error.
func (s *Server) TryStop() error {
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(stopTimeout):
		s.Kill()
		return fmt.Errorf("lunar serve was still there %v after SIGTERM", stopTimeout)
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("lunar serve ended with %v after SIGTERM, not 0", s.cmd.ProcessState)
	}
	return nil
}

// Restart starts the server again on the same pool.
func (s *Server) Restart() {
	s.t.Helper()
	if s.Running() {
		s.Stop()
	}
	s.Start()
}

// Addresses are the NBD listeners of the ready line, e.g. tcp://127.0.0.1:34567.
func (s *Server) Addresses() []string {
	var list []string
	for _, field := range strings.Fields(s.Ready) {
		if address, ok := strings.CutPrefix(field, "nbd="); ok {
			list = append(list, address)
		}
	}
	return list
}

// TCP is host and port of the first TCP listener.
func (s *Server) TCP() string {
	s.t.Helper()
	for _, address := range s.Addresses() {
		if host, ok := strings.CutPrefix(address, "tcp://"); ok {
			return host
		}
	}
	s.t.Fatalf("no TCP listener in %q", s.Ready)
	return ""
}

// URI is an export's address for libnbd, qemu and fio.
func (s *Server) URI(export string) string {
	return "nbd+unix:///" + export + "?socket=" + s.Socket
}

// Dial attaches to an export and detaches at the end of the test.
func (s *Server) Dial(export string) *client.Conn {
	s.t.Helper()
	c, err := client.Dial("unix", s.Socket, export)
	if err != nil {
		s.t.Fatalf("attach %s: %v\n%s", export, err, s.Log())
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// Log is what the server printed last on stderr.
func (s *Server) Log() string {
	text := s.log.String()
	if len(text) > 8<<10 {
		text = "…" + text[len(text)-8<<10:]
	}
	return "--- stderr of lunar serve:\n" + text
}

// FullLog is all that the server printed on stderr.
func (s *Server) FullLog() string { return s.log.String() }

// finish checks the pool, ends the server and shows its log if the test failed.
func (s *Server) finish() {
	if s.t.Failed() {
		s.t.Log(s.Log())
	}
	if s.Running() {
		s.check("pool", "check", "-o", "json")
		if err := s.TryStop(); err != nil {
			s.t.Errorf("%v\n%s", err, s.Log())
		}
		return
	}
	if _, err := os.Stat(s.Dir); err == nil {
		s.check("pool", "check", "--offline", "--data", s.Dir, "-o", "json")
	}
}

func (s *Server) check(args ...string) {
	if s.NoCheck {
		return
	}
	result := s.Run(args...)
	if result.Status != 0 || !strings.Contains(result.Stdout, `"ok"`) {
		s.t.Errorf("lunar %s: status %d\n%s%s\n%s", strings.Join(args, " "), result.Status, result.Stdout, result.Stderr, s.Log())
	}
}
