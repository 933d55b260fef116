package nbdtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"lunar/nbd"
)

var be = binary.BigEndian

// Numbers of the protocol, written down a second time on purpose: a wrong one in
// the server must not be wrong here as well.
const (
	OptExportName, OptAbort, OptList, OptStartTLS, OptInfo, OptGo = 1, 2, 3, 5, 6, 7
	OptStructuredReply, OptListMeta, OptSetMeta, OptExtended      = 8, 9, 10, 11

	RepAck, RepServer, RepInfo, RepMeta = 1, 2, 3, 4
	RepErrUnsup, RepErrPolicy           = 1<<31 | 1, 1<<31 | 2
	RepErrInvalid, RepErrTLSReqd        = 1<<31 | 3, 1<<31 | 5
	RepErrUnknown, RepErrShutdown       = 1<<31 | 6, 1<<31 | 7
	RepErrTooBig                        = 1<<31 | 9

	CmdRead, CmdWrite, CmdDisc, CmdFlush, CmdTrim, CmdCache, CmdZero, CmdStatus = 0, 1, 2, 3, 4, 5, 6, 7

	FlagFUA, FlagNoHole, FlagDF, FlagReqOne, FlagFastZero, FlagPayload = 1, 2, 4, 8, 16, 32

	EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP = 1, 5, 22, 28, 75, 95
)

// Client is a client that does what a test tells it to, right or wrong. Errors of
// the connection end the test, except in methods that return them.
type Client struct {
	T    testing.TB
	Conn net.Conn

	Size       uint64
	Flags      uint16 // transmission flags
	Structured bool
	Extended   bool
	cookie     uint64
}

// Serve runs a server with one unix listener for the length of the test.
func Serve(t testing.TB, o nbd.Options, lo nbd.ListenerOptions) (*nbd.Server, net.Addr) {
	t.Helper()
	s, err := nbd.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	return s, ServeOn(t, s, ln, lo)
}

// ServeOn runs a server on a listener for the length of the test.
func ServeOn(t testing.TB, s *nbd.Server, ln net.Listener, lo nbd.ListenerOptions) net.Addr {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), ln, lo) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != nil && !errors.Is(err, nbd.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return ln.Addr()
}

// Dial connects and takes the greeting.
func Dial(t testing.TB, addr net.Addr) *Client {
	t.Helper()
	c := Connect(t, addr)
	greeting := c.Bytes(18)
	if string(greeting[:16]) != "NBDMAGICIHAVEOPT" || be.Uint16(greeting[16:]) != 3 {
		t.Fatalf("greeting: %q", greeting)
	}
	c.Send(be.AppendUint32(nil, 3))
	return c
}

// Connect connects and says nothing.
func Connect(t testing.TB, addr net.Addr) *Client {
	t.Helper()
	nc, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { _ = nc.Close() })
	return &Client{T: t, Conn: nc}
}

// Attach is Dial and a GO for an export, with structured replies if asked for.
func Attach(t testing.TB, addr net.Addr, export string, structured bool) *Client {
	t.Helper()
	c := Dial(t, addr)
	if structured {
		c.MustAck(OptStructuredReply, nil)
		c.Structured = true
	}
	c.Go(export)
	return c
}

// Bytes receives n bytes.
func (c *Client) Bytes(n int) []byte {
	c.T.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(c.Conn, p); err != nil {
		c.T.Fatalf("receiving %d bytes: %v", n, err)
	}
	return p
}

// Send sends.
func (c *Client) Send(p []byte) {
	c.T.Helper()
	if _, err := c.Conn.Write(p); err != nil {
		c.T.Fatalf("sending %d bytes: %v", len(p), err)
	}
}

// Gone reports whether the server ends the connection, sending nothing more.
func (c *Client) Gone() error {
	n, err := c.Conn.Read(make([]byte, 1))
	var timeout net.Error
	if n > 0 || errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("the connection is still open (%d bytes, %w)", n, err)
	}
	return nil
}

// OptionReply is one reply to an option.
type OptionReply struct {
	Type uint32
	Data []byte
}

