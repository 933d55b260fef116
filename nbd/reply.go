package nbd

// batch collects replies until they are sent.
type batch struct {
	buf   []byte
	n     int
	wrote bool                         // an acknowledgement of something written is among them
	from  *[outputSize + pageSize]byte // where buf is from, when from the pool
}

// room returns the next n bytes to be filled; the caller has made sure that they
// are there.
func (b *batch) room(n int) []byte {
	if b.buf == nil {
		b.from = outputs.Get().(*[outputSize + pageSize]byte)
		b.buf = b.from[:]
	}
	p := b.buf[b.n : b.n+n : b.n+n]
	b.n += n
	return p
}

func (b *batch) fits(n int) bool { return b.n+n <= outputSize+pageSize }

// take returns what was collected and begins anew; it stays valid until room.
func (b *batch) take() []byte {
	p := b.buf[:b.n]
	b.n = 0
	return p
}

func (b *batch) free() {
	if b.from != nil {
		outputs.Put(b.from)
	}
	*b = batch{}
}

// putChunk writes the header of a chunk with n bytes of payload behind it, and
// returns its size.
func (t *terms) putChunk(p []byte, r *request, flags, typ uint16, n int) int {
	if t.extended {
		be.PutUint32(p, magicExtendedReply)
		be.PutUint16(p[4:], flags)
		be.PutUint16(p[6:], typ)
		be.PutUint64(p[8:], r.cookie)
		be.PutUint64(p[16:], r.offset)
		be.PutUint64(p[24:], uint64(n))
		return extendedReplySize
	}
	be.PutUint32(p, magicStructuredReply)
	be.PutUint16(p[4:], flags)
	be.PutUint16(p[6:], typ)
	be.PutUint64(p[8:], r.cookie)
	be.PutUint32(p[16:], uint32(n))
	return structuredReplySize
}

func putSimple(p []byte, r *request, code errno) int {
	be.PutUint32(p, magicSimpleReply)
	be.PutUint32(p[4:], uint32(code))
	be.PutUint64(p[8:], r.cookie)
	return simpleReplySize
}

// chunkHeader is the size of a chunk's header.
func (t *terms) chunkHeader() int {
	if t.extended {
		return extendedReplySize
	}
	return structuredReplySize
}

// dataHeader is the size of what stands before the data of a READ.
func (t *terms) dataHeader() int {
	if t.structured {
		return t.chunkHeader() + 8
	}
	return simpleReplySize
}

// putDataHeader writes what stands before n bytes of data read at off.
func (t *terms) putDataHeader(p []byte, r *request, flags uint16, off uint64, n int) {
	if !t.structured {
		putSimple(p, r, errNone)
		return
	}
	h := t.putChunk(p, r, flags, chunkOffsetData, 8+n)
	be.PutUint64(p[h:], off)
}

// putHole writes a chunk that says that n bytes at off are zero.
func (t *terms) putHole(p []byte, r *request, flags uint16, off uint64, n int) int {
	h := t.putChunk(p, r, flags, chunkOffsetHole, 12)
	be.PutUint64(p[h:], off)
	be.PutUint32(p[h+8:], uint32(n))
	return h + 12
}

// putAck collects the reply to a request that succeeded and returns no data. With
// structured replies a simple one is still allowed and is shorter, but for READ.
func (t *terms) putAck(out *batch, r *request) {
	if t.extended || t.structured && (r.typ == cmdRead || r.typ == cmdBlockStatus) {
		t.putChunk(out.room(t.chunkHeader()), r, replyFlagDone, chunkNone, 0)
		return
	}
	putSimple(out.room(simpleReplySize), r, errNone)
}

// putError collects the reply to a request that failed.
func (t *terms) putError(out *batch, r *request, code errno, text string) {
	if !t.structured {
		putSimple(out.room(simpleReplySize), r, code)
		return
	}
	text = wireText(text, maxErrorText)
	p := out.room(t.chunkHeader() + 6 + len(text))
	h := t.putChunk(p, r, replyFlagDone, chunkError, 6+len(text))
	be.PutUint32(p[h:], uint32(code))
	be.PutUint16(p[h+4:], uint16(len(text)))
	copy(p[h+6:], text)
}

// putResult collects the reply to a request that returns no data.
func (t *terms) putResult(out *batch, r *request, err error) {
	if err == nil {
		out.wrote = out.wrote || changes(r.typ)
		t.putAck(out, r)
		return
	}
	t.putError(out, r, replyErrno(r, err), err.Error())
}

// replyErrno maps a device's error to one that may be the answer to r: EOVERFLOW
// and ENOTSUP have a meaning of their own that only some requests allow.
func replyErrno(r *request, err error) errno {
	code := wireErrno(err)
	if code == errNotSup && (r.typ != cmdWriteZeroes || r.flags&cmdFlagFastZero == 0) ||
		code == errOverflow && r.typ != cmdRead {
		return errIO
	}
	return code
}
