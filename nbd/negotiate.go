package nbd

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
)

// negotiation is what one client has agreed on so far. It decides; it does no
// I/O on the connection, so that every case of it can be tested by a script.
type negotiation struct {
	ctx     context.Context
	backend Backend
	client  Client

	tls          TLSMode // of the listener
	fixed        bool    // the client speaks fixed newstyle
	noZeroes     bool
	shuttingDown func() bool
	// opening is told of a name before it is opened for transmission, so that a
	// disconnect of that export finds this connection as well.
	opening func(name string)

	// What options have set; STARTTLS empties it.
	structured bool
	extended   bool
	metaExport string
	contexts   []metaContext
}

// step is what follows an option.
type step int

const (
	stepContinue step = iota
	stepClose         // after the replies
	stepTLS
	stepTransmit
)

type optionReply struct {
	typ  uint32
	data []byte
}

// outcome is the answer to one option.
type outcome struct {
	replies []optionReply
	raw     []byte // the answer to EXPORT_NAME, which has no reply header
	next    step
	device  Device // with stepTransmit; the caller closes it
	name    string // of the export that was opened
}

func ack() outcome { return outcome{replies: []optionReply{{typ: repAck}}} }

func refuse(typ uint32, text string) outcome {
	return outcome{replies: []optionReply{{typ, []byte(wireText(text, maxStringBytes))}}}
}

// clientFlags takes the client's first word; an unknown flag ends the session.
func (n *negotiation) clientFlags(flags uint32) bool {
	n.fixed = flags&clientFixedNewstyle != 0
	n.noZeroes = flags&clientNoZeroes != 0
	return flags&^(clientFixedNewstyle|clientNoZeroes) == 0
}

// option answers one option.
func (n *negotiation) option(option uint32, data []byte) outcome {
	if out, done := n.precondition(option); done {
		return out
	}
	switch option {
	case optExportName:
		return n.exportName(data)
	case optAbort: // proto.md: data is to be ignored
		out := ack()
		out.next = stepClose
		return out
	case optList:
		return n.list(data)
	case optStartTLS:
		return n.startTLS(data)
	case optInfo, optGo:
		return n.info(option, data)
	case optStructuredReply:
		return n.structuredReply(data)
	case optListMetaContext, optSetMetaContext:
		return n.metaContext(option, data)
	case optExtendedHeaders:
		return n.extendedHeaders(data)
	}
	return refuse(repErrUnsup, "this option is not known here")
}

// tooBig answers an option whose data were drained unread.
func (n *negotiation) tooBig(option uint32) outcome {
	if out, done := n.precondition(option); done {
		return out
	}
	switch option {
	case optExportName: // has no error reply
		return outcome{next: stepClose}
	case optAbort:
		return n.option(option, nil)
	}
	return refuse(repErrTooBig, "option of more than 64 KiB")
}

// precondition answers for the states in which hardly any option is served.
func (n *negotiation) precondition(option uint32) (outcome, bool) {
	if option == optAbort {
		return outcome{}, false
	}
	if n.shuttingDown() {
		if option == optExportName {
			return outcome{next: stepClose}, true
		}
		return refuse(repErrShutdown, "the server is being shut down"), true
	}
	if n.tls != TLSRequired || n.client.TLS || option == optStartTLS && n.fixed {
		return outcome{}, false
	}
	if option == optExportName || !n.fixed {
		// EXPORT_NAME has no error reply, and a client that is not fixed newstyle
		// must not be told of TLS.
		return outcome{next: stepClose}, true
	}
	return refuse(repErrTLSRequired, "this server wants TLS first"), true
}

func (n *negotiation) startTLS(data []byte) outcome {
	switch {
	case len(data) != 0:
		return refuse(repErrInvalid, "STARTTLS takes no data")
	case n.client.TLS:
		return refuse(repErrInvalid, "TLS has been started already")
	case n.tls == TLSOff:
		return refuse(repErrPolicy, "TLS is not configured here")
	case !n.fixed:
		return refuse(repErrPolicy, "TLS needs a client that speaks fixed newstyle")
	}
	// What was agreed in the clear may be another's doing (CVE-2021-3716).
	n.structured, n.extended = false, false
	n.metaExport, n.contexts = "", nil
	out := ack()
	out.next = stepTLS
	return out
}

func (n *negotiation) structuredReply(data []byte) outcome {
	if len(data) != 0 {
		return refuse(repErrInvalid, "STRUCTURED_REPLY takes no data")
	}
	if n.extended {
		return refuse(repErrExtHeaderReqd, "extended headers have been agreed on")
	}
	n.structured = true
	return ack()
}

func (n *negotiation) extendedHeaders(data []byte) outcome {
	if len(data) != 0 {
		return refuse(repErrInvalid, "EXTENDED_HEADERS takes no data")
	}
	if n.extended {
		return refuse(repErrInvalid, "extended headers have been agreed on already")
	}
	n.structured, n.extended = true, true
	return ack()
}

func (n *negotiation) list(data []byte) outcome {
	if len(data) != 0 {
		return refuse(repErrInvalid, "LIST takes no data")
	}
	exports, err := n.backend.Exports(n.ctx, n.client)
	if err != nil {
		return n.refuseOpen(err)
	}
	var out outcome
	for _, e := range exports {
		if !validName([]byte(e.Name)) {
			continue // could not be sent, nor asked for
		}
		b := be.AppendUint32(nil, uint32(len(e.Name)))
		b = append(b, e.Name...)
		b = append(b, wireText(e.Description, maxStringBytes)...)
		out.replies = append(out.replies, optionReply{repServer, b})
	}
	out.replies = append(out.replies, optionReply{typ: repAck})
	return out
}

