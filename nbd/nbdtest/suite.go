package nbdtest

import (
	"bytes"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"

	"lunar/nbd"
)

// suiteSize is how much of an export the suite uses; it must not be smaller.
const suiteSize = 8 << 20

// Suite holds any device to the protocol. open returns a backend and the name of
// an export in it of at least 8 MiB, fresh for each call; its content does not
// matter. A read-only export is held to what read-only exports must do.
func Suite(t *testing.T, open func(t *testing.T) (nbd.Backend, string)) {
	run := func(name string, f func(t *testing.T, addr net.Addr, export string)) {
		t.Run(name, func(t *testing.T) {
			backend, export := open(t)
			_, addr := Serve(t, nbd.Options{Backend: backend}, nbd.ListenerOptions{})
			f(t, addr, export)
		})
	}
	backend, export := open(t)
	_, addr := Serve(t, nbd.Options{Backend: backend}, nbd.ListenerOptions{})
	probe := Attach(t, addr, export, false)
	readOnly := probe.Flags&2 != 0
	probe.Disc()
	run("bounds", suiteBounds)
	run("list", suiteList)
	if readOnly {
		run("read-only", suiteReadOnly)
		return
	}
	for name, structured := range map[string]bool{"simple": false, "structured": true} {
		run("model/"+name, func(t *testing.T, addr net.Addr, export string) {
			suiteModel(t, Attach(t, addr, export, structured))
		})
	}
	run("model/extended", func(t *testing.T, addr net.Addr, export string) {
		c := Dial(t, addr)
		c.MustAck(OptExtended, nil)
		c.Structured, c.Extended = true, true
		c.Go(export)
		suiteModel(t, c)
	})
	run("changed", suiteChanged)
	run("sizes", suiteSizes)
	run("connections", suiteConnections)
	run("allocation", suiteAllocation)
	run("pipeline", suitePipeline)
}

// suiteBounds: everything outside the export is refused, and the session lives on.
func suiteBounds(t *testing.T, addr net.Addr, export string) {
	c := Attach(t, addr, export, true)
	readOnly := c.Flags&2 != 0
	for _, typ := range []uint16{CmdRead, CmdWrite, CmdTrim, CmdZero, CmdCache} {
		for _, r := range [][2]uint64{{c.Size, 1}, {c.Size - 1, 2}, {1<<64 - 1, 2}, {1 << 63, 512}, {c.Size + 1, 0}} {
			var payload []byte
			want := uint32(EINVAL)
			switch typ {
			case CmdWrite:
				payload = make([]byte, r[1])
				want = ENOSPC
			case CmdZero:
				want = ENOSPC
			}
			if readOnly && typ != CmdRead && typ != CmdCache {
				want = EPERM
			}
			if got := c.Do(0, typ, r[0], r[1], payload); got.Errno != want {
				t.Errorf("command %d at %d+%d: error %d, not %d", typ, r[0], r[1], got.Errno, want)
			}
		}
	}
	c.Read(c.Size-1, 1)
	c.Must(0, CmdRead, c.Size, 0, nil)
	c.Must(0, CmdCache, 0, 1<<20, nil)
	c.Must(0, CmdFlush, 0, 0, nil)
	c.Disc()
}

func suiteList(t *testing.T, addr net.Addr, export string) {
	c := Dial(t, addr)
	found := false
	for _, r := range c.Option(OptList, nil) {
		if r.Type == RepServer && string(r.Data[4:4+be.Uint32(r.Data)]) == export {
			found = true
		}
	}
	if !found {
		t.Errorf("%q is not in the list", export)
	}
	c.MustAck(OptAbort, nil)
}

func suiteReadOnly(t *testing.T, addr net.Addr, export string) {
	c := Attach(t, addr, export, true)
	before := c.Read(0, 64<<10)
	payload := make([]byte, 4096)
	for _, typ := range []uint16{CmdWrite, CmdTrim, CmdZero} {
		p := payload
		if typ != CmdWrite {
			p = nil
		}
		if r := c.Do(0, typ, 0, 4096, p); r.Errno != EPERM {
			t.Errorf("command %d on a read-only export: error %d", typ, r.Errno)
		}
	}
	if !bytes.Equal(c.Read(0, 64<<10), before) {
		t.Error("the content has changed")
	}
	c.Disc()
}

