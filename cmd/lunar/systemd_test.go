package main

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/nbd/nbdtest"
)

// activated runs `lunar serve` as a service manager would: with sockets from
// descriptor 3 on.
func activated(t *testing.T, sockets []*os.File, args ...string) (ready string, stop func()) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The variable names the process that exec makes of the shell.
	cmd := exec.Command("sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, exe}, args...)...)
	cmd.Env = append(os.Environ(), asLunar+"=1", "LISTEN_FDS="+strconv.Itoa(len(sockets)), "LISTEN_FDNAMES=a:b")
	cmd.ExtraFiles = sockets
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready, _ = bufio.NewReader(out).ReadString('\n')
	done := false
	stop = func() {
		if done {
			return
		}
		done = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, stderr.String())
		}
	}
	if ready == "" {
		_ = cmd.Wait()
		done = true
		return stderr.String(), stop
	}
	t.Cleanup(stop)
	return ready, stop
}

func fileOf(t *testing.T, ln interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// Over a restart of a server whose sockets belong to the service manager, a
// client that connects while there is no server waits and is served.
func TestSocketActivation(t *testing.T) {
	isolate(t)
	dir := shortDir(t)
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	path := filepath.Join(dir, "passed.sock")
	local, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	sockets := []*os.File{fileOf(t, tcp), fileOf(t, local)}
	args := []string{"serve", "--data", filepath.Join(dir, "d"), "--capacity", "64M", "--log-level", "error"}
	ready, stop := activated(t, sockets, args...)
	want := "ready nbd=tcp://" + tcp.Addr().String() + " nbd=unix://" + path + " admin=unix://" + filepath.Join(dir, "d", adminSocket) + "\n"
	if ready != want {
		t.Fatalf("%q, want %q", ready, want)
	}
	for _, addr := range []net.Addr{tcp.Addr(), local.Addr()} {
		nbdtest.Dial(t, addr)
	}
	stop()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the server has removed a socket that is not its own: %v", err)
	}
	waiting := nbdtest.Connect(t, tcp.Addr())
	if ready, stop = activated(t, sockets, args...); ready != want {
		t.Fatalf("%q", ready)
	}
	if p := waiting.Bytes(18); string(p[:8]) != "NBDMAGIC" {
		t.Errorf("%q", p)
	}
	stop()

	// Addresses of the configuration are served too; one that is passed is not
	// opened a second time, and has the mode of its entry.
	certs := made(t, "init", "certs").Dir
	ready, stop = activated(t, sockets, append(args, "--listen", "unix://"+dir+"/own.sock", "--listen", "tcp://"+tcp.Addr().String()+"?tls=required", "--tls-dir", certs)...)
	if !strings.HasPrefix(ready, "ready nbd=unix://"+dir+"/own.sock nbd=tcp://"+tcp.Addr().String()+" nbd=unix://"+path+" admin=") {
		t.Errorf("%q", ready)
	}
	if r := nbdtest.Dial(t, tcp.Addr()).Last(nbdtest.OptInfo, nbdtest.InfoData("")); r.Type != nbdtest.RepErrTLSReqd {
		t.Errorf("INFO in the clear: %#x", r.Type)
	}
	stop()
}

func TestSocketActivationRefuses(t *testing.T) {
	isolate(t)
	file, err := os.CreateTemp(shortDir(t), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	dir := filepath.Join(shortDir(t), "d")
	if got, _ := activated(t, []*os.File{file}, "serve", "--data", dir); !strings.Contains(got, "socket 1") || !strings.Contains(got, "ListenStream") {
		t.Errorf("%s", got)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a refused server made its folder")
	}
	env := map[string]string{envListenPID: "7", envListenFDs: "many"}
	if _, err := passedListeners(func(k string) string { return env[k] }, 7); err == nil || !strings.Contains(err.Error(), `"many"`) {
		t.Errorf("%v", err)
	}
	if list, err := passedListeners(func(k string) string { return env[k] }, 8); err != nil || list != nil {
		t.Errorf("sockets of another process: %v, %v", list, err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if _, err := passedListener(fd); err == nil {
			t.Error("a connection is taken for a listener")
		}
	}
}

func TestNotifyReady(t *testing.T) {
	path := filepath.Join(shortDir(t), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	log := newLogger(io.Discard, &config{LogLevel: "info"})
	notifyReady(func(string) string { return path }, log)
	p := make([]byte, 64)
	n, err := conn.Read(p)
	if err != nil || string(p[:n]) != "READY=1\n" {
		t.Errorf("%q, %v", p[:n], err)
	}
	notifyReady(func(string) string { return "" }, log)
	notifyReady(func(string) string { return "/nowhere" }, log)
}