// Option encodes an option.
func Option(option uint32, data []byte) []byte {
	b := append([]byte("IHAVEOPT"), 0, 0, 0, 0, 0, 0, 0, 0)
	be.PutUint32(b[8:], option)
	be.PutUint32(b[12:], uint32(len(data)))
	return append(b, data...)
}

// Option sends an option and receives all its replies.
func (c *Client) Option(option uint32, data []byte) []OptionReply {
	c.T.Helper()
	c.Send(Option(option, data))
	return c.Replies(option)
}

// Replies receives all replies to an option.
func (c *Client) Replies(option uint32) []OptionReply {
	c.T.Helper()
	var list []OptionReply
	for {
		h := c.Bytes(20)
		if be.Uint64(h) != 0x3e889045565a9 || be.Uint32(h[8:]) != option {
			c.T.Fatalf("reply to option %d: header %x", option, h)
		}
		r := OptionReply{be.Uint32(h[12:]), c.Bytes(int(be.Uint32(h[16:])))}
		list = append(list, r)
		if r.Type == RepAck || r.Type>>31 != 0 {
			return list
		}
	}
}

// Last is the last reply to an option.
func (c *Client) Last(option uint32, data []byte) OptionReply {
	c.T.Helper()
	list := c.Option(option, data)
	return list[len(list)-1]
}

// MustAck sends an option that must succeed.
func (c *Client) MustAck(option uint32, data []byte) {
	c.T.Helper()
	if r := c.Last(option, data); r.Type != RepAck {
		c.T.Fatalf("option %d: reply %#x %q", option, r.Type, r.Data)
	}
}

// InfoData encodes the payload of INFO and GO.
func InfoData(export string, infos ...uint16) []byte {
	b := append(be.AppendUint32(nil, uint32(len(export))), export...)
	b = be.AppendUint16(b, uint16(len(infos)))
	for _, i := range infos {
		b = be.AppendUint16(b, i)
	}
	return b
}

// MetaData encodes the payload of the options for metadata contexts.
func MetaData(export string, queries ...string) []byte {
	b := append(be.AppendUint32(nil, uint32(len(export))), export...)
	b = be.AppendUint32(b, uint32(len(queries)))
	for _, q := range queries {
		b = append(be.AppendUint32(b, uint32(len(q))), q...)
	}
	return b
}

// Go enters transmission.
func (c *Client) Go(export string) {
	c.T.Helper()
	list := c.Option(OptGo, InfoData(export, 3))
	for _, r := range list {
		switch {
		case r.Type == RepInfo && len(r.Data) == 12 && be.Uint16(r.Data) == 0:
			c.Size, c.Flags = be.Uint64(r.Data[2:]), be.Uint16(r.Data[10:])
		case r.Type>>31 != 0:
			c.T.Fatalf("GO %q: %#x %q", export, r.Type, r.Data)
		}
	}
}

// Request encodes a request.
func (c *Client) Request(flags, typ uint16, cookie, off, length uint64) []byte {
	b := be.AppendUint32(nil, map[bool]uint32{false: 0x25609513, true: 0x21e41c71}[c.Extended])
	b = be.AppendUint16(b, flags)
	b = be.AppendUint16(b, typ)
	b = be.AppendUint64(b, cookie)
	b = be.AppendUint64(b, off)
	if c.Extended {
		return be.AppendUint64(b, length)
	}
	return be.AppendUint32(b, uint32(length))
}

// Chunk is one chunk of a reply.
type Chunk struct {
	Type uint16
	Data []byte
}

// Reply is a whole reply; Data is what a READ returned, put together.
type Reply struct {
	Cookie uint64
	Errno  uint32
	Text   string
	Chunks []Chunk
}

