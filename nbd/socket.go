package nbd

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// tuneSocket gives a connection the buffers that whole replies need: with less,
// a reply of 1 MiB wakes the client several times. The system's limit is passed
// where we may (SO_SNDBUFFORCE needs CAP_NET_ADMIN), else it is what we get.
func tuneSocket(nc net.Conn, size int) {
	if t, ok := nc.(*net.TCPConn); ok {
		_ = t.SetNoDelay(true)
		return // TCP sizes its windows by itself, and better
	}
	s, ok := nc.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		for force, plain := range map[int]int{unix.SO_SNDBUFFORCE: unix.SO_SNDBUF, unix.SO_RCVBUFFORCE: unix.SO_RCVBUF} {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, force, size) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, plain, size)
			}
		}
	})
}
