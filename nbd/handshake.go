package nbd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
)

// Limits of a handshake. They are far above what any client sends, and far
// below what could hurt.
const (
	maxOptions      = 4096
	maxOptionBytes  = 64 << 10 // of one option; a larger one is drained and refused
	maxOptionsBytes = 1 << 20  // of all options of one connection
)

// errHandshakeOver ends a handshake that ended as it may: by ABORT, by a refused
// EXPORT_NAME, or by the client leaving between options.
var errHandshakeOver = errors.New("handshake over")

// agreed is the result of a handshake that reached transmission.
type agreed struct {
	device Device
	terms  terms
}

// handshake talks to one client until transmission begins. It reads exactly
// what belongs to each option, so that nothing a client sent before STARTTLS is
// ever taken for something that came through TLS.
func (c *conn) handshake(n *negotiation) (agreed, error) {
	var greeting []byte
	greeting = be.AppendUint64(greeting, magicInit)
	greeting = be.AppendUint64(greeting, magicOption)
	greeting = be.AppendUint16(greeting, flagFixedNewstyle|flagNoZeroes)
	if _, err := c.nc.Write(greeting); err != nil {
		return agreed{}, err
	}
	var word [clientFlagsSize]byte
	if _, err := io.ReadFull(c.nc, word[:]); err != nil {
		return agreed{}, err
	}
	if !n.clientFlags(be.Uint32(word[:])) {
		return agreed{}, fmt.Errorf("unknown client flags %#x", be.Uint32(word[:]))
	}
	budget := maxOptionsBytes
	for range maxOptions {
		option, data, tooBig, err := readOption(c.nc, &budget)
		if err != nil {
			return agreed{}, err
		}
		var out outcome
		if tooBig {
			out = n.tooBig(option)
		} else {
			out = n.option(option, data)
		}
		done, a, err := c.carryOut(n, option, out)
		if done || err != nil {
			return a, err
		}
	}
	return agreed{}, fmt.Errorf("more than %d options", maxOptions)
}

// readOption reads one option. One that is larger than allowed is drained in
// small pieces while the connection's budget lasts, and refused.
func readOption(r io.Reader, budget *int) (option uint32, data []byte, tooBig bool, err error) {
	var h [optionHeaderSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		if err == io.EOF {
			err = errHandshakeOver
		}
		return 0, nil, false, err
	}
	if magic := be.Uint64(h[:]); magic != magicOption {
		return 0, nil, false, fmt.Errorf("bad magic %#x before an option", magic)
	}
	option = be.Uint32(h[8:])
	length := be.Uint32(h[12:])
	if uint64(length)+optionHeaderSize > uint64(*budget) {
		return 0, nil, false, fmt.Errorf("options of more than %d bytes", maxOptionsBytes)
	}
	*budget -= int(length) + optionHeaderSize
	if length > maxOptionBytes {
		_, err := io.CopyN(io.Discard, r, int64(length))
		return option, nil, true, err
	}
	data = make([]byte, length)
	_, err = io.ReadFull(r, data)
	return option, data, false, err
}

// carryOut sends the answer to an option and does what follows it. The device
// of an outcome belongs to the caller only when it is returned without error.
func (c *conn) carryOut(n *negotiation, option uint32, out outcome) (done bool, a agreed, err error) {
	b := out.raw
	for _, r := range out.replies {
		b = putOptionReply(b, option, r.typ, r.data)
	}
	if out.next == stepTransmit {
		c.opened(out.name, out.device)
	}
	if len(b) > 0 {
		if _, err = c.nc.Write(b); err != nil {
			if out.device != nil {
				_ = out.device.Close()
			}
			return true, agreed{}, err
		}
	}
	switch out.next {
	case stepClose:
		return true, agreed{}, errHandshakeOver
	case stepTLS:
		return false, agreed{}, c.startTLS(n)
	case stepTransmit:
		t := terms{structured: n.structured, extended: n.extended, contexts: n.contexts}
		t.flags = transmissionFlags(out.device, t.structured, t.extended, len(t.contexts))
		return true, agreed{out.device, t}, nil
	}
	return false, agreed{}, nil
}

// startTLS upgrades the connection, after the client was told so.
func (c *conn) startTLS(n *negotiation) error {
	t := tls.Server(c.nc, c.srv.opts.TLS.Config())
	if err := t.HandshakeContext(c.ctx); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	name := ""
	if certs := t.ConnectionState().VerifiedChains; len(certs) > 0 {
		name = certs[0][0].Subject.CommonName
	}
	n.client = c.secured(t, name)
	return nil
}