// suiteModel compares random requests with a plain array.
func suiteModel(t *testing.T, c *Client) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	c.Must(0, CmdZero, 0, suiteSize, nil)
	model := make([]byte, suiteSize)
	known := true // TRIM leaves content undefined: the model learns it
	for range 400 {
		n := 1 << rng.IntN(18)
		n += rng.IntN(n)
		off := rng.IntN(suiteSize - n)
		if rng.IntN(2) == 0 {
			off &^= 4095
		}
		at, flags := uint64(off), uint16(rng.IntN(2)*FlagFUA)
		switch rng.IntN(8) {
		case 0, 1, 2:
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			c.Must(flags, CmdWrite, at, uint64(n), p)
			copy(model[off:], p)
		case 3:
			flags |= uint16(rng.IntN(2) * FlagNoHole)
			if c.Flags&(1<<11) != 0 {
				flags |= uint16(rng.IntN(2) * FlagFastZero)
			}
			switch r := c.Do(flags, CmdZero, at, uint64(n), nil); {
			case r.Errno == 0:
				clear(model[off : off+n])
			case r.Errno != ENOTSUP || flags&FlagFastZero == 0:
				t.Fatalf("WRITE_ZEROES %#x %d+%d: error %d %s", flags, off, n, r.Errno, r.Text)
			}
		case 4:
			c.Must(flags, CmdTrim, at, uint64(n), nil)
			copy(model[off:], c.Read(at, n))
		case 5:
			c.Must(0, CmdFlush, 0, 0, nil)
		default:
			known = bytes.Equal(c.Read(at, n), model[off:off+n])
		}
		if !known {
			t.Fatalf("READ %d+%d differs from the model", off, n)
		}
	}
	if !bytes.Equal(c.Read(0, suiteSize), model) {
		t.Error("the whole content differs from the model")
	}
	c.Disc()
}

// suiteSizes: writes and reads around every limit of the server's paths.
func suiteSizes(t *testing.T, addr net.Addr, export string) {
	for _, structured := range []bool{false, true} {
		c := Attach(t, addr, export, structured)
		for _, n := range []int{1, 511, 512, 4095, 4096, 65535, 65536, 65537, 69632, 256<<10 - 28, 256 << 10, 1<<20 + 1, 4 << 20} {
			for _, off := range []uint64{0, 1, 4096} {
				p := bytes.Repeat([]byte{byte(n), byte(off), 3, 5, 7}, n/5+1)[:n]
				c.Write(off, p)
				if !bytes.Equal(c.Read(off, n), p) {
					t.Errorf("%d bytes at %d came back changed", n, off)
				}
				c.Must(FlagFUA, CmdWrite, off, uint64(n), p)
			}
		}
		c.Must(0, CmdWrite, 0, 0, nil)
		c.Must(0, CmdTrim, 0, 0, nil)
		c.Must(0, CmdZero, 0, 0, nil)
		c.Disc()
	}
}

// suiteConnections: what one connection was told is done, all others see.
func suiteConnections(t *testing.T, addr net.Addr, export string) {
	const clients = 4
	var wg sync.WaitGroup
	for i := range clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := Attach(t, addr, export, i%2 == 0)
			if c.Flags&(1<<8) == 0 {
				t.Error("CAN_MULTI_CONN is not offered")
			}
			other := Attach(t, addr, export, true)
			for j := range 50 {
				off := uint64(i*suiteSize/clients + j*4096)
				p := bytes.Repeat([]byte{byte(i*50 + j)}, 4096)
				c.Write(off, p)
				if !bytes.Equal(other.Read(off, 4096), p) {
					t.Errorf("connection %d: the other one reads old data", i)
				}
				if j%10 == 0 {
					other.Must(0, CmdFlush, 0, 0, nil)
				}
			}
			c.Disc()
			other.Disc()
		}()
	}
	wg.Wait()
}

// Status sends a BLOCK_STATUS and returns the extents of its only context.
func (c *Client) Status(flags uint16, off, n uint64) (list [][2]uint64) {
	c.T.Helper()
	r := c.Do(flags, CmdStatus, off, n, nil)
	if r.Errno != 0 || len(r.Chunks) != 1 {
		c.T.Fatalf("BLOCK_STATUS: error %d %s, %d chunks", r.Errno, r.Text, len(r.Chunks))
	}
	p := r.Chunks[0].Data[4:]
	if c.Extended {
		p = p[4:]
	}
	for len(p) > 0 {
		if c.Extended {
			list = append(list, [2]uint64{be.Uint64(p), be.Uint64(p[8:])})
			p = p[16:]
			continue
		}
		list = append(list, [2]uint64{uint64(be.Uint32(p)), uint64(be.Uint32(p[4:]))})
		p = p[8:]
	}
	return list
}

