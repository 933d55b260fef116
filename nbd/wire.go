package nbd

import (
	"encoding/binary"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Magic numbers. go-nbd's names are used where it has them.
const (
	magicInit            = protocol.NEGOTIATION_MAGIC_OLDSTYLE
	magicOption          = protocol.NEGOTIATION_MAGIC_OPTION
	magicOptionReply     = protocol.NEGOTIATION_MAGIC_REPLY
	magicRequest         = protocol.TRANSMISSION_MAGIC_REQUEST
	magicSimpleReply     = protocol.TRANSMISSION_MAGIC_REPLY
	magicStructuredReply = uint32(0x668e33ef)
	magicExtendedRequest = uint32(0x21e41c71)
	magicExtendedReply   = uint32(0x6e8a278c)
)

// Handshake and client flags.
const (
	flagFixedNewstyle = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	flagNoZeroes      = uint16(1 << 1)

	clientFixedNewstyle = uint32(1 << 0)
	clientNoZeroes      = uint32(1 << 1)
)

// Options of the handshake.
const (
	optExportName      = uint32(1)
	optAbort           = protocol.NEGOTIATION_ID_OPTION_ABORT
	optList            = protocol.NEGOTIATION_ID_OPTION_LIST
	optStartTLS        = uint32(5)
	optInfo            = protocol.NEGOTIATION_ID_OPTION_INFO
	optGo              = protocol.NEGOTIATION_ID_OPTION_GO
	optStructuredReply = uint32(8)
	optListMetaContext = uint32(9)
	optSetMetaContext  = uint32(10)
	optExtendedHeaders = uint32(11)
)

// Replies to options.
const (
	repAck               = protocol.NEGOTIATION_TYPE_REPLY_ACK
	repServer            = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	repInfo              = protocol.NEGOTIATION_TYPE_REPLY_INFO
	repMetaContext       = uint32(4)
	repErrUnsup          = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	repErrPolicy         = uint32(1<<31 | 2)
	repErrInvalid        = uint32(1<<31 | 3)
	repErrTLSRequired    = uint32(1<<31 | 5)
	repErrUnknown        = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	repErrShutdown       = uint32(1<<31 | 7)
	repErrTooBig         = uint32(1<<31 | 9)
	repErrExtHeaderReqd  = uint32(1<<31 | 10)
	repErrorBit          = uint32(1 << 31)
	optionHeaderSize     = 16
	optionReplyHeader    = 20
	exportNameZeroes     = 124
	infoExport           = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	infoName             = protocol.NEGOTIATION_TYPE_INFO_NAME
	infoDescription      = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	infoBlockSize        = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
	maxStringBytes       = 4096 // proto.md: every string
	minimumBlock         = 1
	preferredBlock       = 4096
	maxPayload           = 32 << 20
	maxEffectUnextended  = 1<<32 - 1
	clientFlagsSize      = 4
	greetingSize         = 18
	requestSize          = 28
	extendedRequestSize  = 32
	simpleReplySize      = 16
	structuredReplySize  = 20
	extendedReplySize    = 32
	maxReplyHeader       = extendedReplySize + 8 // and the offset of OFFSET_DATA
	maxErrorText         = 256
	maxShortReply        = 512     // of any reply without data
	maxBlockStatusExtent = 1 << 17 // descriptors in one chunk; proto.md allows 1<<20
)

// Transmission flags.
const (
	flagHasFlags           = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS
	flagReadOnly           = uint16(1 << 1)
	flagSendFlush          = uint16(1 << 2)
	flagSendFUA            = uint16(1 << 3)
	flagSendTrim           = uint16(1 << 5)
	flagSendWriteZeroes    = uint16(1 << 6)
	flagSendDF             = uint16(1 << 7)
	flagCanMultiConn       = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	flagSendCache          = uint16(1 << 10)
	flagSendFastZero       = uint16(1 << 11)
	flagBlockStatusPayload = uint16(1 << 12)
)

// Requests.
const (
	cmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	cmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	cmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	cmdFlush       = uint16(3)
	cmdTrim        = uint16(4)
	cmdCache       = uint16(5)
	cmdWriteZeroes = uint16(6)
	cmdBlockStatus = uint16(7)
)

// Flags of requests.
const (
	cmdFlagFUA        = uint16(1 << 0)
	cmdFlagNoHole     = uint16(1 << 1)
	cmdFlagDF         = uint16(1 << 2)
	cmdFlagReqOne     = uint16(1 << 3)
	cmdFlagFastZero   = uint16(1 << 4)
	cmdFlagPayloadLen = uint16(1 << 5)
)

// Chunks of structured and extended replies.
const (
	replyFlagDone       = uint16(1 << 0)
	chunkNone           = uint16(0)
	chunkOffsetData     = uint16(1)
	chunkOffsetHole     = uint16(2)
	chunkBlockStatus    = uint16(5)
	chunkBlockStatusExt = uint16(6)
	chunkError          = uint16(1<<15 | 1)
	chunkErrorOffset    = uint16(1<<15 | 2)
)

// State flags of base:allocation, and of the two contexts that report changes.
const (
	stateHole  = uint32(1 << 0)
	stateZero  = uint32(1 << 1)
	stateDirty = uint32(1 << 0)
)

var be = binary.BigEndian

// request is one request header, compact or extended.
type request struct {
	flags, typ     uint16
	cookie, offset uint64
	length         uint64 // of the effect, or of the payload where there is one
}

// parseRequest decodes a header; ok is false when the magic is not the one
// that was agreed on, after which nothing in the stream can be trusted.
func parseRequest(b []byte, extended bool) (r request, ok bool) {
	r.flags, r.typ = be.Uint16(b[4:]), be.Uint16(b[6:])
	r.cookie, r.offset = be.Uint64(b[8:]), be.Uint64(b[16:])
	if extended {
		r.length = be.Uint64(b[24:extendedRequestSize])
		return r, be.Uint32(b) == magicExtendedRequest
	}
	r.length = uint64(be.Uint32(b[24:requestSize]))
	return r, be.Uint32(b) == magicRequest
}

// payloadLen is how many bytes follow the header.
func (r *request) payloadLen(extended bool) uint64 {
	if r.typ == cmdWrite || extended && r.flags&cmdFlagPayloadLen != 0 {
		return r.length
	}
	return 0
}

// putOptionReply appends one reply of the handshake to b.
func putOptionReply(b []byte, option, typ uint32, data []byte) []byte {
	b = be.AppendUint64(b, magicOptionReply)
	b = be.AppendUint32(b, option)
	b = be.AppendUint32(b, typ)
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}
