package nbd_test

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

// The scripts in testdata/handshake are conversations, byte by byte where it
// matters. Commands:
//
//	connect [tls=off|allowed|required] [flags=3]   greet; the flags are the client's
//	option N [len=L]                               send option N; the input is its data, len a lie about it
//	send                                           send the input as it is
//	request CMD [flags=..] [off=..] [len=..] [cookie=..]   the input is the payload
//	read-only true|false                           of the device, from now on
//
// Data is words: u16:N u32:N u64:N str:TEXT hex:BYTES zeros:N.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/handshake", func(t *testing.T, path string) {
		s := newScript(t)
		datadriven.RunTest(t, path, s.run)
	})
}

type script struct {
	memory  *nbdtest.Memory
	servers map[string]net.Addr
	c       *nbdtest.Client
}

func newScript(t *testing.T) *script {
	s := &script{memory: nbdtest.NewMemory("mem", 1<<20), servers: map[string]net.Addr{}}
	s.memory.Snapshot("monday")
	certs := makeCerts(t)
	loaded, err := nbd.LoadTLS(certs.dir, false)
	if err != nil {
		t.Fatal(err)
	}
	backend := nbdtest.NewBackend(s.memory, nbdtest.NewMemory("second", 1000))
	for _, mode := range []string{"off", "allowed", "required"} {
		m, err := nbd.ParseTLSMode(mode)
		if err != nil {
			t.Fatal(err)
		}
		_, s.servers[mode] = nbdtest.Serve(t, nbd.Options{Backend: backend, TLS: loaded}, nbd.ListenerOptions{TLS: m})
	}
	return s
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	switch d.Cmd {
	case "connect":
		return s.connect(t, d)
	case "option":
		n, data := atoi(t, d.CmdArgs[0].Key), words(t, d.Input)
		b := nbdtest.Option(uint32(n), data)
		if d.HasArg("len") {
			binary.BigEndian.PutUint32(b[12:], uint32(number(t, d, "len", 0)))
		}
		_, _ = s.c.Conn.Write(b)
		return s.answers(t, uint32(n))
	case "send":
		_, _ = s.c.Conn.Write(words(t, d.Input))
		return s.answers(t, 0)
	case "request":
		return s.request(t, d)
	case "read-only":
		s.memory.SetReadOnly(d.CmdArgs[0].Key == "true")
		return "ok"
	}
	t.Fatalf("%s: unknown command %s", d.Pos, d.Cmd)
	return ""
}

func (s *script) connect(t *testing.T, d *datadriven.TestData) string {
	mode := "off"
	d.MaybeScanArgs(t, "tls", &mode)
	flags := number(t, d, "flags", 3)
	s.c = nbdtest.Connect(t, s.servers[mode])
	s.c.Bytes(18)
	s.c.Send(binary.BigEndian.AppendUint32(nil, uint32(flags)))
	return "connected"
}

// answers prints what the server says until it has said all to this option,
// leaves or waits for more.
func (s *script) answers(t *testing.T, option uint32) string {
	var b strings.Builder
	for {
		h, err := s.peek(20)
		if err != nil {
			return b.String() + errText(err)
		}
		if binary.BigEndian.Uint64(h) != 0x3e889045565a9 {
			return b.String() + s.exportName(h)
		}
		typ := binary.BigEndian.Uint32(h[12:])
		data := s.c.Bytes(int(binary.BigEndian.Uint32(h[16:])))
		if option != 0 && binary.BigEndian.Uint32(h[8:]) != option {
			t.Errorf("reply to option %d", binary.BigEndian.Uint32(h[8:]))
		}
		fmt.Fprintln(&b, replyText(typ, data))
		if typ == nbdtest.RepAck || typ>>31 == 1 {
			if option == nbdtest.OptGo && typ == nbdtest.RepAck {
				return b.String() + "transmission"
			}
			if option == nbdtest.OptAbort {
				_, err := s.peek(1)
				return b.String() + errText(err)
			}
			return b.String()
		}
	}
}

// exportName prints the answer to EXPORT_NAME, of which h is the beginning.
func (s *script) exportName(h []byte) string {
	rest := 0
	for {
		if _, err := s.peek(1); err != nil {
			break
		}
		rest++
	}
	return fmt.Sprintf("size %d flags %#x and %d bytes\ntransmission", binary.BigEndian.Uint64(h), binary.BigEndian.Uint16(h[8:]), rest+10)
}

func (s *script) peek(n int) ([]byte, error) {
	_ = s.c.Conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	defer func() { _ = s.c.Conn.SetReadDeadline(time.Now().Add(20 * time.Second)) }()
	p := make([]byte, n)
	got, err := io.ReadFull(s.c.Conn, p)
	if got == 10 { // EXPORT_NAME without zeroes
		return p, nil
	}
	return p, err
}

func errText(err error) string {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "waits"
	}
	return "closed"
}

