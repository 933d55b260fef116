package integration

import (
	"bytes"
	"fmt"
	"testing"

	"lunar/integration/client"
)

// Errors of NBD.
const (
	ePerm     = 1
	eInval    = 22
	eNoSpace  = 28
	eOverflow = 75
	eNotSup   = 95
)

const (
	flagReadOnly = 1 << 1

	evilSize = uint64(1 << 40)
	maximum  = uint64(32 * mib)
)

// oddRequest is one request at some limit and what must come of it, for each kind of header.
type oddRequest struct {
	what           string
	command, flags uint16
	off, n         uint64
	payload        int    // bytes that follow
	want           uint32 // error; 0: success
	ends           bool   // the connection, without a reply
	bare           bool   // a WRITE without PAYLOAD_LEN where it must have that
}

func (a *arena) requests(t *testing.T) {
	for _, terms := range allTerms {
		list := append(requestsAtTheEnd(), requestsTooLarge(terms)...)
		list = append(list, requestsWithFlags(terms)...)
		if terms.Structured || terms.Extended {
			list = append(list, statusRequests(terms)...)
		}
		if terms.Extended {
			list = append(list, extendedRequests()...)
		}
		s := a.attach("evil", terms)
		for _, r := range list {
			what := fmt.Sprintf("%s (%s)", r.what, termsName(terms))
			flags := r.flags
			if r.command == client.CmdWrite && !r.bare {
				flags |= payloadFlag(terms)
			}
			reply, err := s.Do(r.command, flags, r.off, r.n, make([]byte, r.payload))
			if r.ends {
				if err == nil {
					t.Errorf("%s: error %d %q, want the end of the connection", what, reply.Errno, reply.Text)
				}
				s.Close()
				s = a.attach("evil", terms)
				continue
			}
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if reply.Errno != r.want {
				t.Errorf("%s: error %d %q, want %d", what, reply.Errno, reply.Text, r.want)
			}
			if r.command == client.CmdBlockStatus && reply.Errno == 0 {
				for id := range terms.Contexts {
					saneExtents(t, what, reply, uint32(id+1), r)
				}
			}
			// The stream is where it should be.
			if got, err := must(t, s, client.CmdRead, 0, 0, 512, nil).Bytes(0, 512); err != nil || len(got) != 512 {
				t.Fatalf("after %s: %v", what, err)
			}
		}
		s.Close()
		a.readOnly(t, terms)
		t.Logf("%s: %d requests", termsName(terms), len(list))
	}
}

// saneExtents: what is told begins at the request, has no empty extent, ends no later than the request (CVE-2025-47711 was
// an extent too long), and is one extent if one was asked for.
func saneExtents(t *testing.T, what string, reply client.Reply, id uint32, r oddRequest) {
	t.Helper()
	list, err := reply.Extents(id)
	if err != nil || len(list) == 0 {
		t.Errorf("%s, context %d: %d extents, %v", what, id, len(list), err)
		return
	}
	sum := uint64(0)
	for _, e := range list {
		if sum += e.Length; e.Length == 0 || sum > r.n {
			t.Errorf("%s, context %d: extents %v", what, id, list[:min(len(list), 8)])
			return
		}
	}
	if r.flags&client.CmdReqOne != 0 && len(list) != 1 {
		t.Errorf("%s, context %d: %d extents, one was asked for", what, id, len(list))
	}
}

// requestsAtTheEnd are at and over the end of the export and of 64 bits.
func requestsAtTheEnd() []oddRequest {
	const all = 1<<64 - 1
	list := []oddRequest{
		{what: "READ of nothing at the end", command: client.CmdRead, off: evilSize},
		{what: "READ of the last byte", command: client.CmdRead, off: evilSize - 1, n: 1},
		{what: "WRITE of nothing", command: client.CmdWrite, off: evilSize},
		{what: "WRITE of the last byte", command: client.CmdWrite, off: evilSize - 1, n: 1, payload: 1},
		{what: "ZERO of nothing", command: client.CmdZero},
		{what: "TRIM of nothing", command: client.CmdTrim},
		{what: "CACHE of nothing", command: client.CmdCache},
		{what: "FLUSH with an offset", command: client.CmdFlush, off: 1, want: eInval},
		{what: "FLUSH with a length", command: client.CmdFlush, n: 1, want: eInval},
	}
	for _, at := range []struct{ off, n uint64 }{
		{evilSize - 1, 2}, {evilSize, 1}, {evilSize - 512, 1024}, {evilSize + 1, 0}, {all, 0}, {all, 1}, {all - 511, 512}, {all - 4095, 8192},
		{1 << 63, 512}, {1<<63 - 1, 1}, {all - 1<<20 + 1, 1 << 20},
	} {
		for command, want := range map[uint16]uint32{client.CmdRead: eInval, client.CmdWrite: eNoSpace, client.CmdTrim: eInval, client.CmdZero: eNoSpace, client.CmdCache: eInval} {
			r := oddRequest{what: fmt.Sprintf("command %d of %d+%d", command, at.off, at.n), command: command, off: at.off, n: at.n, want: want}
			if command == client.CmdWrite {
				r.payload = int(at.n)
			}
			list = append(list, r)
		}
	}
	return list
}

