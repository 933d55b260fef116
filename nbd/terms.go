package nbd

// terms is what the handshake agreed on; it does not change during transmission.
type terms struct {
	flags      uint16 // transmission flags sent to the client
	structured bool   // structured replies, or extended ones
	extended   bool
	contexts   []metaContext
}

// transmissionFlags derives what is offered from the device and what the client
// has negotiated; nothing is offered that is not kept.
func transmissionFlags(d Device, structured, extended bool, contexts int) uint16 {
	flags := flagHasFlags | flagSendFlush | flagCanMultiConn | flagSendCache
	if structured {
		flags |= flagSendDF
	}
	if extended && contexts > 0 {
		flags |= flagBlockStatusPayload
	}
	if d.ReadOnly() {
		return flags | flagReadOnly
	}
	flags |= flagSendFUA | flagSendTrim | flagSendWriteZeroes
	if _, ok := d.(FastZeroer); ok {
		flags |= flagSendFastZero
	}
	return flags
}

func (t *terms) headerSize() int {
	if t.extended {
		return extendedRequestSize
	}
	return requestSize
}

// drainable is the largest payload that is read and thrown away to keep a
// connection whose request was refused; beyond it the connection ends.
func (t *terms) drainable() uint64 {
	if t.extended {
		return maxPayload // proto.md: beyond the maximum, disconnect
	}
	return 2 * maxPayload
}

// refusal says why a request is not carried out.
type refusal struct {
	code errno
	text string
}

// validate holds every rule of legality for a request, given the device's size
// now. It runs before any memory is taken; what passes it can be executed
// without looking at a length or a flag again.
func (t *terms) validate(r *request, size uint64) (refusal, bool) {
	if code, text := t.validateFlags(r); code != errNone {
		return refusal{code, text}, false
	}
	switch r.typ {
	case cmdDisc:
		return refusal{}, true
	case cmdFlush:
		if r.offset != 0 || r.length != 0 {
			return refusal{errInval, "FLUSH takes no offset and no length"}, false
		}
		return refusal{}, true
	}
	if t.flags&flagReadOnly != 0 && changes(r.typ) {
		return refusal{errPerm, "the export is read-only"}, false
	}
	if code, text := t.validateLength(r); code != errNone {
		return refusal{code, text}, false
	}
	if r.typ == cmdBlockStatus && r.flags&cmdFlagPayloadLen != 0 {
		return refusal{}, true // its range is in the payload: validateRange follows
	}
	return validateRange(r, size)
}

// changes reports whether a command alters the device.
func changes(typ uint16) bool {
	return typ == cmdWrite || typ == cmdTrim || typ == cmdWriteZeroes
}

func erases(typ uint16) bool { return typ == cmdTrim || typ == cmdWriteZeroes }

// validateFlags checks the command and which flags go with it.
func (t *terms) validateFlags(r *request) (errno, string) {
	var allowed uint16
	if t.flags&flagSendFUA != 0 {
		allowed = cmdFlagFUA // proto.md: to be accepted with every command
	}
	switch r.typ {
	case cmdRead:
		if t.structured {
			allowed |= cmdFlagDF
		}
	case cmdWrite:
		if t.extended { // proto.md demands it, but qemu 10 leaves it out
			allowed |= cmdFlagPayloadLen
		}
	case cmdWriteZeroes:
		allowed |= cmdFlagNoHole
		if t.flags&flagSendFastZero != 0 {
			allowed |= cmdFlagFastZero
		}
	case cmdBlockStatus:
		if len(t.contexts) == 0 {
			return errInval, "BLOCK_STATUS without a metadata context"
		}
		allowed |= cmdFlagReqOne
		if t.flags&flagBlockStatusPayload != 0 {
			allowed |= cmdFlagPayloadLen
		}
	case cmdDisc:
		return errNone, ""
	case cmdFlush, cmdTrim, cmdCache:
	default:
		return errInval, "unknown command"
	}
	if r.flags&^allowed != 0 {
		return errInval, "flag not valid for this command"
	}
	return errNone, ""
}

// validateLength checks lengths that are wrong whatever the device's size is.
func (t *terms) validateLength(r *request) (errno, string) {
	switch r.typ {
	case cmdRead:
		if r.length > maxPayload && t.extended {
			return errOverflow, "READ of more than 32 MiB"
		}
		if r.length > maxPayload {
			return errInval, "READ of more than 32 MiB"
		}
	case cmdWrite:
		if r.length > maxPayload {
			return errInval, "WRITE of more than 32 MiB"
		}
	case cmdBlockStatus:
		if r.flags&cmdFlagPayloadLen != 0 {
			if ids := r.length - 8; r.length < 12 || ids%4 != 0 || ids/4 > uint64(len(t.contexts)) {
				return errInval, "BLOCK_STATUS with a payload that is not a length and a list of contexts"
			}
		} else if r.length == 0 {
			return errInval, "BLOCK_STATUS of nothing"
		}
	}
	return errNone, ""
}

// validateRange checks that a request lies within the device. The sum of offset
// and length may not fit 64 bits, so it is never made.
func validateRange(r *request, size uint64) (refusal, bool) {
	if r.offset <= size && r.length <= size-r.offset {
		return refusal{}, true
	}
	if r.typ == cmdWrite || r.typ == cmdWriteZeroes {
		return refusal{errNoSpace, "beyond the end of the export"}, false
	}
	return refusal{errInval, "beyond the end of the export"}, false
}

// effect reads the payload of a BLOCK_STATUS: the length meant, and the ids of
// the contexts asked for as a bit each.
func (t *terms) effect(r *request, p []byte) (contexts uint64, why refusal, ok bool) {
	r.length = be.Uint64(p)
	if r.length == 0 {
		return 0, refusal{errInval, "BLOCK_STATUS of nothing"}, false
	}
	for p = p[8:]; len(p) >= 4; p = p[4:] {
		id := be.Uint32(p)
		if id == 0 || int64(id) > int64(len(t.contexts)) || contexts&(1<<(id-1)) != 0 {
			return 0, refusal{errInval, "context that was not selected, or named twice"}, false
		}
		contexts |= 1 << (id - 1)
	}
	return contexts, refusal{}, true
}
