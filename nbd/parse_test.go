package nbd

import (
	"bytes"
	"context"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"
)

// stub is a device that is never read.
type stub struct {
	Device
	size     int64
	readOnly bool
}

func (s stub) Size() int64         { return s.size }
func (s stub) ReadOnly() bool      { return s.readOnly }
func (s stub) Description() string { return strings.Repeat("long \x00", 2000) }
func (s stub) Close() error        { return nil }
func (s stub) ChangedContexts() []string {
	return []string{"one", "two", "", "zero\x00", strings.Repeat("l", 5000)}
}
func (s stub) Changed(string, int64, int64, func(int64, int64, bool) bool) error { return nil }

func (s stub) Exports(context.Context, Client) ([]ExportInfo, error) {
	return []ExportInfo{{Name: "mem", Description: s.Description()}, {Name: "bad\x00name"}}, nil
}

func (s stub) Open(_ context.Context, name string, _ Client) (Device, error) {
	if name != "mem" {
		return nil, ErrUnknownExport
	}
	return s, nil
}

// FuzzOption: an option never panics, and no reply breaks the protocol's limits.
func FuzzOption(f *testing.F) {
	info := append(be.AppendUint32(nil, 3), "mem\x00\x02\x00\x01\x00\x02"...)
	meta := append(be.AppendUint32(nil, 3), "mem\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation"...)
	for option := range uint32(13) {
		for _, data := range [][]byte{nil, info, meta, []byte("mem"), {0xff, 0xff, 0xff, 0xff}} {
			f.Add(option, data, option, meta, byte(option*37))
		}
	}
	f.Fuzz(func(t *testing.T, o1 uint32, d1 []byte, o2 uint32, d2 []byte, state byte) {
		n := &negotiation{
			ctx: context.Background(), backend: stub{size: 1 << 20}, tls: TLSMode(state % 3), fixed: state&4 != 0,
			noZeroes: state&8 != 0, structured: state&16 != 0, extended: state&48 == 48,
			shuttingDown: func() bool { return state&64 != 0 }, opening: func(string) {},
		}
		n.client.TLS = state&128 != 0
		for _, out := range []outcome{n.option(o1, d1), n.option(o2, d2)} {
			checkOutcome(t, n, out)
		}
	})
}

func checkOutcome(t *testing.T, n *negotiation, out outcome) {
	if (out.next == stepTransmit) != (out.device != nil) {
		t.Error("transmission without a device, or a device without transmission")
	}
	for i, r := range out.replies {
		text := r.data
		switch {
		case r.typ&repErrorBit != 0, r.typ == repAck:
			if i != len(out.replies)-1 {
				t.Error("a reply behind the last one")
			}
		case r.typ == repServer || r.typ == repMetaContext:
			text = r.data[4:]
		case r.typ == repInfo:
			continue
		}
		if !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0 || len(text) > 2*maxStringBytes {
			t.Errorf("reply %#x of %d bytes is not a string", r.typ, len(text))
		}
	}
	if len(out.replies) == 0 && out.raw == nil && out.next != stepClose {
		t.Error("no answer")
	}
	if len(n.contexts) > maxSelectedContext || len(n.contexts) > 0 && !n.structured {
		t.Error("contexts that must not be")
	}
}

// FuzzMetaQuery: what is parsed was there, all of it.
func FuzzMetaQuery(f *testing.F) {
	f.Add(append(be.AppendUint32(nil, 3), "mem\x00\x00\x00\x02\x00\x00\x00\x05base:\x00\x00\x00\x00"...))
	f.Add([]byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		q, ok := parseMetaQuery(b)
		if !ok {
			return
		}
		n := 8 + len(q.export)
		for _, s := range q.queries {
			n += 4 + len(s)
		}
		if n != len(b) {
			t.Errorf("%d bytes of %d", n, len(b))
		}
	})
}

// FuzzRequest: a request that is found legal cannot do harm, whatever it says.
func FuzzRequest(f *testing.F) {
	for typ := range uint16(9) {
		for _, length := range []uint64{0, 1, 4096, maxPayload, maxPayload + 1, math.MaxUint32, math.MaxUint64} {
			f.Add(typ, uint16(1), uint64(4096), length, uint64(1<<30), uint16(0xffff), byte(typ))
			f.Add(typ, uint16(0), uint64(math.MaxUint64), length, uint64(1<<62), uint16(0x0fff), byte(3))
		}
	}
	f.Fuzz(func(t *testing.T, typ, flags uint16, off, length, size uint64, offered uint16, state byte) {
		size %= 1 << 63
		extended := state&1 != 0
		terms := terms{flags: offered, structured: extended || state&2 != 0, extended: extended}
		if state&4 != 0 {
			terms.contexts = contextsOf(stub{})
		}
		var header [extendedRequestSize]byte
		r := request{flags: flags, typ: typ, offset: off, length: length}
		be.PutUint16(header[4:], flags)
		be.PutUint16(header[6:], typ)
		be.PutUint64(header[16:], off)
		if extended {
			be.PutUint64(header[24:], length)
		} else {
			be.PutUint32(header[24:], uint32(length))
			r.length = uint64(uint32(length))
		}
		if got, ok := parseRequest(header[:], extended); ok || got != r {
			t.Fatalf("parsed %+v, %v", got, ok)
		}
		if why, ok := terms.validate(&r, size); ok {
			checkLegal(t, &terms, &r, size)
		} else if why.code == errNone || why.text == "" {
			t.Error("refused without a reason")
		}
	})
}