// Receive receives one whole reply; read says how much data a simple reply has.
// It cannot tell chunks of interleaved replies apart.
func (c *Client) Receive(read int) Reply {
	c.T.Helper()
	var r Reply
	for {
		h := c.Bytes(4)
		if magic := be.Uint32(h); magic == 0x67446698 && !c.Extended {
			h = c.Bytes(12)
			r.Errno, r.Cookie = be.Uint32(h), be.Uint64(h[4:])
			if r.Errno == 0 && read > 0 {
				r.Chunks = append(r.Chunks, Chunk{1, append(make([]byte, 8), c.Bytes(read)...)})
			}
			return r
		} else if c.Structured && !c.Extended && magic != 0x668e33ef || c.Extended && magic != 0x6e8a278c || !c.Structured {
			c.T.Fatalf("reply magic %#x", magic)
		}
		size := map[bool]int{false: 16, true: 28}[c.Extended]
		h = c.Bytes(size)
		flags, typ := be.Uint16(h), be.Uint16(h[2:])
		r.Cookie = be.Uint64(h[4:])
		n := uint64(be.Uint32(h[12:]))
		if c.Extended {
			n = be.Uint64(h[20:])
		}
		if n > 64<<20 {
			c.T.Fatalf("chunk of %d bytes", n)
		}
		data := c.Bytes(int(n))
		if typ>>15 != 0 {
			r.Errno, r.Text = be.Uint32(data), string(data[6:6+be.Uint16(data[4:])])
		}
		r.Chunks = append(r.Chunks, Chunk{typ, data})
		if flags&1 != 0 {
			return r
		}
	}
}

// Do sends a request and receives its reply.
func (c *Client) Do(flags, typ uint16, off, length uint64, payload []byte) Reply {
	c.T.Helper()
	c.cookie++
	if c.Extended && typ == CmdWrite {
		flags |= FlagPayload
	}
	c.Send(append(c.Request(flags, typ, c.cookie, off, length), payload...))
	read := 0
	if typ == CmdRead {
		read = int(length)
	}
	r := c.Receive(read)
	if r.Cookie != c.cookie {
		c.T.Fatalf("reply to request %d, not to %d", r.Cookie, c.cookie)
	}
	return r
}

// Read reads; every byte must come exactly once.
func (c *Client) Read(off uint64, n int) []byte {
	c.T.Helper()
	r := c.Do(0, CmdRead, off, uint64(n), nil)
	if r.Errno != 0 {
		c.T.Fatalf("READ %d+%d: error %d %s", off, n, r.Errno, r.Text)
	}
	data, err := r.Assemble(c.Structured, off, n)
	if err != nil {
		c.T.Fatalf("READ %d+%d: %v", off, n, err)
	}
	return data
}

// Assemble puts the chunks of a READ together.
func (r Reply) Assemble(structured bool, off uint64, n int) ([]byte, error) {
	if !structured {
		if n == 0 {
			return nil, nil
		}
		return r.Chunks[0].Data[8:], nil
	}
	p := make([]byte, n)
	next := make(map[uint64]uint64) // chunks by their place
	for _, c := range r.Chunks {
		var data []byte
		switch c.Type {
		case 0:
			continue
		case 1:
			data = c.Data[8:]
		case 2:
			data = make([]byte, be.Uint32(c.Data[8:]))
		default:
			return nil, fmt.Errorf("chunk of type %d", c.Type)
		}
		at := be.Uint64(c.Data) - off
		if len(data) == 0 || at > uint64(n) || uint64(len(data)) > uint64(n)-at || next[at] != 0 {
			return nil, fmt.Errorf("chunk of %d bytes at %d", len(data), at)
		}
		copy(p[at:], data)
		next[at] = at + uint64(len(data))
	}
	end, chunks := uint64(0), 0
	for next[end] != 0 {
		end = next[end]
		chunks++
	}
	if end != uint64(n) || chunks != len(next) {
		return nil, errors.New("data is missing, or came twice")
	}
	return p, nil
}

// Must is Do for a request without data in its reply, which must succeed.
func (c *Client) Must(flags, typ uint16, off, length uint64, payload []byte) {
	c.T.Helper()
	if r := c.Do(flags, typ, off, length, payload); r.Errno != 0 {
		c.T.Fatalf("command %d at %d+%d: error %d %s", typ, off, length, r.Errno, r.Text)
	}
}

// Write writes.
func (c *Client) Write(off uint64, p []byte) {
	c.T.Helper()
	c.Must(0, CmdWrite, off, uint64(len(p)), p)
}

// Disc says goodbye and waits for the server to close.
func (c *Client) Disc() {
	c.T.Helper()
	c.Send(c.Request(0, CmdDisc, 0, 0, 0))
	if err := c.Gone(); err != nil {
		c.T.Error(err)
	}
	_ = c.Conn.Close()
}