// requestsTooLarge have more payload, or more effect, than there may be.
func requestsTooLarge(terms client.Terms) []oddRequest {
	tooLong := uint32(eInval)
	if terms.Extended {
		tooLong = eOverflow
	}
	const most = 1<<32 - 1
	list := []oddRequest{
		{what: "READ of 32 MiB", command: client.CmdRead, off: 1, n: maximum},
		{what: "READ of 32 MiB and one byte", command: client.CmdRead, n: maximum + 1, want: tooLong},
		{what: "READ of 4 GiB", command: client.CmdRead, n: most, want: tooLong},
		{what: "WRITE of 32 MiB", command: client.CmdWrite, off: 4095, n: maximum, payload: int(maximum)},
		{what: "WRITE of 32 MiB and one byte", command: client.CmdWrite, n: maximum + 1, payload: int(maximum) + 1, want: eInval, ends: terms.Extended},
		{what: "WRITE of 4 GiB that do not come", command: client.CmdWrite, n: most, payload: 1, ends: true},
		{what: "WRITE of 4 GiB over the end", command: client.CmdWrite, off: 1<<64 - 1, n: most, payload: 1, ends: true},
		{what: "READ of 4 GiB over the end", command: client.CmdRead, off: 1<<64 - 1, n: most, want: tooLong},
	}
	for _, n := range []uint64{most, most - 4095, most - 4096, most - 1, 1 << 31} {
		for _, off := range []uint64{0, 1, 4095, 5<<30 + 511} {
			for _, command := range []uint16{client.CmdTrim, client.CmdZero, client.CmdCache} {
				list = append(list, oddRequest{what: fmt.Sprintf("command %d of %d+%d", command, off, n), command: command, off: off, n: n})
			}
		}
	}
	return list
}

// requestsWithFlags have flags that do not belong to them, or commands that do not exist.
func requestsWithFlags(terms client.Terms) []oddRequest {
	structured := terms.Structured || terms.Extended
	plain := func(ok bool) uint32 {
		if ok {
			return 0
		}
		return eInval
	}
	list := []oddRequest{
		{what: "READ with DF", command: client.CmdRead, flags: client.CmdDF, n: 200 << 10, want: plain(structured)},
		{what: "READ with REQ_ONE", command: client.CmdRead, flags: client.CmdReqOne, n: 512, want: eInval},
		{what: "WRITE with DF", command: client.CmdWrite, flags: client.CmdDF, n: 512, payload: 512, want: eInval},
		{what: "WRITE with NO_HOLE", command: client.CmdWrite, flags: client.CmdNoHole, n: 512, payload: 512, want: eInval},
		{what: "TRIM with FAST_ZERO", command: client.CmdTrim, flags: client.CmdFastZero, n: 512, want: eInval},
		{what: "FLUSH with DF", command: client.CmdFlush, flags: client.CmdDF, want: eInval},
		{what: "ZERO with NO_HOLE", command: client.CmdZero, flags: client.CmdNoHole, off: 3, n: 70000},
		{what: "ZERO with FAST_ZERO", command: client.CmdZero, flags: client.CmdFastZero, off: 64 << 10, n: 64 << 10},
		{what: "ZERO with FAST_ZERO of less than a write is worth", command: client.CmdZero, flags: client.CmdFastZero, off: 3, n: 5, want: eNotSup},
		{what: "ZERO with FAST_ZERO beyond the end", command: client.CmdZero, flags: client.CmdFastZero, off: evilSize, n: 64 << 10, want: eNoSpace},
		{what: "ZERO with NO_HOLE and FUA", command: client.CmdZero, flags: client.CmdNoHole | client.CmdFUA, off: 3, n: 70000},
	}
	for command := uint16(0); command < 7; command++ {
		if command == client.CmdDisc {
			continue
		}
		one := oddRequest{command: command, n: 512}
		if command == client.CmdFlush {
			one.n = 0
		}
		if command == client.CmdWrite {
			one.payload = 512
		}
		fua, unknown := one, one
		fua.what, fua.flags = fmt.Sprintf("command %d with FUA", command), client.CmdFUA
		unknown.what, unknown.flags, unknown.want = fmt.Sprintf("command %d with an unknown flag", command), 1<<15, eInval
		list = append(list, fua, unknown)
	}
	for _, command := range []uint16{8, 9, 100, 1<<16 - 1} {
		list = append(list, oddRequest{what: fmt.Sprintf("command %d", command), command: command, n: 512, want: eInval})
	}
	if !structured {
		list = append(list, oddRequest{what: "BLOCK_STATUS without a context", command: client.CmdBlockStatus, n: 4096, want: eInval})
	}
	if !terms.Extended {
		list = append(list, oddRequest{what: "WRITE with PAYLOAD_LEN", command: client.CmdWrite, flags: client.CmdPayloadLen, n: 512, payload: 512, want: eInval})
	}
	return list
}