func checkLegal(t *testing.T, terms *terms, r *request, size uint64) {
	payload := r.payloadLen(terms.extended)
	if r.typ == cmdDisc {
		return
	}
	if payload > terms.drainable() || payload > 0 && r.typ != cmdWrite && r.typ != cmdBlockStatus {
		t.Errorf("%d bytes of payload", payload)
	}
	if terms.flags&flagReadOnly != 0 && changes(r.typ) {
		t.Error("a change of a read-only export")
	}
	if r.typ == cmdBlockStatus && payload > 0 {
		if payload < 12 || payload > 8+4*maxSelectedContext {
			t.Errorf("a list of contexts in %d bytes", payload)
		}
		return
	}
	if r.offset > size || r.offset+r.length < r.offset || r.offset+r.length > size {
		t.Errorf("%d+%d is not within %d", r.offset, r.length, size)
	}
	if (r.typ == cmdRead || r.typ == cmdWrite) && r.length > maxPayload {
		t.Errorf("%d bytes in one piece", r.length)
	}
}

func TestWireText(t *testing.T) {
	for in, want := range map[string]string{"plain": "plain", "a\x00b": "a?b", "\xff\xfe": "?", strings.Repeat("ä", 10): "ääää", "12345678": "12345678"} {
		if got := wireText(in, 8); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

// TestNoAllocation: the path of small requests allocates nothing.
func TestNoAllocation(t *testing.T) {
	s := &session{device: ramDevice{make([]byte, 1<<20)}, terms: terms{structured: true, flags: flagSendFUA}}
	s.conn = &conn{}
	header := make([]byte, requestSize)
	be.PutUint32(header, magicRequest)
	payload := make([]byte, 4096)
	j := job{s: s}
	if n := testing.AllocsPerRun(100, func() {
		for _, typ := range []uint16{cmdRead, cmdWrite, cmdTrim} {
			be.PutUint16(header[6:], typ)
			be.PutUint32(header[24:], 4096)
			j.request, _ = parseRequest(header, false)
			if _, ok := s.validate(&j.request, 1<<20); !ok {
				t.Fatal("refused")
			}
			if err := s.short(&j, payload); err != nil {
				t.Fatal(err)
			}
		}
		s.batch.take()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

type ramDevice struct{ b []byte }

func (d ramDevice) Size() int64                                                     { return int64(len(d.b)) }
func (d ramDevice) ReadOnly() bool                                                  { return false }
func (d ramDevice) Description() string                                             { return "" }
func (d ramDevice) Buffer(n int) []byte                                             { return make([]byte, n) }
func (d ramDevice) Discard([]byte)                                                  {}
func (d ramDevice) ReadAt(p []byte, off int64) error                                { copy(p, d.b[off:]); return nil }
func (d ramDevice) WriteAt(p []byte, off int64, _ bool) error                       { copy(d.b[off:], p); return nil }
func (d ramDevice) WriteOwned(p []byte, off int64, _ bool) error                    { copy(d.b[off:], p); return nil }
func (d ramDevice) Flush() error                                                    { return nil }
func (d ramDevice) Trim(_, _ int64, _ bool) error                                   { return nil }
func (d ramDevice) Zero(_, _ int64, _, _ bool) error                                { return nil }
func (d ramDevice) Extents(_, _ int64, _ func(int64, int64, bool, bool) bool) error { return nil }
func (d ramDevice) Close() error                                                    { return nil }

// TestSpinBounded: an input whose client is not quick does not poll.
func TestSpinBounded(t *testing.T) {
	in := &input{spinTime: time.Millisecond, spinners: new(atomic.Int32)}
	if in.spin() {
		t.Error("polls although the client was not quick")
	}
	in.hot, in.single = true, true
	start := time.Now()
	for in.spin() {
	}
	if took := time.Since(start); took < time.Millisecond || took > 30*time.Second {
		t.Errorf("polled for %s", took)
	}
	if in.hot || in.spinners.Load() != 0 {
		t.Error("would poll again, though it was in vain")
	}
	in.hot = true
	in.spinners.Store(maxSpinners)
	if in.spin() {
		t.Error("more poll than may")
	}
}
