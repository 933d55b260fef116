package nbd_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

// panicWatch is a log that notices panics, which the server survives.
type panicWatch struct {
	slog.Handler
	seen atomic.Pointer[slog.Record]
}

func (w *panicWatch) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		w.seen.Store(&r)
	}
	return nil
}

func (w *panicWatch) WithAttrs([]slog.Attr) slog.Handler       { return w }
func (w *panicWatch) Enabled(context.Context, slog.Level) bool { return true }

// fuzzServer serves a device that stays as small as it is.
func fuzzServer(f *testing.F) (net.Addr, *panicWatch, *nbdtest.Memory) {
	w := &panicWatch{Handler: slog.DiscardHandler}
	m := nbdtest.NewMemory("mem", 1<<20)
	m.Snapshot("one")
	_, addr := nbdtest.Serve(f, nbd.Options{Backend: nbdtest.NewBackend(m), Logger: slog.New(w), MemoryTotal: 1 << 20}, nbd.ListenerOptions{})
	return addr, w, m
}

// play sends bytes, ends the stream and takes all that comes back.
func play(t *testing.T, addr net.Addr, w *panicWatch, m *nbdtest.Memory, b []byte) {
	nc, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
	go func() {
		_, _ = nc.Write(b)
		_ = nc.(*net.UnixConn).CloseWrite()
	}()
	n, err := io.Copy(io.Discard, nc)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Errorf("the server keeps a connection whose client has said all (%d bytes came)", n)
	}
	if p := w.seen.Load(); p != nil {
		t.Errorf("%s", p.Message)
		p.Attrs(func(a slog.Attr) bool { t.Log(a); return true })
	}
	if m.Lent.Load() < 0 {
		t.Error("a buffer was given back twice")
	}
}

func FuzzHandshake(f *testing.F) {
	addr, w, m := fuzzServer(f)
	for _, structured := range []bool{false, true} {
		f.Add(conversation(&nbdtest.Client{}, structured))
	}
	f.Add([]byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff"))
	f.Add(append([]byte{0, 0, 0, 1}, nbdtest.Option(nbdtest.OptExportName, []byte("mem"))...))
	f.Fuzz(func(t *testing.T, b []byte) { play(t, addr, w, m, b) })
}

// FuzzTransmission begins behind a handshake of one of three kinds.
func FuzzTransmission(f *testing.F) {
	addr, w, m := fuzzServer(f)
	for kind := range byte(3) {
		c := &nbdtest.Client{Extended: kind == 2}
		var b []byte
		for typ := range uint16(9) {
			flags := uint16(0)
			var payload []byte
			if typ == nbdtest.CmdWrite {
				payload = make([]byte, 100)
				if c.Extended {
					flags = nbdtest.FlagPayload
				}
			}
			one := append(c.Request(flags, typ, uint64(typ), 4096, 100), payload...)
			f.Add(kind, one)
			if typ != nbdtest.CmdDisc {
				b = append(b, one...)
			}
		}
		f.Add(kind, append(b, c.Request(1, nbdtest.CmdRead, 1, 0, 300<<10)...))
		f.Add(kind, append(c.Request(0, nbdtest.CmdWrite, 1, 0, 65<<10), make([]byte, 65<<10)...))
	}
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		start := []byte{0, 0, 0, 3}
		if kind%3 > 0 {
			option := map[byte]uint32{1: nbdtest.OptStructuredReply, 2: nbdtest.OptExtended}[kind%3]
			start = append(start, nbdtest.Option(option, nil)...)
			start = append(start, nbdtest.Option(nbdtest.OptSetMeta, nbdtest.MetaData("mem", "base:allocation", "lunar:changed:one"))...)
		}
		start = append(start, nbdtest.Option(nbdtest.OptGo, nbdtest.InfoData("mem"))...)
		play(t, addr, w, m, append(start, b...))
	})
}
