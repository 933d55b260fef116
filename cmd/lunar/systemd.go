package main

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// What a service manager passes to the process it starts, as sd_listen_fds(3) and
// sd_notify(3) describe it.
const (
	firstPassedFD  = 3
	maxPassed      = 64
	envListenPID   = "LISTEN_PID"
	envListenFDs   = "LISTEN_FDS"
	envListenNames = "LISTEN_FDNAMES"
	envNotify      = "NOTIFY_SOCKET"
)

// passedListeners takes over the sockets that were passed to this process. They
// belong to the service manager, which keeps them open over a restart: clients
// that connect meanwhile wait instead of being refused.
func passedListeners(getenv func(string) string, pid int) ([]net.Listener, error) {
	if getenv(envListenPID) != strconv.Itoa(pid) {
		return nil, nil // none, or meant for another process
	}
	n, err := strconv.Atoi(getenv(envListenFDs))
	if err != nil || n < 0 || n > maxPassed {
		return nil, fmt.Errorf("%s=%q: want how many sockets are passed, up to %d", envListenFDs, getenv(envListenFDs), maxPassed)
	}
	// Not for programs that this one starts.
	for _, name := range []string{envListenPID, envListenFDs, envListenNames} {
		_ = os.Unsetenv(name)
	}
	var list []net.Listener
	for fd := firstPassedFD; fd < firstPassedFD+n; fd++ {
		ln, err := passedListener(fd)
		if err != nil {
			for _, ln := range list {
				_ = ln.Close()
			}
			return nil, fmt.Errorf("socket %d of those passed with %s: %w; want stream sockets that listen (ListenStream=)", fd-firstPassedFD+1, envListenFDs, err)
		}
		list = append(list, ln)
	}
	return list, nil
}

func passedListener(fd int) (net.Listener, error) {
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "passed socket")
	defer f.Close() // FileListener has its own
	if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens == 0 {
		return nil, fmt.Errorf("file descriptor %d is no socket that listens", fd)
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	switch ln.(type) {
	case *net.TCPListener, *net.UnixListener:
		return ln, nil
	}
	_ = ln.Close()
	return nil, fmt.Errorf("file descriptor %d is of network %s", fd, ln.Addr().Network())
}

// notifyReady tells the service manager that all listeners accept.
func notifyReady(getenv func(string) string, log *slog.Logger) {
	path := getenv(envNotify)
	if path == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte("READY=1\n"))
		_ = conn.Close()
	}
	if err != nil {
		log.Warn("the service manager could not be told that the server is ready", "error", err)
	}
}
