package integration

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"lunar/integration/client"
)

var be = binary.BigEndian

const gone = 8 * time.Second // less than a handshake may take; within this a connection must have ended that the server is to end

var optionCodes = []uint32{0, client.OptExportName, client.OptAbort, client.OptList, client.OptPeekExport, client.OptStartTLS, client.OptInfo, client.OptGo,
	client.OptStructured, client.OptListMeta, client.OptSetMeta, client.OptExtended, 12, 1 << 31, 1<<32 - 1}

// optionLengths announces options of every awkward length: not sent at all, sent in part, sent whole.
func (a *arena) optionLengths(t *testing.T) {
	lengths := []uint32{0, 1, 3, 4, 5, 4096, 4097, 64 << 10, 64<<10 + 1, 900 << 10, 1 << 20, 1<<31 - 1, 1 << 31, 1<<32 - 1}
	for _, code := range optionCodes {
		for _, n := range lengths {
			s := a.greeted(t)
			s.Write(client.OptionHeader(code, n))
			s.Write(make([]byte, min(n, 2)))
			s.Conn.(*net.TCPConn).CloseWrite()
			if _, err := s.Ended(gone); err != nil {
				t.Errorf("option %#x of announced %d bytes, 2 sent: %v", code, n, err)
			}
			s.Close()
			// More than a handshake may bring is not waited for.
			if n >= 1<<20 {
				s := a.greeted(t)
				s.Write(client.OptionHeader(code, n))
				if came, err := s.Ended(gone); err != nil || came != 0 {
					t.Errorf("option %#x of announced %d bytes: %d bytes came, %v", code, n, came, err)
				}
				s.Close()
				continue
			}
			for _, b := range []byte{0, 0xff} {
				a.wholeOption(t, code, bytes.Repeat([]byte{b}, int(n)))
			}
		}
	}
}

// wholeOption sends one option after STRUCTURED_REPLY: it is answered, and the session goes on where it may.
func (a *arena) wholeOption(t *testing.T, code uint32, data []byte) {
	t.Helper()
	s := a.greeted(t)
	defer s.Close()
	if err := s.Ack(client.OptStructured, nil); err != nil {
		t.Fatal(err)
	}
	if code == client.OptExportName { // no export has a name of zeroes: there is no other answer than the end
		s.Write(client.Option(code, data))
		if came, err := s.Ended(gone); err != nil || came != 0 {
			t.Errorf("EXPORT_NAME of %d bytes: %d bytes came, %v", len(data), came, err)
		}
		return
	}
	kind, text, err := s.Ask(code, data)
	if err != nil {
		t.Errorf("option %#x with %d bytes: %v", code, len(data), err)
		return
	}
	empty := len(data) == 0 && (code == client.OptList || code == client.OptStructured || code == client.OptExtended)
	if ok := empty || code == client.OptAbort; ok != (kind == client.RepAck) {
		t.Errorf("option %#x with %d bytes: answer %#x %q", code, len(data), kind, text)
	}
	if known := code >= client.OptExportName && code <= client.OptExtended && code != client.OptPeekExport; !known && len(data) <= 64<<10 && kind != client.RepErrUnsup {
		t.Errorf("unknown option %#x with %d bytes: answer %#x, want ERR_UNSUP", code, len(data), kind)
	}
	if len(data) > 64<<10 && kind != client.RepErrTooBig && code != client.OptAbort {
		t.Errorf("option %#x with %d bytes: answer %#x, want ERR_TOO_BIG", code, len(data), kind)
	}
	goesOn(t, s, code == client.OptAbort)
}

// goesOn holds a handshake against what it must be after an answer.
func goesOn(t *testing.T, s *client.Script, over bool) {
	t.Helper()
	if over {
		if came, err := s.Ended(gone); err != nil || came != 0 {
			t.Errorf("after ABORT: %d bytes came, %v", came, err)
		}
		return
	}
	if kind, text, err := s.Ask(client.OptInfo, client.GoData("good", 3)); err != nil || kind != client.RepAck {
		t.Errorf("INFO afterwards: answer %#x %q, %v", kind, text, err)
	}
}

