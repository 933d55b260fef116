package nbd_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"

	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

// nothing is a device that costs nothing, so that the protocol is what is measured.
type nothing struct{ buf []byte }

func (nothing) Exports(context.Context, nbd.Client) ([]nbd.ExportInfo, error) { return nil, nil }
func (d nothing) Open(context.Context, string, nbd.Client) (nbd.Device, error) {
	return d, nil
}
func (nothing) Size() int64                          { return 1 << 30 }
func (nothing) ReadOnly() bool                       { return false }
func (nothing) Description() string                  { return "" }
func (d nothing) Buffer(n int) []byte                { return d.buf[:n] }
func (nothing) Discard([]byte)                       {}
func (nothing) ReadAt([]byte, int64) error           { return nil }
func (nothing) WriteAt([]byte, int64, bool) error    { return nil }
func (nothing) WriteOwned([]byte, int64, bool) error { return nil }
func (nothing) Flush() error                         { return nil }
func (nothing) Trim(int64, int64, bool) error        { return nil }
func (nothing) Zero(int64, int64, bool, bool) error  { return nil }
func (nothing) Close() error                         { return nil }
func (nothing) Extents(off, n int64, fn func(off, n int64, hole, zero bool) bool) error {
	fn(off, n, false, false)
	return nil
}

// BenchmarkRequest is one request over a unix socket, the client's side included: of depth many that are sent at once.
func BenchmarkRequest(b *testing.B) {
	for _, w := range []struct {
		name  string
		typ   uint16
		bytes int
	}{{"read-4K", nbdtest.CmdRead, 4 << 10}, {"write-4K", nbdtest.CmdWrite, 4 << 10}, {"read-1M", nbdtest.CmdRead, 1 << 20}, {"write-1M", nbdtest.CmdWrite, 1 << 20}} {
		for _, depth := range []int{1, 32} {
			if w.bytes > 64<<10 && depth > 1 {
				continue
			}
			b.Run(fmt.Sprintf("%s/depth=%d", w.name, depth), func(b *testing.B) { benchRequest(b, w.typ, w.bytes, depth) })
		}
	}
}

func benchRequest(b *testing.B, typ uint16, n, depth int) {
	_, addr := nbdtest.Serve(b, nbd.Options{Backend: nothing{make([]byte, 1<<20)}}, nbd.ListenerOptions{})
	c := nbdtest.Attach(b, addr, "", true)
	var sent bytes.Buffer
	reply := 16 // a write's
	if typ == nbdtest.CmdRead {
		reply = 20 + 8 + n
	}
	for i := range depth {
		sent.Write(c.Request(0, typ, uint64(i), uint64(i*n), uint64(n)))
		if typ == nbdtest.CmdWrite {
			sent.Write(make([]byte, n))
		}
	}
	got := make([]byte, depth*reply)
	b.SetBytes(int64(n))
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += depth {
		go func() { _, _ = c.Conn.Write(sent.Bytes()) }() // of a megabyte the reply may come first
		if _, err := io.ReadFull(c.Conn, got); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	c.Disc()
}
