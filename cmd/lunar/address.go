package main

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"lunar/nbd"
)

// maxUnixPath is what a unix address holds: 108 bytes less the final zero.
const maxUnixPath = 107

// address is where a server listens: tcp://HOST:PORT or unix:///PATH.
type address struct {
	network string // "tcp" or "unix"
	addr    string // HOST:PORT or the path
}

func (a address) String() string { return a.network + "://" + a.addr }

// listenAddress is an address of --listen, with a TLS mode of its own if it has
// one: ?tls=MODE.
type listenAddress struct {
	address
	tls string // "": what tls.mode says for tcp, off for unix
}

func (a listenAddress) String() string {
	if a.tls == "" {
		return a.address.String()
	}
	return a.address.String() + tlsQuery + a.tls
}

const tlsQuery = "?tls="

// mode is the listener's TLS mode. What tls.mode says does not concern unix
// sockets: the system says who may open those.
func (a listenAddress) mode(byDefault nbd.TLSMode) nbd.TLSMode {
	switch {
	case a.tls != "":
		m, err := nbd.ParseTLSMode(a.tls)
		must(err) // checked when it was parsed
		return m
	case a.network == "unix":
		return nbd.TLSOff
	}
	return byDefault
}

// parseListenAddress reads an address of --listen.
func parseListenAddress(s string) (listenAddress, error) {
	text, mode := s, ""
	if i := strings.LastIndex(s, tlsQuery); i >= 0 {
		text, mode = s[:i], s[i+len(tlsQuery):]
		if _, err := nbd.ParseTLSMode(mode); err != nil || mode == "" {
			return listenAddress{}, usagef("address %q: want ?tls=off, ?tls=allowed or ?tls=required", s)
		}
	}
	a, err := parseAddress(text)
	return listenAddress{a, mode}, err
}

// parseAddress reads an address without more.
func parseAddress(s string) (address, error) {
	if strings.HasPrefix(s, "unix:") {
		path, err := parseUnixAddress(s)
		return address{"unix", path}, err
	}
	hostport, ok := strings.CutPrefix(s, "tcp://")
	if !ok {
		return address{}, usagef("address %q: want tcp://HOST:PORT or unix:///PATH", s)
	}
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return address{}, usagef("address %q: want tcp://HOST:PORT, an IPv6 HOST in []", s)
	}
	if strings.ContainsAny(host, "/?#@ ") {
		return address{}, usagef("address %q: %q is not a host", s, host)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return address{}, usagef("address %q: want a PORT from 0 (any free one) to 65535", s)
	}
	return address{"tcp", hostport}, nil
}

// parseUnixAddress reads unix:///PATH.
func parseUnixAddress(s string) (string, error) {
	path, ok := strings.CutPrefix(s, "unix://")
	if !ok || !strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/") {
		return "", usagef("address %q: want unix:///PATH with an absolute path", s)
	}
	return path, nil
}

// checkUnixPath refuses what the kernel would cut off or refuse without a name.
// It is a refusal, not a mistake of the command line: the path may be a default.
func checkUnixPath(path string) error {
	if len(path) > maxUnixPath {
		return fmt.Errorf("socket path %s: %d bytes are too long for a unix address; want at most %d", path, len(path), maxUnixPath)
	}
	if strings.ContainsRune(path, 0) {
		return fmt.Errorf("socket path %q: a zero byte cannot be in a path", path)
	}
	return nil
}
