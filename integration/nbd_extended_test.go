package integration

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"lunar/integration/client"
	"lunar/integration/harness"
)

// TestExtendedHeaders: 64-bit requests and block status, byte by byte, on a LUN of 8 TiB.
func TestExtendedHeaders(t *testing.T) {
	const size = uint64(8 << 40)
	s := harness.Start(t, "--capacity", "4G")
	s.Lunar("lun", "create", "big", "8T")
	attach := func(export string, contexts ...string) *client.Script {
		c, err := client.Greeted("unix", s.Socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.Attach(export, client.Terms{Extended: true, Contexts: contexts}); err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := attach("big", "base:allocation")
	if uint64(c.Size) != size {
		t.Fatalf("size %d, want %d", c.Size, size)
	}
	data := make([]byte, 3*mib)
	fill(data, 5)
	for _, off := range []uint64{0, 5 << 40, size - 3*mib} {
		must(t, c, client.CmdWrite, client.CmdPayloadLen, off, 3*mib, data)
	}
	must(t, c, client.CmdFlush, 0, 0, 0, nil)
	s.Lunar("snapshot", "create", "big@a")

	status := func(c *client.Script, id uint32, flags uint16, off, n uint64) []client.Extent {
		t.Helper()
		list, err := must(t, c, client.CmdBlockStatus, flags, off, n, nil).Extents(id)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	const hole = 3
	want := []client.Extent{{Length: 3 * mib}, {Length: 5<<40 - 3*mib, State: hole}, {Length: 3 * mib}, {Length: 3<<40 - 6*mib, State: hole}, {Length: 3 * mib}}
	if got := status(c, 1, 0, 0, size); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("BLOCK_STATUS of 8 TiB: %v, want %v", got, want)
	}
	if got := status(c, 1, client.CmdReqOne, 3*mib, size-3*mib); fmt.Sprint(got) != fmt.Sprint(want[1:2]) {
		t.Errorf("BLOCK_STATUS with REQ_ONE: %v, want %v", got, want[1:2])
	}

	// Holes within a READ of the largest size, and data on both sides of them.
	whole := make([]byte, 32*mib)
	copy(whole, data)
	if got, err := must(t, c, client.CmdRead, 0, 0, 32*mib, nil).Bytes(0, 32*mib); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("READ of 32 MiB with a hole: %v", err)
	}
	r := must(t, c, client.CmdRead, client.CmdDF, 0, 32*mib, nil)
	if got, err := r.Bytes(0, 32*mib); err != nil || !bytes.Equal(got, whole) || len(r.Chunks) != 1 {
		t.Errorf("READ of 32 MiB with DF: %d chunks, %v", len(r.Chunks), err)
	}

	// More than 4 GiB in one request; what changed is told in one extent.
	must(t, c, client.CmdTrim, 0, 1<<40, 6<<40, nil)
	must(t, c, client.CmdZero, client.CmdFUA, 1<<40, 2<<40, nil)
	must(t, c, client.CmdCache, 0, 0, size, nil)
	two := attach("big", "base:allocation", "lunar:changed:a")
	both := must(t, two, client.CmdBlockStatus, 0, 0, size, nil)
	allocation, err1 := both.Extents(1)
	changed, err2 := both.Extents(2)
	if err1 != nil || err2 != nil {
		t.Fatalf("BLOCK_STATUS of two contexts: %v, %v", err1, err2)
	}
	want = []client.Extent{{Length: 3 * mib}, {Length: size - 6*mib, State: hole}, {Length: 3 * mib}}
	if fmt.Sprint(allocation) != fmt.Sprint(want) {
		t.Errorf("after TRIM and ZERO: %v, want %v", allocation, want)
	}
	var dirty, covered uint64
	for _, e := range changed {
		covered += e.Length
		if e.State == 1 {
			dirty += e.Length
		}
	}
	if covered != size || dirty < 3*mib {
		t.Errorf("changed since the snapshot: %v", changed)
	}

	// Only one of the two, by payload.
	payload := binary.BigEndian.AppendUint64(nil, size)
	payload = binary.BigEndian.AppendUint32(payload, 2)
	one := must(t, two, client.CmdBlockStatus, client.CmdPayloadLen, 0, uint64(len(payload)), payload)
	if list, err := one.Extents(2); err != nil || len(one.Chunks) != 1 || fmt.Sprint(list) != fmt.Sprint(changed) {
		t.Errorf("BLOCK_STATUS of one context by payload: %d chunks, %v, %v", len(one.Chunks), list, err)
	}
}

// tap is a proxy before a server's socket that keeps what clients send.
type tap struct {
	socket string
	mu     sync.Mutex
	sent   bytes.Buffer
}

func newTap(t *testing.T, to string) *tap {
	t.Helper()
	p := &tap{socket: filepath.Join(harness.TempDir(t), "tap")}
	listener, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", to)
			if err != nil {
				in.Close()
				continue
			}
			go func() {
				io.Copy(io.MultiWriter(out, p), in)
				out.(*net.UnixConn).CloseWrite()
			}()
			go func() {
				io.Copy(in, out)
				in.Close()
				out.Close()
			}()
		}
	}()
	return p
}