// optionLies sends payloads whose inner lengths do not agree with the outer one, trailing bytes among them: qemu-nbd's
// issue 4843 answers and then dies of an assertion.
func (a *arena) optionLies(t *testing.T) {
	info := client.GoData("good", 1, 2, 3)
	meta := client.MetaData("good", "base:allocation", "qemu:")
	change := func(b []byte, at int, value uint32) []byte {
		b = bytes.Clone(b)
		be.PutUint32(b[at:], value)
		return b
	}
	infoCount := func(n uint16) []byte {
		b := bytes.Clone(info)
		be.PutUint16(b[8:], n)
		return b
	}
	longer := func(b []byte, n int) []byte { return append(bytes.Clone(b), make([]byte, n)...) }
	var lies []struct {
		code uint32
		data []byte
	}
	lie := func(data []byte, codes ...uint32) {
		for _, code := range codes {
			lies = append(lies, struct {
				code uint32
				data []byte
			}{code, data})
		}
	}
	for _, n := range []int{1, 2, 4, 8, 100, 4096} {
		lie(make([]byte, n), client.OptList, client.OptStartTLS, client.OptStructured, client.OptExtended)
		lie(longer(info, n), client.OptInfo, client.OptGo)
		lie(longer(meta, n), client.OptListMeta, client.OptSetMeta)
		lie(longer(client.MetaData("good"), n), client.OptListMeta, client.OptSetMeta)
		lie(longer(client.MetaData("nosuch", "base:allocation"), n), client.OptListMeta, client.OptSetMeta)
	}
	for n := range len(info) {
		lie(info[:n], client.OptInfo, client.OptGo)
	}
	for n := range len(meta) {
		lie(meta[:n], client.OptListMeta, client.OptSetMeta)
	}
	for _, n := range []uint32{0, 3, 5, uint32(len(info)), uint32(len(info)) - 3, 4096, 4097, 1<<31 - 1, 1 << 31, 1<<32 - 4, 1<<32 - 1} {
		lie(change(info, 0, n), client.OptInfo, client.OptGo)
		lie(change(meta, 0, n), client.OptListMeta, client.OptSetMeta)
		lie(change(meta, 12, n), client.OptListMeta, client.OptSetMeta) // the first query
	}
	for _, n := range []uint32{1, 3, 1 << 16, 1 << 28, 1 << 30, 1<<31 - 1, 1<<32 - 1} {
		lie(change(meta, 8, n), client.OptListMeta, client.OptSetMeta) // the number of queries
	}
	for _, n := range []uint16{0, 2, 4, 1<<15 - 1, 1 << 15, 1<<16 - 1} {
		lie(infoCount(n), client.OptInfo, client.OptGo)
	}
	for _, l := range lies {
		s := a.greeted(t)
		if err := s.Ack(client.OptStructured, nil); err != nil {
			t.Fatal(err)
		}
		want := uint32(client.RepErrInvalid)
		kind, text, err := s.Ask(l.code, l.data)
		if l.code == client.OptStartTLS && kind == client.RepErrPolicy { // TLS is off: whatever comes with it
			want = kind
		}
		if err != nil || kind != want || text == "" {
			t.Errorf("option %d with % x: answer %#x %q, %v; want ERR_INVALID with a text", l.code, l.data[:min(64, len(l.data))], kind, text, err)
			s.Close()
			continue
		}
		goesOn(t, s, false)
		s.Close()
	}
	t.Logf("%d lies", len(lies))
}

// names asks for exports that no pool can have.
func (a *arena) names(t *testing.T) {
	for name, want := range map[string]uint32{
		"nosuch": client.RepErrUnknown, "good@": client.RepErrUnknown, "@": client.RepErrUnknown, "@s": client.RepErrUnknown, "good@@": client.RepErrUnknown,
		"GOOD": client.RepErrUnknown, "goo": client.RepErrUnknown, "good ": client.RepErrUnknown, "../good": client.RepErrUnknown, "": client.RepErrUnknown,
		"good\x00": client.RepErrInvalid, "\x00": client.RepErrInvalid, "\xff\xfe": client.RepErrInvalid, "good\xc3": client.RepErrInvalid,
		strings.Repeat("a", 255): client.RepErrUnknown, strings.Repeat("a", 4096): client.RepErrUnknown, strings.Repeat("é", 2048): client.RepErrUnknown,
		"evil@" + strings.Repeat("s", 4091): client.RepErrUnknown, strings.Repeat("a", 4097): client.RepErrInvalid, strings.Repeat("%s", 2000): client.RepErrUnknown,
	} {
		shown := fmt.Sprintf("%.20q (%d bytes)", name, len(name))
		for _, code := range []uint32{client.OptInfo, client.OptGo, client.OptListMeta, client.OptSetMeta} {
			data := client.GoData(name, 1, 2, 3)
			if code == client.OptListMeta || code == client.OptSetMeta {
				data = client.MetaData(name, "base:allocation")
			}
			s := a.greeted(t)
			if err := s.Ack(client.OptStructured, nil); err != nil {
				t.Fatal(err)
			}
			kind, text, err := s.Ask(code, data)
			if err != nil || kind != want || len(text) > 4096 {
				t.Errorf("option %d for %s: answer %#x with %d bytes of text, %v; want %#x", code, shown, kind, len(text), err, want)
			} else {
				goesOn(t, s, false)
			}
			s.Close()
		}
		s := a.greeted(t)
		s.Write(client.Option(client.OptExportName, []byte(name)))
		if came, err := s.Ended(gone); err != nil || came != 0 {
			t.Errorf("EXPORT_NAME of %s: %d bytes came, %v", shown, came, err)
		}
		s.Close()
	}
}