// suiteAllocation: base:allocation never calls data zero, and a zeroed range is
// known to be zero.
func suiteAllocation(t *testing.T, addr net.Addr, export string) {
	c := Dial(t, addr)
	c.MustAck(OptStructuredReply, nil)
	c.Structured = true
	if list := c.Option(OptSetMeta, MetaData(export, "base:allocation")); len(list) != 2 || list[0].Type != RepMeta {
		t.Fatalf("SET_META_CONTEXT: %v", list)
	}
	c.Go(export)
	c.Must(0, CmdZero, 0, suiteSize, nil)
	p := bytes.Repeat([]byte{0xa5}, 64<<10)
	for _, off := range []uint64{0, 1 << 20, 5<<20 + 4096} {
		c.Write(off, p)
	}
	at, zero := uint64(0), uint64(0)
	content := c.Read(0, suiteSize)
	for at < suiteSize {
		for _, e := range c.Status(0, at, suiteSize-at) {
			if e[0] == 0 {
				t.Fatal("extent of length 0")
			}
			if e[1]&2 != 0 {
				zero += e[0]
				if len(bytes.Trim(content[at:min(at+e[0], suiteSize)], "\x00")) != 0 {
					t.Fatalf("data at %d is reported as zero", at)
				}
			}
			at += e[0]
		}
	}
	if zero < suiteSize/2 {
		t.Errorf("only %d bytes are reported as zero", zero)
	}
	if list := c.Status(FlagReqOne, 4096, 8192); len(list) != 1 || list[0][0] > 8192 {
		t.Errorf("REQ_ONE: %v", list)
	}
	c.Disc()
}

// suiteChanged: of an export that compares with snapshots, what is written is
// changed from then on, over the whole range once and in one order.
func suiteChanged(t *testing.T, addr net.Addr, export string) {
	c := Dial(t, addr)
	c.MustAck(OptStructuredReply, nil)
	c.Structured = true
	list := c.Option(OptListMeta, MetaData(export, "lunar:changed:"))
	if len(list) < 2 {
		t.Log("no snapshots to compare with")
		return
	}
	for _, prefix := range []string{"lunar:changed:", "qemu:dirty-bitmap:"} {
		name := prefix + strings.TrimPrefix(string(list[0].Data[4:]), "lunar:changed:")
		c := Dial(t, addr)
		c.MustAck(OptStructuredReply, nil)
		c.Structured = true
		if r := c.Option(OptSetMeta, MetaData(export, name)); len(r) != 2 || string(r[0].Data[4:]) != name {
			t.Fatalf("SET_META_CONTEXT %s: %v", name, r)
		}
		c.Go(export)
		p := make([]byte, 4096)
		for i := range p {
			p[i] = byte(rand.Uint32())
		}
		for _, block := range []uint64{3, 700, suiteSize/4096 - 1} {
			c.Write(block*4096, p)
			if s := c.Status(FlagReqOne, block*4096, 4096); len(s) != 1 || s[0] != [2]uint64{4096, 1} {
				t.Errorf("%s: block %d was written and is %v", name, block, s)
			}
		}
		for at := uint64(0); at < suiteSize; {
			for _, e := range c.Status(0, at, suiteSize-at) {
				if e[0] == 0 || e[1] > 1 {
					t.Fatalf("%s: extent %v", name, e)
				}
				at += e[0]
			}
		}
		c.Disc()
	}
}

// suitePipeline: many requests at once, FLUSH and FUA among them, each answered
// once.
func suitePipeline(t *testing.T, addr net.Addr, export string) {
	c := Attach(t, addr, export, false)
	const n = 300
	block := bytes.Repeat([]byte{9}, 4096)
	go func() {
		for i := range uint64(n) {
			var b []byte
			switch i % 6 {
			case 0:
				b = c.Request(0, CmdFlush, i, 0, 0)
			case 1:
				b = append(c.Request(FlagFUA, CmdWrite, i, i*4096, 4096), block...)
			case 2:
				b = c.Request(FlagFUA, CmdTrim, i, i*4096, 4096)
			default:
				b = append(c.Request(0, CmdWrite, i, i*4096, 4096), block...)
			}
			if _, err := c.Conn.Write(b); err != nil {
				return
			}
		}
	}()
	seen := map[uint64]bool{}
	for range n {
		r := c.Receive(0)
		if r.Errno != 0 || seen[r.Cookie] {
			t.Fatalf("reply %d: error %d, seen %v", r.Cookie, r.Errno, seen[r.Cookie])
		}
		seen[r.Cookie] = true
	}
	c.Disc()
}
