package client

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// scriptTimeout is how long a script waits for anything.
const scriptTimeout = 20 * time.Second

// Script is a connection whose every byte is the test's own, right or wrong.
type Script struct {
	net.Conn
	Size                 int64
	Flags                uint16 // transmission flags
	Structured, Extended bool
	cookie               uint64
}

// Connect connects and says nothing. `from` is an IP address of this host to come from, or "".
func Connect(network, address, from string) (*Script, error) {
	dialer := net.Dialer{Timeout: scriptTimeout}
	if from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	conn, err := dialer.Dial(network, address)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(scriptTimeout))
	return &Script{Conn: conn}, nil
}

// Greeted connects, takes the greeting and sends the client flags of fixed newstyle without zeroes.
func Greeted(network, address string) (*Script, error) {
	s, err := Connect(network, address, "")
	if err != nil {
		return nil, err
	}
	if err := s.Greet(flagFixedNewstyle | flagNoZeroes); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Greet takes the greeting and sends client flags.
func (s *Script) Greet(flags uint32) error {
	var hello [18]byte
	if _, err := io.ReadFull(s, hello[:]); err != nil {
		return err
	}
	if be.Uint64(hello[0:]) != serverMagic || be.Uint64(hello[8:]) != optionMagic || be.Uint16(hello[16:]) != flagFixedNewstyle|flagNoZeroes {
		return fmt.Errorf("greeting % x is not NBD", hello)
	}
	_, err := s.Write(be.AppendUint32(nil, flags))
	return err
}

// Terms are what Attach negotiates.
type Terms struct {
	Structured, Extended bool
	Contexts             []string // of SET_META_CONTEXT
}

// Attach goes on to transmission after the greeting. The ids of the contexts are 1, 2, … in the order of the server.
func (s *Script) Attach(export string, terms Terms) error {
	option := uint32(0)
	switch {
	case terms.Extended:
		option = OptExtended
	case terms.Structured:
		option = OptStructured
	}
	if option != 0 {
		if err := s.Ack(option, nil); err != nil {
			return err
		}
	}
	s.Structured, s.Extended = terms.Structured || terms.Extended, terms.Extended
	if len(terms.Contexts) > 0 {
		if err := s.Ack(OptSetMeta, MetaData(export, terms.Contexts...)); err != nil {
			return err
		}
	}
	return s.Ack(OptGo, GoData(export))
}

// Ack sends an option that must be acknowledged.
func (s *Script) Ack(option uint32, data []byte) error {
	kind, text, err := s.Ask(option, data)
	if err == nil && kind != RepAck {
		err = &OptionError{Code: kind, Message: text}
	}
	return err
}

// StartTLS turns the connection into TLS. What was agreed on before is void.
func (s *Script) StartTLS(config *tls.Config) error {
	if err := s.Ack(OptStartTLS, nil); err != nil {
		return err
	}
	conn := tls.Client(s.Conn, config)
	if err := conn.Handshake(); err != nil {
		return err
	}
	s.Conn = conn
	return nil
}

// Ask sends an option and returns the last reply to it.
func (s *Script) Ask(option uint32, data []byte) (kind uint32, text string, err error) {
	if _, err := s.Write(Option(option, data)); err != nil {
		return 0, "", err
	}
	for {
		to, kind, data, err := s.Answer()
		if err != nil {
			return 0, "", err
		}
		if to != option {
			return 0, "", fmt.Errorf("reply to option %d, expected one to %d", to, option)
		}
		if kind == RepAck || kind&repErr != 0 {
			return kind, string(data), nil
		}
		if kind == RepInfo && len(data) == 12 && be.Uint16(data) == infoExport {
			s.Size, s.Flags = int64(be.Uint64(data[2:])), be.Uint16(data[10:])
		}
	}
}

// Answer reads one reply to an option.
func (s *Script) Answer() (option, kind uint32, data []byte, err error) {
	var head [20]byte
	if _, err := io.ReadFull(s, head[:]); err != nil {
		return 0, 0, nil, err
	}
	if magic := be.Uint64(head[0:]); magic != answerMagic {
		return 0, 0, nil, fmt.Errorf("option reply magic %#x", magic)
	}
	n := be.Uint32(head[16:])
	if n > 64<<10 {
		return 0, 0, nil, fmt.Errorf("option reply of %d bytes", n)
	}
	data = make([]byte, n)
	_, err = io.ReadFull(s, data)
	return be.Uint32(head[8:]), be.Uint32(head[12:]), data, err
}

// Send sends a request, a payload behind it, with the connection's own kind of header and the next cookie.
func (s *Script) Send(command, flags uint16, off, n uint64, payload []byte) (cookie uint64, err error) {
	s.cookie++
	_, err = s.Write(append(Request(s.Extended, command, flags, s.cookie, off, n), payload...))
	return s.cookie, err
}

// Chunk is a part of a structured or extended reply.
type Chunk struct {
	Type uint16
	Data []byte
}

// Reply is the whole answer to one request.
type Reply struct {
	Cookie uint64
	Errno  uint32
	Text   string // of a structured error
	Chunks []Chunk
	Data   []byte // of a simple reply to READ
}

// Do sends a request and reads its reply; nothing else may be in flight. The reply to a READ has n bytes.
func (s *Script) Do(command, flags uint16, off, n uint64, payload []byte) (Reply, error) {
	cookie, err := s.Send(command, flags, off, n, payload)
	if err != nil {
		return Reply{}, err
	}
	size := uint64(0)
	if command == CmdRead {
		size = n
	}
	r, err := s.Reply(int(size))
	if err == nil && r.Cookie != cookie {
		err = fmt.Errorf("reply to request %d, expected one to %d", r.Cookie, cookie)
	}
	return r, err
}

// Reply reads one reply; if it is a simple one without an error, n bytes of data belong to it. Chunks of other requests
// in between are an error: a script that has several requests in flight reads with Chunk.
func (s *Script) Reply(n int) (Reply, error) {
	var r Reply
	for first := true; ; first = false {
		simple, flags, cookie, chunk, err := s.Chunk()
		if err != nil {
			return r, err
		}
		if !first && (cookie != r.Cookie || simple) {
			return r, fmt.Errorf("a reply to request %d amid the one to %d", cookie, r.Cookie)
		}
		r.Cookie = cookie
		if simple {
			if r.Errno = be.Uint32(chunk.Data); r.Errno == 0 && n > 0 {
				r.Data = make([]byte, n)
				_, err = io.ReadFull(s, r.Data)
			}
			return r, err
		}
		if chunk.Type&(1<<15) != 0 {
			if len(chunk.Data) < 6 || len(chunk.Data) < 6+int(be.Uint16(chunk.Data[4:])) {
				return r, fmt.Errorf("error chunk of %d bytes", len(chunk.Data))
			}
			r.Errno = be.Uint32(chunk.Data)
			r.Text = string(chunk.Data[6 : 6+be.Uint16(chunk.Data[4:])])
			if r.Errno == 0 {
				return r, errors.New("error chunk without an error")
			}
		} else {
			r.Chunks = append(r.Chunks, chunk)
		}
		if flags&chunkDone != 0 {
			return r, nil
		}
	}
}

// Chunk reads the next simple reply (its error is then the data) or chunk.
func (s *Script) Chunk() (simple bool, flags uint16, cookie uint64, c Chunk, err error) {
	var magic [4]byte
	if _, err := io.ReadFull(s, magic[:]); err != nil {
		return false, 0, 0, c, err
	}
	var head []byte
	switch m := be.Uint32(magic[:]); {
	case m == replyMagic && !s.Extended:
		head = make([]byte, 12)
	case m == structuredMagic && s.Structured && !s.Extended:
		head = make([]byte, 16)
	case m == extendedReplyMagic && s.Extended:
		head = make([]byte, 28)
	default:
		return false, 0, 0, c, fmt.Errorf("reply magic %#x", m)
	}
	if _, err := io.ReadFull(s, head); err != nil {
		return false, 0, 0, c, err
	}
	cookie = be.Uint64(head[4:])
	var n uint64
	switch len(head) {
	case 12:
		return true, 0, cookie, Chunk{Data: head[:4]}, nil
	case 16:
		n = uint64(be.Uint32(head[12:]))
	default:
		n = be.Uint64(head[20:])
	}
	if n > 34<<20 {
		return false, 0, 0, c, fmt.Errorf("chunk of %d bytes", n)
	}
	c = Chunk{Type: be.Uint16(head[2:]), Data: make([]byte, n)}
	_, err = io.ReadFull(s, c.Data)
	return false, be.Uint16(head[0:]), cookie, c, err
}

// Bytes puts the data of a reply to a READ of n bytes at off together and says whether every byte came exactly once.
func (r Reply) Bytes(off, n uint64) ([]byte, error) {
	if r.Errno != 0 {
		return nil, fmt.Errorf("error %d %q", r.Errno, r.Text)
	}
	if r.Data != nil {
		return r.Data, nil
	}
	p, seen := make([]byte, n), make([]bool, n)
	for _, c := range r.Chunks {
		var from, count uint64
		var data []byte
		switch {
		case c.Type == ChunkData && len(c.Data) > 8:
			from, data = be.Uint64(c.Data), c.Data[8:]
			count = uint64(len(data))
		case c.Type == ChunkHole && len(c.Data) == 12:
			from, count = be.Uint64(c.Data), uint64(be.Uint32(c.Data[8:]))
		case c.Type == ChunkNone && len(c.Data) == 0:
			continue
		default:
			return nil, fmt.Errorf("chunk of type %d and %d bytes in the reply to a READ", c.Type, len(c.Data))
		}
		if from < off || count == 0 || from-off > n || count > n-(from-off) {
			return nil, fmt.Errorf("chunk of %d+%d in the reply to a READ of %d+%d", from, count, off, n)
		}
		copy(p[from-off:], data)
		for i := from - off; i < from-off+count; i++ {
			if seen[i] {
				return nil, fmt.Errorf("byte %d came twice", off+i)
			}
			seen[i] = true
		}
	}
	for i, s := range seen {
		if !s {
			return nil, fmt.Errorf("byte %d did not come", off+uint64(i))
		}
	}
	return p, nil
}

// Extent is one descriptor of a reply to BLOCK_STATUS.
type Extent struct {
	Length, State uint64
}

// Extents are the descriptors for one context.
func (r Reply) Extents(id uint32) ([]Extent, error) {
	if r.Errno != 0 {
		return nil, fmt.Errorf("error %d %q", r.Errno, r.Text)
	}
	for _, c := range r.Chunks {
		if len(c.Data) < 4 || be.Uint32(c.Data) != id {
			continue
		}
		var list []Extent
		switch {
		case c.Type == ChunkBlockStatus && len(c.Data)%8 == 4:
			for p := c.Data[4:]; len(p) > 0; p = p[8:] {
				list = append(list, Extent{uint64(be.Uint32(p)), uint64(be.Uint32(p[4:]))})
			}
		case c.Type == ChunkBlockStatusExt && len(c.Data)%16 == 8 && int(be.Uint32(c.Data[4:])) == len(c.Data)/16:
			for p := c.Data[8:]; len(p) > 0; p = p[16:] {
				list = append(list, Extent{be.Uint64(p), be.Uint64(p[8:])})
			}
		default:
			return nil, fmt.Errorf("chunk of type %d and %d bytes in the reply to BLOCK_STATUS", c.Type, len(c.Data))
		}
		return list, nil
	}
	return nil, fmt.Errorf("no chunk for context %d", id)
}

// Ended waits for the end of the connection and returns how many bytes came before it. It is an error if it does not end
// within `within`.
func (s *Script) Ended(within time.Duration) (int64, error) {
	s.SetReadDeadline(time.Now().Add(within))
	n, err := io.Copy(io.Discard, s)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return n, fmt.Errorf("the connection is still open after %v", within)
	}
	return n, nil // an end of the stream, or a reset
}

// Reset ends the connection by a RST, with whatever is still in the buffers thrown away.
func (s *Script) Reset() {
	if tcp, ok := s.Conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	s.Close()
}
