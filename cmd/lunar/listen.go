package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// checkSocketPath finds out, before anything is changed, whether a server can
// listen on path: nobody answers there, nothing but a socket is there, and its
// folder is there and writable. madeLater is the data folder, which may not exist
// yet.
func checkSocketPath(path, madeLater string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return checkSocketDir(filepath.Dir(path), madeLater)
	case err != nil:
		return fmt.Errorf("socket %s: cannot be made: %w", path, err)
	case info.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("socket %s: something else is there; remove it or name another path", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		defer conn.Close()
		return &liveSocket{path: path, pid: peerPID(conn)}
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return nil // of a dead server
	}
	return fmt.Errorf("socket %s: cannot be replaced, for its server may live: %w", path, err)
}

// liveSocket is the error of a socket behind which somebody answers.
type liveSocket struct{ path, pid string }

func (e *liveSocket) Error() string {
	return fmt.Sprintf("socket %s is in use: another server, pid %s, answers there; stop it or name another path", e.path, e.pid)
}

func checkSocketDir(dir, madeLater string) error {
	if dir == madeLater {
		return nil // whoever makes it says what is wrong with it
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("socket folder %s: cannot be written: %w; make it or name another", dir, err)
	}
	return nil
}

// peerPID is the process behind a unix connection.
func peerPID(conn net.Conn) string {
	pid := "unknown"
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return pid
	}
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = fmt.Sprint(cred.Pid)
		}
	})
	return pid
}

func listenTCP(ctx context.Context, a address) (net.Listener, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", a.addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: the port is in use by another program; stop it or give another --listen", a)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w; give another --listen", a, bareError(err))
	}
	return ln, nil
}

// bareError takes from a network error the address, which the message has.
func bareError(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// listenUnix listens on path in place of what a dead server left there. A mode
// other than 0 is the socket's from its first moment: it is set before bind, whose
// inode takes it over, so that there is no instant at which others may connect.
// The socket is removed when the listener is closed.
func listenUnix(ctx context.Context, path string, mode uint32) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket %s: cannot be replaced: %w", path, err)
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		if mode == 0 {
			return nil
		}
		var chmodErr error
		err := raw.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), mode) })
		return errors.Join(err, chmodErr)
	}}
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w; make its folder writable or name another path", path, bareError(err))
	}
	if mode == 0 {
		return ln, nil
	}
	info, err := os.Stat(path)
	if err == nil && uint32(info.Mode().Perm())&^mode != 0 {
		err = fmt.Errorf("its mode is %o instead of %o", info.Mode().Perm(), mode)
	}
	if err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("socket %s: %w; name a path on a local file system", path, err)
	}
	return ln, nil
}

func joinAddresses(list []listenAddress) string {
	texts := make([]string, len(list))
	for i, a := range list {
		texts[i] = a.String()
	}
	return strings.Join(texts, " ")
}

// boundAddress is where a listener really listens: a port 0 is a real one.
func boundAddress(ln net.Listener) address {
	return address{ln.Addr().Network(), ln.Addr().String()}
}