// wrongOrder does things before, after and twice when they may be done once at a certain time.
func (a *arena) wrongOrder(t *testing.T) {
	ends := func(what string, s *client.Script, message []byte, most int64) {
		t.Helper()
		s.Write(message)
		if came, err := s.Ended(gone); err != nil || came > most {
			t.Errorf("%s: %d bytes came, %v", what, came, err)
		}
		s.Close()
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	read := client.Request(false, client.CmdRead, 0, 1, 0, 512)
	open := client.Option(client.OptGo, client.GoData("good"))

	for _, flags := range []uint32{4, 1 << 16, 1 << 31, 1<<32 - 1} {
		s, err := client.Connect("tcp", a.s.TCP(), "")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Greet(flags); err != nil {
			t.Fatal(err)
		}
		ends(fmt.Sprintf("unknown client flags %#x", flags), s, client.Option(client.OptList, nil), 0)
	}
	ends("a request in place of an option", a.greeted(t), join(read, make([]byte, 100)), 0)
	ends("an option after GO", a.attach("good", client.Terms{}), join(open, make([]byte, 100)), 0)
	ends("LIST after GO", a.attach("good", client.Terms{Extended: true}), join(client.Option(client.OptList, nil), make([]byte, 100)), 0)
	ends("ABORT, then more", a.greeted(t), join(client.Option(client.OptAbort, nil), client.Option(client.OptList, nil), open, read), 20)
	ends("an extended request where none was agreed", a.attach("good", client.Terms{Structured: true}), client.Request(true, client.CmdRead, 0, 1, 0, 512), 0)
	ends("a compact request where extended ones were agreed", a.attach("good", client.Terms{Extended: true}), join(read, make([]byte, 4)), 0)
	ends("a bad option magic", a.greeted(t), join([]byte("IHAVEOPS"), make([]byte, 100)), 0)
	ends("a bad request magic, after a good one", a.attach("good", client.Terms{}), join(read, make([]byte, 28), read), 16+512)

	s := a.greeted(t)
	steps := []struct {
		what string
		code uint32
		data []byte
		want uint32
	}{
		{"STARTTLS where it is off", client.OptStartTLS, nil, client.RepErrPolicy},
		{"STARTTLS a second time", client.OptStartTLS, nil, client.RepErrPolicy},
		{"SET_META_CONTEXT before STRUCTURED_REPLY", client.OptSetMeta, client.MetaData("evil", "base:allocation"), client.RepErrInvalid},
		{"LIST_META_CONTEXT before STRUCTURED_REPLY", client.OptListMeta, client.MetaData("evil"), client.RepErrInvalid},
		{"INFO", client.OptInfo, client.GoData("evil", 0, 1, 2, 3, 4, 65535), client.RepAck},
		{"INFO of another", client.OptInfo, client.GoData("good"), client.RepAck},
		{"STRUCTURED_REPLY", client.OptStructured, nil, client.RepAck},
		{"STRUCTURED_REPLY a second time", client.OptStructured, nil, client.RepAck},
		{"SET_META_CONTEXT", client.OptSetMeta, client.MetaData("evil", "base:allocation"), client.RepAck},
		{"a failing SET_META_CONTEXT drops what was selected", client.OptSetMeta, client.MetaData("nosuch", "base:allocation"), client.RepErrUnknown},
		{"SET_META_CONTEXT again", client.OptSetMeta, client.MetaData("evil", "base:allocation", "nosuch:x", "base:"), client.RepAck},
		{"INFO between", client.OptInfo, client.GoData("good"), client.RepAck},
		{"GO to another export", client.OptGo, client.GoData("good"), client.RepAck},
	}
	for _, step := range steps {
		if kind, text, err := s.Ask(step.code, step.data); err != nil || kind != step.want {
			t.Fatalf("%s: answer %#x %q, %v; want %#x", step.what, kind, text, err, step.want)
		}
	}
	s.Structured = true
	if r, err := s.Do(client.CmdBlockStatus, 0, 32*mib, 4096, nil); err != nil || r.Errno != 22 {
		t.Errorf("BLOCK_STATUS with contexts selected for another export: error %d, %v; want EINVAL", r.Errno, err)
	}
	must(t, s, client.CmdRead, 0, 32*mib, 4096, nil)
	s.Close()
	a.oldClients(t)

	// All of a session at once, before a word of the server was read.
	s, err := client.Connect("tcp", a.s.TCP(), "")
	if err != nil {
		t.Fatal(err)
	}
	ends("all of a session in one packet", s, join([]byte{0, 0, 0, 3}, client.Option(client.OptList, nil), open, read, client.Request(false, client.CmdDisc, 0, 2, 0, 0)), 2048)
}

// oldClients are not fixed newstyle, or want the 124 zeroes.
func (a *arena) oldClients(t *testing.T) {
	for _, flags := range []uint32{0, 1, 2, 3} {
		s, err := client.Connect("tcp", a.s.TCP(), "")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Greet(flags); err != nil {
			t.Fatal(err)
		}
		want := 10
		if flags&2 == 0 {
			want += 124
		}
		s.Write(append(client.Option(client.OptExportName, []byte("good")), client.Request(false, client.CmdDisc, 0, 1, 0, 0)...))
		if came, err := s.Ended(gone); err != nil || came != int64(want) {
			t.Errorf("EXPORT_NAME with client flags %d: %d bytes came (%v), want %d", flags, came, err, want)
		}
		s.Close()
	}
}