var replyNames = map[uint32]string{
	nbdtest.RepAck: "ACK", nbdtest.RepServer: "SERVER", nbdtest.RepInfo: "INFO", nbdtest.RepMeta: "META",
	nbdtest.RepErrUnsup: "ERR_UNSUP", nbdtest.RepErrPolicy: "ERR_POLICY", nbdtest.RepErrInvalid: "ERR_INVALID",
	nbdtest.RepErrTLSReqd: "ERR_TLS_REQD", nbdtest.RepErrUnknown: "ERR_UNKNOWN", nbdtest.RepErrShutdown: "ERR_SHUTDOWN",
	nbdtest.RepErrTooBig: "ERR_TOO_BIG", 1<<31 | 10: "ERR_EXT_HEADER_REQD",
}

func replyText(typ uint32, data []byte) string {
	name := replyNames[typ]
	switch {
	case typ>>31 == 1:
		return fmt.Sprintf("%s: %s", name, data)
	case typ == nbdtest.RepServer:
		n := binary.BigEndian.Uint32(data)
		return fmt.Sprintf("%s %s (%s)", name, data[4:4+n], data[4+n:])
	case typ == nbdtest.RepMeta:
		return fmt.Sprintf("%s %d %s", name, binary.BigEndian.Uint32(data), data[4:])
	case typ != nbdtest.RepInfo:
		return name
	}
	switch kind, rest := binary.BigEndian.Uint16(data), data[2:]; kind {
	case 0:
		return fmt.Sprintf("INFO export size %d flags %#x", binary.BigEndian.Uint64(rest), binary.BigEndian.Uint16(rest[8:]))
	case 3:
		return fmt.Sprintf("INFO blocks %d %d %d", binary.BigEndian.Uint32(rest), binary.BigEndian.Uint32(rest[4:]), binary.BigEndian.Uint32(rest[8:]))
	default:
		return fmt.Sprintf("INFO %d %s", kind, rest)
	}
}

var commands = map[string]uint16{"read": 0, "write": 1, "disc": 2, "flush": 3, "trim": 4, "cache": 5, "zero": 6, "status": 7}

func (s *script) request(t *testing.T, d *datadriven.TestData) string {
	typ, ok := commands[d.CmdArgs[0].Key]
	if !ok {
		typ = uint16(atoi(t, d.CmdArgs[0].Key))
	}
	flags, cookie := uint16(number(t, d, "flags", 0)), number(t, d, "cookie", 7)
	off, length := number(t, d, "off", 0), number(t, d, "len", 0)
	s.c.Structured, s.c.Extended = d.HasArg("structured") || d.HasArg("extended"), d.HasArg("extended")
	_, _ = s.c.Conn.Write(append(s.c.Request(flags, typ, cookie, off, length), words(t, d.Input)...))
	_ = s.c.Conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	var first [1]byte
	if n, err := s.c.Conn.Read(first[:]); n == 0 {
		_ = s.c.Conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		return errText(err)
	}
	_ = s.c.Conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	conn := s.c.Conn
	s.c.Conn = &unread{Conn: conn, first: first[:]}
	defer func() { s.c.Conn = conn }()
	n := 0
	if typ == 0 {
		n = int(length)
	}
	return printReply(s.c.Receive(n), cookie)
}

// unread gives bytes back that were read before.
type unread struct {
	net.Conn
	first []byte
}

func (u *unread) Read(p []byte) (int, error) {
	if len(u.first) > 0 {
		n := copy(p, u.first)
		u.first = u.first[n:]
		return n, nil
	}
	return u.Conn.Read(p)
}

func printReply(r nbdtest.Reply, cookie uint64) string {
	var b strings.Builder
	if r.Cookie != cookie {
		fmt.Fprintf(&b, "cookie %d\n", r.Cookie)
	}
	fmt.Fprintf(&b, "error %d", r.Errno)
	if r.Text != "" {
		fmt.Fprintf(&b, ": %s", r.Text)
	}
	for _, c := range r.Chunks {
		if c.Type>>15 == 1 {
			continue
		}
		text := hex.EncodeToString(c.Data)
		if len(text) > 80 {
			text = fmt.Sprintf("%s... %d bytes", text[:80], len(c.Data))
		}
		fmt.Fprintf(&b, "\nchunk %d %s", c.Type, text)
	}
	return b.String()
}

// words encodes the data of a script.
func words(t *testing.T, s string) []byte {
	var b []byte
	for _, w := range strings.Fields(s) {
		kind, value, _ := strings.Cut(w, ":")
		switch kind {
		case "u16":
			b = binary.BigEndian.AppendUint16(b, uint16(atoi(t, value)))
		case "u32":
			b = binary.BigEndian.AppendUint32(b, uint32(atoi(t, value)))
		case "u64":
			b = binary.BigEndian.AppendUint64(b, atoi(t, value))
		case "str":
			b = append(b, value...)
		case "hex":
			p, err := hex.DecodeString(value)
			if err != nil {
				t.Fatal(err)
			}
			b = append(b, p...)
		case "zeros":
			b = append(b, make([]byte, atoi(t, value))...)
		default:
			t.Fatalf("unknown word %q", w)
		}
	}
	return b
}

// number is an argument of a command.
func number(t *testing.T, d *datadriven.TestData, key string, value uint64) uint64 {
	s := ""
	if d.MaybeScanArgs(t, key, &s) {
		return atoi(t, s)
	}
	return value
}

func atoi(t *testing.T, s string) uint64 {
	n, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