// open opens an export for transmission, or to tell about it.
func (n *negotiation) open(name string) (Device, error) {
	d, err := n.backend.Open(n.ctx, name, n.client)
	if err == nil && d.Size() < 0 {
		_ = d.Close()
		return nil, syscall.EIO
	}
	return d, err
}

// refuseOpen answers for an export that could not be opened.
func (n *negotiation) refuseOpen(err error) outcome {
	switch {
	case errors.Is(err, ErrTLSRequired) && n.tls == TLSAllowed && !n.client.TLS:
		return refuse(repErrTLSRequired, err.Error())
	case errors.Is(err, ErrUnknownExport), errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrTLSRequired):
		return refuse(repErrUnknown, "no such export")
	case errors.Is(err, syscall.ESHUTDOWN):
		return refuse(repErrShutdown, err.Error())
	case errors.Is(err, fs.ErrPermission):
		return refuse(repErrPolicy, err.Error())
	}
	return refuse(repErrUnknown, err.Error())
}

// exportName answers the oldest way to begin, which knows no errors.
func (n *negotiation) exportName(data []byte) outcome {
	if n.extended || !validName(data) {
		return outcome{next: stepClose}
	}
	name := string(data)
	n.opening(name)
	d, err := n.open(name)
	if err != nil {
		return outcome{next: stepClose}
	}
	n.settleContexts(name)
	raw := be.AppendUint64(nil, uint64(d.Size()))
	raw = be.AppendUint16(raw, transmissionFlags(d, n.structured, n.extended, len(n.contexts)))
	if !n.noZeroes {
		raw = append(raw, make([]byte, exportNameZeroes)...)
	}
	return outcome{raw: raw, next: stepTransmit, device: d, name: name}
}

// infoQuery is the payload of INFO and GO.
type infoQuery struct {
	export                       string
	name, description, blockSize bool
}

// parseInfoQuery decodes the payload. Information that is not known is ignored.
func parseInfoQuery(b []byte) (q infoQuery, ok bool) {
	q.export, b, ok = takeString(b)
	if !ok || len(b) < 2 {
		return q, false
	}
	n := int(be.Uint16(b))
	b = b[2:]
	if len(b) != 2*n {
		return q, false
	}
	for ; len(b) > 0; b = b[2:] {
		switch be.Uint16(b) {
		case infoName:
			q.name = true
		case infoDescription:
			q.description = true
		case infoBlockSize:
			q.blockSize = true
		}
	}
	return q, true
}

// info answers INFO and GO, which differ in what follows the last reply only.
func (n *negotiation) info(option uint32, data []byte) outcome {
	q, ok := parseInfoQuery(data)
	if !ok {
		return refuse(repErrInvalid, "the lengths in this option do not add up, or the name is not valid")
	}
	if option == optGo {
		n.opening(q.export)
	}
	d, err := n.open(q.export)
	if err != nil {
		return n.refuseOpen(err)
	}
	contexts := len(n.contexts)
	if n.metaExport != q.export {
		contexts = 0
	}
	out := outcome{replies: infoReplies(d, q, transmissionFlags(d, n.structured, n.extended, contexts))}
	if option == optInfo {
		_ = d.Close()
		return out
	}
	n.settleContexts(q.export)
	out.next, out.device, out.name = stepTransmit, d, q.export
	return out
}

func infoReplies(d Device, q infoQuery, flags uint16) []optionReply {
	b := be.AppendUint16(nil, infoExport)
	b = be.AppendUint64(b, uint64(d.Size()))
	replies := []optionReply{{repInfo, be.AppendUint16(b, flags)}}
	if q.name {
		name := q.export
		if named, ok := d.(Namer); ok {
			name = wireText(named.Name(), maxStringBytes)
		}
		replies = append(replies, optionReply{repInfo, append(be.AppendUint16(nil, infoName), name...)})
	}
	if q.description {
		text := wireText(d.Description(), maxStringBytes)
		replies = append(replies, optionReply{repInfo, append(be.AppendUint16(nil, infoDescription), text...)})
	}
	if q.blockSize {
		b := be.AppendUint16(nil, infoBlockSize)
		b = be.AppendUint32(b, minimumBlock)
		b = be.AppendUint32(b, preferredBlock)
		replies = append(replies, optionReply{repInfo, be.AppendUint32(b, maxPayload)})
	}
	return append(replies, optionReply{typ: repAck})
}

// settleContexts drops contexts that were selected for another export.
func (n *negotiation) settleContexts(export string) {
	if n.metaExport != export {
		n.contexts = nil
	}
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (n *negotiation) metaContext(option uint32, data []byte) outcome {
	set := option == optSetMetaContext
	if set { // whatever was selected is replaced, by a failure too
		n.metaExport, n.contexts = "", nil
	}
	if !n.structured {
		return refuse(repErrInvalid, "metadata contexts need structured replies first")
	}
	q, ok := parseMetaQuery(data)
	if !ok {
		return refuse(repErrInvalid, "the lengths in this option do not add up, or a name is not valid")
	}
	d, err := n.open(q.export)
	if err != nil {
		return n.refuseOpen(err)
	}
	found := contextsOf(d)
	_ = d.Close()
	found = matchContexts(found, q.queries, !set)
	if set {
		if len(found) > maxSelectedContext {
			return refuse(repErrTooBig, "more than 64 metadata contexts")
		}
		n.metaExport, n.contexts = q.export, found
	}
	var out outcome
	for i, c := range found {
		id := uint32(0) // reserved in a list
		if set {
			id = uint32(i + 1)
		}
		out.replies = append(out.replies, optionReply{repMetaContext, append(be.AppendUint32(nil, id), c.name...)})
	}
	out.replies = append(out.replies, optionReply{typ: repAck})
	return out
}
