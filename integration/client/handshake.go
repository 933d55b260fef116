package client

import (
	"encoding/binary"
	"fmt"
	"io"
)

const (
	serverMagic = 0x4e42444d41474943 // "NBDMAGIC"
	optionMagic = 0x49484156454f5054 // "IHAVEOPT"
	answerMagic = 0x3e889045565a9

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optGo = 7

	repAck  = 1
	repInfo = 3
	repErr  = 1 << 31

	infoExport = 0
)

// An OptionError is the server's refusal of an option.
type OptionError struct {
	Code    uint32 // NBD_REP_ERR_*
	Message string
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("option refused: code %d, %q", e.Code&^uint32(repErr), e.Message)
}

func (c *Conn) handshake(export string) error {
	var hello [18]byte
	if _, err := io.ReadFull(c.conn, hello[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(hello[0:]) != serverMagic || binary.BigEndian.Uint64(hello[8:]) != optionMagic {
		return fmt.Errorf("greeting % x is not NBD", hello)
	}
	flags := binary.BigEndian.Uint16(hello[16:])
	if flags&flagFixedNewstyle == 0 {
		return fmt.Errorf("server flags %#x are not fixed newstyle", flags)
	}

	message := binary.BigEndian.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes)))
	message = binary.BigEndian.AppendUint64(message, optionMagic)
	message = binary.BigEndian.AppendUint32(message, optGo)
	message = binary.BigEndian.AppendUint32(message, uint32(4+len(export)+2))
	message = binary.BigEndian.AppendUint32(message, uint32(len(export)))
	message = append(message, export...)
	message = binary.BigEndian.AppendUint16(message, 0)
	if _, err := c.conn.Write(message); err != nil {
		return err
	}
	return c.answers()
}

// answers reads the replies to GO up to its acknowledgement.
func (c *Conn) answers() error {
	seen := false
	for {
		var head [20]byte
		if _, err := io.ReadFull(c.conn, head[:]); err != nil {
			return err
		}
		if magic := binary.BigEndian.Uint64(head[0:]); magic != answerMagic {
			return fmt.Errorf("option reply magic %#x", magic)
		}
		kind, n := binary.BigEndian.Uint32(head[12:]), binary.BigEndian.Uint32(head[16:])
		if n > 64<<10 {
			return fmt.Errorf("option reply of %d bytes", n)
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(c.conn, body); err != nil {
			return err
		}
		switch {
		case kind == repAck && seen:
			return nil
		case kind == repAck:
			return fmt.Errorf("GO acknowledged without NBD_INFO_EXPORT")
		case kind == repInfo && len(body) == 12 && binary.BigEndian.Uint16(body) == infoExport:
			c.Size = int64(binary.BigEndian.Uint64(body[2:]))
			c.Flags = binary.BigEndian.Uint16(body[10:])
			seen = true
		case kind&repErr != 0:
			return &OptionError{Code: kind, Message: string(body)}
		}
	}
}
