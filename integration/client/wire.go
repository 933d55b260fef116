package client

import "encoding/binary"

// Numbers of the protocol that only scripted clients use.
const (
	OptExportName     = 1
	OptAbort          = 2
	OptList           = 3
	OptPeekExport     = 4
	OptStartTLS       = 5
	OptInfo           = 6
	OptGo             = 7
	OptStructured     = 8
	OptListMeta       = 9
	OptSetMeta        = 10
	OptExtended       = 11
	RepAck            = 1
	RepServer         = 2
	RepInfo           = 3
	RepMeta           = 4
	RepErrUnsup       = 1<<31 | 1
	RepErrPolicy      = 1<<31 | 2
	RepErrInvalid     = 1<<31 | 3
	RepErrTLSRequired = 1<<31 | 5
	RepErrUnknown     = 1<<31 | 6
	RepErrShutdown    = 1<<31 | 7
	RepErrTooBig      = 1<<31 | 9

	CmdRead        = 0
	CmdWrite       = 1
	CmdDisc        = 2
	CmdFlush       = 3
	CmdTrim        = 4
	CmdCache       = 5
	CmdZero        = 6
	CmdBlockStatus = 7

	CmdFUA        = 1 << 0
	CmdNoHole     = 1 << 1
	CmdDF         = 1 << 2
	CmdReqOne     = 1 << 3
	CmdFastZero   = 1 << 4
	CmdPayloadLen = 1 << 5

	ChunkNone           = 0
	ChunkData           = 1
	ChunkHole           = 2
	ChunkBlockStatus    = 5
	ChunkBlockStatusExt = 6
	ChunkError          = 1<<15 | 1
	ChunkErrorOffset    = 1<<15 | 2

	structuredMagic      = 0x668e33ef
	extendedRequestMagic = 0x21e41c71
	extendedReplyMagic   = 0x6e8a278c

	chunkDone = 1 << 0
)

var be = binary.BigEndian

// Option is one option as it is sent.
func Option(code uint32, data []byte) []byte {
	return append(OptionHeader(code, uint32(len(data))), data...)
}

// OptionHeader announces an option of n bytes, which need not be the truth.
func OptionHeader(code, n uint32) []byte {
	b := be.AppendUint64(nil, optionMagic)
	b = be.AppendUint32(b, code)
	return be.AppendUint32(b, n)
}

// String is a text with its 32-bit length before it.
func String(s string) []byte { return append(be.AppendUint32(nil, uint32(len(s))), s...) }

// GoData is the payload of GO and INFO.
func GoData(export string, infos ...uint16) []byte {
	b := be.AppendUint16(String(export), uint16(len(infos)))
	for _, info := range infos {
		b = be.AppendUint16(b, info)
	}
	return b
}

// MetaData is the payload of LIST_META_CONTEXT and SET_META_CONTEXT.
func MetaData(export string, queries ...string) []byte {
	b := be.AppendUint32(String(export), uint32(len(queries)))
	for _, query := range queries {
		b = append(b, String(query)...)
	}
	return b
}

// Request is a request header as it is sent: compact, or extended with a 64-bit length.
func Request(extended bool, command, flags uint16, cookie, off, n uint64) []byte {
	magic := uint32(requestMagic)
	if extended {
		magic = extendedRequestMagic
	}
	b := be.AppendUint32(nil, magic)
	b = be.AppendUint16(b, flags)
	b = be.AppendUint16(b, command)
	b = be.AppendUint64(b, cookie)
	b = be.AppendUint64(b, off)
	if extended {
		return be.AppendUint64(b, n)
	}
	return be.AppendUint32(b, uint32(n))
}
