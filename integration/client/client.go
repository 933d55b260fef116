// Package client is a small NBD client for the black box tests: fixed newstyle, GO, simple replies, any number of
// requests in flight. It is written from the protocol text and shares no code with the server, so that both cannot
// be wrong in the same way.
package client

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Transmission flags of an export.
const (
	FlagReadOnly  = 1 << 1
	FlagFlush     = 1 << 2
	FlagFUA       = 1 << 3
	FlagTrim      = 1 << 5
	FlagZeroes    = 1 << 6
	FlagMultiConn = 1 << 8
)

const (
	requestMagic = 0x25609513
	replyMagic   = 0x67446698

	cmdRead  = 0
	cmdWrite = 1
	cmdDisc  = 2
	cmdFlush = 3
	cmdTrim  = 4
	cmdZero  = 6

	cmdFlagFUA    = 1 << 0
	cmdFlagNoHole = 1 << 1

	requestSize = 28
	replySize   = 16
)

// ErrClosed is what calls return whose connection ended before their reply came.
var ErrClosed = errors.New("nbd connection is closed")

// Conn is one connection to one export. All methods may be called concurrently.
type Conn struct {
	Size  int64
	Flags uint16

	conn    net.Conn
	writing sync.Mutex

	mu      sync.Mutex
	next    uint64
	pending map[uint64]*call
	err     error
}

type call struct {
	into []byte // READ only
	done chan error
}

// Dial connects to an export: network "unix" or "tcp".
func Dial(network, address, export string) (*Conn, error) {
	raw, err := net.DialTimeout(network, address, 10*time.Second)
	if err != nil {
		return nil, err
	}
	c := &Conn{conn: raw, pending: map[uint64]*call{}}
	raw.SetDeadline(time.Now().Add(30 * time.Second))
	if err := c.handshake(export); err != nil {
		raw.Close()
		return nil, fmt.Errorf("nbd handshake for %q at %s: %w", export, address, err)
	}
	raw.SetDeadline(time.Time{})
	go c.receive()
	return c, nil
}

// Read fills p from the export at off.
func (c *Conn) Read(p []byte, off int64) error {
	return c.do(cmdRead, 0, off, len(p), nil, p)
}

// Write writes p at off; with fua it is durable when Write returns.
func (c *Conn) Write(p []byte, off int64, fua bool) error {
	return c.do(cmdWrite, fuaFlag(fua), off, len(p), p, nil)
}

// Flush makes every write that was answered before it durable.
func (c *Conn) Flush() error {
	return c.do(cmdFlush, 0, 0, 0, nil, nil)
}

// Trim gives a range back.
func (c *Conn) Trim(off int64, n int, fua bool) error {
	return c.do(cmdTrim, fuaFlag(fua), off, n, nil, nil)
}

// Zero writes zeroes; noHole asks for allocated ones.
func (c *Conn) Zero(off int64, n int, noHole, fua bool) error {
	flags := fuaFlag(fua)
	if noHole {
		flags |= cmdFlagNoHole
	}
	return c.do(cmdZero, flags, off, n, nil, nil)
}

// Disconnect says goodbye and closes.
func (c *Conn) Disconnect() error {
	c.writing.Lock()
	_, err := c.conn.Write(request(cmdDisc, 0, 0, 0, 0))
	c.writing.Unlock()
	if closing := c.Close(); !errors.Is(closing, net.ErrClosed) { // the server was quicker, and receive closed it
		err = errors.Join(err, closing)
	}
	return err
}

// Close drops the connection without a word, as a killed client does.
func (c *Conn) Close() error {
	return c.conn.Close()
}

func fuaFlag(fua bool) uint16 {
	if fua {
		return cmdFlagFUA
	}
	return 0
}

func request(command, flags uint16, handle uint64, off int64, n int) []byte {
	b := make([]byte, requestSize)
	binary.BigEndian.PutUint32(b[0:], requestMagic)
	binary.BigEndian.PutUint16(b[4:], flags)
	binary.BigEndian.PutUint16(b[6:], command)
	binary.BigEndian.PutUint64(b[8:], handle)
	binary.BigEndian.PutUint64(b[16:], uint64(off))
	binary.BigEndian.PutUint32(b[24:], uint32(n))
	return b
}

func (c *Conn) do(command, flags uint16, off int64, n int, payload, into []byte) error {
	pending := &call{into: into, done: make(chan error, 1)}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return c.err
	}
	c.next++
	handle := c.next
	c.pending[handle] = pending
	c.mu.Unlock()

	c.writing.Lock()
	buffers := net.Buffers{request(command, flags, handle, off, n), payload}
	_, err := buffers.WriteTo(c.conn)
	c.writing.Unlock()
	if err != nil {
		c.fail(err)
	}
	return <-pending.done
}

// receive hands replies to their callers until the connection ends.
func (c *Conn) receive() {
	var head [replySize]byte
	for {
		if _, err := io.ReadFull(c.conn, head[:]); err != nil {
			c.fail(err)
			return
		}
		if magic := binary.BigEndian.Uint32(head[0:]); magic != replyMagic {
			c.fail(fmt.Errorf("reply magic %#x", magic))
			return
		}
		code, handle := binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint64(head[8:])
		c.mu.Lock()
		pending := c.pending[handle]
		delete(c.pending, handle)
		c.mu.Unlock()
		if pending == nil {
			c.fail(fmt.Errorf("reply to an unknown request %d", handle))
			return
		}
		if code != 0 {
			pending.done <- syscall.Errno(code)
			continue
		}
		if _, err := io.ReadFull(c.conn, pending.into); err != nil {
			pending.done <- fmt.Errorf("%w: %v", ErrClosed, err)
			c.fail(err)
			return
		}
		pending.done <- nil
	}
}

func (c *Conn) fail(err error) {
	c.conn.Close()
	c.mu.Lock()
	if c.err == nil {
		c.err = fmt.Errorf("%w: %v", ErrClosed, err) // the cause is told, not wrapped: an errno is always the server's reply
	}
	err = c.err
	calls := c.pending
	c.pending = map[uint64]*call{}
	c.mu.Unlock()
	for _, pending := range calls {
		pending.done <- err
	}
}