func statusRequests(client.Terms) []oddRequest {
	const most = 1<<32 - 1
	status := func(flags uint16, off, n uint64, want uint32) oddRequest {
		return oddRequest{what: fmt.Sprintf("BLOCK_STATUS of %d+%d, flags %d", off, n, flags), command: client.CmdBlockStatus, flags: flags, off: off, n: n, want: want}
	}
	list := []oddRequest{
		status(0, 0, 0, eInval), status(client.CmdReqOne, 0, 0, eInval), status(client.CmdDF, 0, 4096, eInval),
		status(0, evilSize-1, 1, 0), status(0, evilSize-1, 2, eInval), status(0, evilSize, 1, eInval), status(0, 1<<64-1, most, eInval),
		status(0, evilSize-most, most, 0), status(client.CmdReqOne|client.CmdFUA, 0, most, 0),
	}
	for _, n := range []uint64{1, 511, 4096, most, most - 1, most - 4094, most - 4095, most - 4096, 1 << 31} {
		for _, off := range []uint64{0, 1, 4095, 3 << 30} {
			list = append(list, status(0, off, n, 0), status(client.CmdReqOne, off, n, 0))
		}
	}
	return list
}

// extendedRequests have lengths of 64 bits, and payloads where there may be none.
func extendedRequests() []oddRequest {
	const all = 1<<64 - 1
	ids := func(n int) int { return 8 + 4*n }
	return []oddRequest{
		{what: "TRIM of everything", command: client.CmdTrim, n: evilSize},
		{what: "ZERO of everything but the ends", command: client.CmdZero, off: 1, n: evilSize - 2},
		{what: "CACHE of everything", command: client.CmdCache, n: evilSize},
		{what: "BLOCK_STATUS of everything", command: client.CmdBlockStatus, n: evilSize},
		{what: "TRIM of 2^64-1", command: client.CmdTrim, n: all, want: eInval},
		{what: "ZERO of 2^64-1 at 1", command: client.CmdZero, off: 1, n: all, want: eNoSpace},
		{what: "READ of 2^64-1", command: client.CmdRead, n: all, want: eOverflow},
		{what: "CACHE of 2^63", command: client.CmdCache, n: 1 << 63, want: eInval},
		{what: "BLOCK_STATUS of 2^64-1 at 2^64-1", command: client.CmdBlockStatus, off: all, n: all, want: eInval},
		{what: "WRITE without PAYLOAD_LEN, as of qemu 10", command: client.CmdWrite, n: 512, payload: 512, bare: true},
		{what: "WRITE without PAYLOAD_LEN beyond the end", command: client.CmdWrite, off: evilSize, n: 512, payload: 512, want: eNoSpace, bare: true},
		{what: "WRITE with PAYLOAD_LEN of 2^64-1", command: client.CmdWrite, flags: client.CmdPayloadLen, n: all, ends: true},
		{what: "READ with a payload", command: client.CmdRead, flags: client.CmdPayloadLen, n: 16, payload: 16, want: eInval},
		{what: "FLUSH with a payload", command: client.CmdFlush, flags: client.CmdPayloadLen, n: 4, payload: 4, want: eInval},
		{what: "an unknown command with a payload", command: 77, flags: client.CmdPayloadLen, n: 5000, payload: 5000, want: eInval},
		{what: "an unknown command with a payload of 2^63", command: 77, flags: client.CmdPayloadLen, n: 1 << 63, ends: true},
		{what: "BLOCK_STATUS with an empty payload", command: client.CmdBlockStatus, flags: client.CmdPayloadLen, want: eInval},
		{what: "BLOCK_STATUS with a payload without ids", command: client.CmdBlockStatus, flags: client.CmdPayloadLen, n: 8, payload: 8, want: eInval},
		{what: "BLOCK_STATUS with a payload of an odd size", command: client.CmdBlockStatus, flags: client.CmdPayloadLen, n: 13, payload: 13, want: eInval},
		{what: "BLOCK_STATUS with the id 0 and a length of 0", command: client.CmdBlockStatus, flags: client.CmdPayloadLen, n: uint64(ids(1)), payload: ids(1), want: eInval},
		{what: "BLOCK_STATUS with too many ids", command: client.CmdBlockStatus, flags: client.CmdPayloadLen, n: uint64(ids(1000)), payload: ids(1000), want: eInval},
		{what: "BLOCK_STATUS with 4 GiB of ids", command: client.CmdBlockStatus, flags: client.CmdPayloadLen, n: 1 << 32, ends: true},
	}
}

