// Command gonbd serves one file by go-nbd's own server (github.com/pojntfx/go-nbd), for `make bench`. It is a module of
// its own, so that lunar does not depend on it.
package main

import (
	"fmt"
	"net"
	"os"

	"github.com/pojntfx/go-nbd/pkg/backend"
	"github.com/pojntfx/go-nbd/pkg/server"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: gonbd SOCKET FILE")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "gonbd:", err)
		os.Exit(1)
	}
}

func serve(socket, file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	exports := []*server.Export{{Name: "", Backend: backend.NewFileBackend(f)}}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			if err := server.Handle(conn, exports, &server.Options{MinimumBlockSize: 1, PreferredBlockSize: 4096, MaximumBlockSize: 32 << 20, SupportsMultiConn: true}); err != nil {
				fmt.Fprintln(os.Stderr, "gonbd:", err)
			}
		}()
	}
}
