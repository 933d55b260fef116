package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"lunar/integration/harness"
)

// server is one NBD server with one export of `size` bytes, on a unix socket.
type server struct {
	name string
	dir  string // its files, removed with it
	uri  string
	args []string // how it was started
	env  []string // beside its own environment

	cmd   *exec.Cmd
	admin string // lunar only
}

const readyTimeout = 20 * time.Second

// kinds are the servers that are compared; the first one is the measure of the others.
var kinds = []string{"nbdkit file", "nbdkit memory", "qemu-nbd raw", "qemu-nbd qcow2", "go-nbd", "lunar"}

// goNBD is go-nbd's server, built by the Makefile; it knows no FLUSH.
var goNBD = "bin/gonbd"

// start starts a server with an empty export.
func start(kind, lunar, top string, size int64) (*server, error) {
	dir, err := os.MkdirTemp(top, "s")
	if err != nil {
		return nil, err
	}
	s := &server{name: kind, dir: dir}
	socket, file := filepath.Join(dir, "s"), filepath.Join(dir, "disk.img")
	s.uri = "nbd+unix:///?socket=" + socket
	switch kind {
	case "nbdkit file":
		s.args = []string{"nbdkit", "-f", "-U", socket, "file", file}
	case "nbdkit memory":
		s.args = []string{"nbdkit", "-f", "-U", socket, "memory", fmt.Sprint(size)}
	case "qemu-nbd raw", "qemu-nbd qcow2":
		_, format, _ := strings.Cut(kind, " ")
		s.args = []string{"qemu-nbd", "-t", "-e", "16", "-k", socket, "-f", format, "--cache=writeback", "--aio=io_uring", file}
	case "go-nbd":
		path, err := filepath.Abs(goNBD)
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			return nil, fmt.Errorf("go-nbd's server: %w; `make %s` builds it, or leave it out of -servers", err, goNBD)
		}
		s.args = []string{path, socket, file}
	case "lunar":
		s.admin = filepath.Join(dir, "pool", "admin.sock")
		s.uri = "nbd+unix:///disk?socket=" + socket
		s.args = []string{lunar, "serve", "--data", filepath.Join(dir, "pool"), "--listen", "unix://" + socket, "--capacity", fmt.Sprint(16 * size)}
	default:
		return nil, fmt.Errorf("no such server: %q", kind)
	}
	if kind == "qemu-nbd qcow2" {
		if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", file, fmt.Sprint(size)).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("qemu-img create: %w\n%s", err, out)
		}
	}
	if kind == "nbdkit file" || kind == "qemu-nbd raw" || kind == "go-nbd" {
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			return nil, err
		}
		if err := os.Truncate(file, size); err != nil {
			return nil, err
		}
	}
	if err := s.run(socket); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", strings.Join(s.args, " "), err), s.stop())
	}
	if kind == "lunar" {
		if err := s.lunar("lun", "create", "disk", fmt.Sprint(size)); err != nil {
			return nil, errors.Join(err, s.stop())
		}
	}
	return s, nil
}

// run starts the process and waits until it listens.
func (s *server) run(socket string) error {
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	s.cmd.Dir = s.dir
	s.cmd.Env = append(os.Environ(), s.env...)
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd.Stderr = log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	if s.admin != "" { // its ready line
		line, err := bufio.NewReader(stdout).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "ready ") {
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("not ready: %q %v\n%s", line, err, text)
		}
		return nil
	}
	for deadline := time.Now().Add(readyTimeout); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			return c.Close()
		}
	}
	return errors.New("does not listen")
}

// lunar runs a command against a lunar server.
func (s *server) lunar(args ...string) error {
	out, err := exec.Command(s.args[0], append(args, "--server", "unix://"+s.admin)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("lunar %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// flushes says whether the server knows FLUSH.
func (s *server) flushes() bool { return s.name != "go-nbd" }

// cpu is the processor time that the server has used.
func (s *server) cpu() time.Duration {
	used, err := harness.ProcessCPU(s.cmd.Process.Pid)
	if err != nil {
		return 0
	}
	return used
}

// memory is the server's peak resident memory.
func (s *server) memory() int64 {
	peak, _, err := harness.ProcessRSS(s.cmd.Process.Pid)
	if err != nil {
		return 0
	}
	return peak
}

// disk is what the server's files occupy.
func (s *server) disk() int64 {
	var sum int64
	filepath.WalkDir(s.dir, func(path string, _ fs.DirEntry, err error) error {
		var st syscall.Stat_t
		if err == nil && syscall.Lstat(path, &st) == nil {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum
}

// stop ends the server and removes its files.
func (s *server) stop() error {
	s.end() // servers that die of the signal report it as a failure
	return os.RemoveAll(s.dir)
}

// end ends the server; its files stay. The error says that it did not end well.
func (s *server) end() error {
	if s.cmd == nil || s.cmd.Process == nil {
		return nil
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(readyTimeout, func() { s.cmd.Process.Kill() })
	defer kill.Stop()
	return s.cmd.Wait()
}