// readOnly tries to change a snapshot.
func (a *arena) readOnly(t *testing.T, terms client.Terms) {
	t.Helper()
	s := a.attach("evil@s", client.Terms{Structured: terms.Structured, Extended: terms.Extended})
	defer s.Close()
	if s.Flags&flagReadOnly == 0 {
		t.Errorf("the flags of a snapshot are %#x, not read-only", s.Flags)
	}
	want := make([]byte, mib)
	fill(want, 3)
	for _, r := range []oddRequest{
		{command: client.CmdWrite, flags: payloadFlag(terms), n: 4096, payload: 4096}, {command: client.CmdTrim, n: 4096}, {command: client.CmdZero, n: 4096},
		{command: client.CmdWrite, flags: payloadFlag(terms), n: maximum, payload: int(maximum)}, {command: client.CmdZero, flags: client.CmdNoHole, n: mib},
	} {
		if reply, err := s.Do(r.command, r.flags, 0, r.n, make([]byte, r.payload)); err != nil || reply.Errno != ePerm {
			t.Errorf("command %d to a snapshot (%s): error %d %q, %v; want EPERM", r.command, termsName(terms), reply.Errno, reply.Text, err)
		}
	}
	if got, err := must(t, s, client.CmdRead, 0, 0, mib, nil).Bytes(0, mib); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the snapshot is not what it was: %v", err)
	}
	must(t, s, client.CmdFlush, 0, 0, 0, nil)
}

// sameCookie has many requests in flight under one cookie: cookies are the client's business.
func (a *arena) sameCookie(t *testing.T) {
	const rounds = 50
	for _, terms := range allTerms {
		s := a.attach("evil", terms)
		var b []byte
		want := 0
		for i := range uint64(rounds) {
			for _, command := range []uint16{client.CmdFlush, client.CmdTrim, client.CmdZero, client.CmdCache, client.CmdWrite, client.CmdRead, client.CmdBlockStatus} {
				n := uint64(4096)
				switch {
				case (command == client.CmdRead || command == client.CmdBlockStatus) && !s.Structured:
					continue // nobody could tell the replies apart
				case command == client.CmdFlush:
					n = 0
				case command == client.CmdRead:
					n = 100 << 10
				}
				flags := uint16(0)
				if command == client.CmdWrite {
					flags = payloadFlag(terms)
				}
				off := i * 8192
				if command == client.CmdFlush {
					off = 0
				}
				b = append(b, client.Request(s.Extended, command, flags, 5, off, n)...)
				if command == client.CmdWrite {
					b = append(b, make([]byte, n)...)
				}
				want++
			}
		}
		if _, err := s.Write(b); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < want; {
			simple, flags, cookie, c, err := s.Chunk()
			if err != nil || cookie != 5 {
				t.Fatalf("%s, after %d of %d replies: cookie %d, %v", termsName(terms), got, want, cookie, err)
			}
			if simple && be.Uint32(c.Data) != 0 || c.Type&(1<<15) != 0 {
				t.Fatalf("%s: an error: % x", termsName(terms), c.Data[:min(64, len(c.Data))])
			}
			if simple || flags&1 != 0 {
				got++
			}
		}
		must(t, s, client.CmdFlush, 0, 0, 0, nil)
		s.Close()
	}
}