func (p *tap) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent.Write(b)
}

func (p *tap) has(b []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Contains(p.sent.Bytes(), b)
}

// TestQemu10: qemu of 8.2 or later asks for extended headers and uses them, and everything is as with the older one.
func TestQemu10(t *testing.T) {
	img := harness.Qemu10(t)
	io := filepath.Join(filepath.Dir(img), "qemu-io")
	s := harness.Start(t, "--capacity", "4G")
	s.Lunar("lun", "create", "disk", "1T")
	p := newTap(t, s.Socket)
	uri := "nbd+unix:///disk?socket=" + p.socket
	args := []string{"-f", "raw", "-d", "unmap"}
	for _, command := range []string{
		"write -P 0x11 0 64k", "write -P 0x22 1000 3000", "write -P 0x44 1M 4M", "write -z 2M 64k", "read -P 0 2M 64k", "write -zu 3M 1M", "read -P 0 3M 1M",
		"discard 4M 512k", "read -P 0x22 1000 3000", "read -P 0x11 4000 60k", "write -f -P 0x66 600G 4k", "write -P 0x55 100G 32M", "read -P 0x55 100G 32M", "flush",
		"discard 99G 2047M", "read -P 0 100G 32M", "read -P 0x66 600G 4k", "write -P 0x77 1099511627264 512", "read -P 0x77 1099511627264 512",
	} {
		args = append(args, "-c", command)
	}
	if out := harness.Tool(t, io, append(args, uri)...); strings.Contains(out, "failed") {
		t.Errorf("qemu-io:\n%s", out)
	}
	if !p.has(client.Option(client.OptExtended, nil)) || !p.has([]byte{0x21, 0xe4, 0x1c, 0x71}) || p.has([]byte{0x25, 0x60, 0x95, 0x13}) {
		t.Errorf("%s did not ask for extended headers, or did not use them", io)
	}
	s.Lunar("snapshot", "create", "disk@a")
	qemuIO(t, s.URI("disk"), "write -P 9 1M 1M")
	sameRuns(t, "qemu-img map of both versions", asQemu(qemuMap(t, img, "-f", "raw", uri)), asQemu(qemuMap(t, "qemu-img", "-f", "raw", s.URI("disk"))))
	want := diffRuns(t, s, 1<<40, "disk@a", "disk")
	sameRuns(t, "changed blocks", bitmapMap(t, img, p.socket, "disk", "qemu:dirty-bitmap:a"), want)
	if _, err := harness.Try(img, "compare", "-f", "raw", "-F", "raw", uri, s.URI("disk")); err != nil {
		t.Error(err)
	}
	out := filepath.Join(harness.TempDir(t), "out.qcow2")
	harness.Tool(t, img, "convert", "-f", "raw", "-O", "qcow2", uri, out)
	harness.Tool(t, img, "compare", "-f", "qcow2", "-F", "raw", out, s.URI("disk"))
	s.Lunar("lun", "create", "back", "1T")
	harness.Tool(t, img, "convert", "-n", "-f", "qcow2", "-O", "raw", out, "nbd+unix:///back?socket="+p.socket)
	harness.Tool(t, img, "compare", "-f", "raw", "-F", "raw", s.URI("back"), s.URI("disk"))
}
