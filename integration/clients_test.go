package integration

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"lunar/integration/harness"
)

// TestNbdinfo: what libnbd's own tool sees.
func TestNbdinfo(t *testing.T) {
	harness.Need(t, "nbdinfo")
	s := harness.Start(t, "--capacity", "8G")
	s.Lunar("lun", "create", "disk", "1G", "--description", "the disk of a test")
	s.Lunar("lun", "create", "other", "16M", "--read-only")
	c := s.Dial("disk")
	p := make([]byte, mib)
	fill(p, 1)
	if err := c.Write(p, 512*mib, true); err != nil {
		t.Fatal(err)
	}
	s.Lunar("snapshot", "create", "disk@a")

	var info struct {
		Protocol string `json:"protocol"`
		Exports  []struct {
			Name        string `json:"export-name"`
			Description string `json:"description"`
			Size        int64  `json:"export-size"`
			ReadOnly    bool   `json:"is_read_only"`
			Flush       bool   `json:"can_flush"`
			FUA         bool   `json:"can_fua"`
			Trim        bool   `json:"can_trim"`
			Zero        bool   `json:"can_zero"`
			MultiConn   bool   `json:"can_multi_conn"`
			Minimum     int64  `json:"block_size_minimum"`
			Preferred   int64  `json:"block_size_preferred"`
			Maximum     int64  `json:"block_size_maximum"`
		} `json:"exports"`
	}
	out := harness.Tool(t, "nbdinfo", "--json", s.URI("disk"))
	if err := json.Unmarshal([]byte(out), &info); err != nil || len(info.Exports) != 1 {
		t.Fatalf("nbdinfo --json: %v\n%s", err, out)
	}
	e := info.Exports[0]
	if info.Protocol != "newstyle-fixed" || e.Size != gib || e.ReadOnly || !e.Flush || !e.FUA || !e.Trim || !e.Zero || !e.MultiConn {
		t.Errorf("nbdinfo: %s", out)
	}
	if e.Minimum < 1 || e.Minimum > 512 || e.Preferred != 4096 || e.Maximum < mib {
		t.Errorf("block sizes %d, %d, %d", e.Minimum, e.Preferred, e.Maximum)
	}
	list := harness.Tool(t, "nbdinfo", "--list", "--json", "nbd+unix:///?socket="+s.Socket)
	for _, name := range []string{`"disk"`, `"other"`, `"disk@a"`} {
		if !strings.Contains(list, name) {
			t.Errorf("nbdinfo --list does not name %s:\n%s", name, list)
		}
	}
	for _, export := range []string{"other", "disk@a"} {
		if out := harness.Tool(t, "nbdinfo", "--is", "read-only", s.URI(export)); out != "" {
			t.Errorf("%s is not read-only: %s", export, out)
		}
	}
	if s.LUN("disk").Description != "the disk of a test" {
		t.Error("the description is lost")
	}

	// base:allocation: a hole, 1 MiB of data, a hole.
	var extents []struct {
		Offset, Length int64
		Type           int
	}
	out = harness.Tool(t, "nbdinfo", "--map", "--json", s.URI("disk"))
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		t.Fatalf("nbdinfo --map: %v\n%s", err, out)
	}
	if len(extents) != 3 || extents[0].Type != 3 || extents[1].Offset != 512*mib || extents[1].Length != mib || extents[1].Type != 0 || extents[2].Type != 3 {
		t.Errorf("nbdinfo --map: %+v, want hole, 1 MiB of data at 512 MiB, hole", extents)
	}
}

// TestQemu: qemu-io writes patterns of any alignment and reads them back; qemu-img sees holes; a snapshot compares
// equal to what was written.
func TestQemu(t *testing.T) {
	harness.Need(t, "qemu-io", "qemu-img")
	s := harness.Start(t, "--capacity", "8G")
	s.Lunar("lun", "create", "disk", "256M")
	script := []string{"-f", "raw"}
	for _, command := range []string{
		"write -P 0x11 0 64k", "write -P 0x22 1000 3000", "write -P 0x33 4095 2", "write -P 0x44 1M 4M", "write -P 0x55 1049087 513",
		"read -P 0x11 0 1000", "read -P 0x22 1000 3000", "read -P 0x11 4000 95", "read -P 0x33 4095 2", "read -P 0x11 4097 61439",
		"write -z 2M 64k", "read -P 0 2M 64k", "write -zu 3M 1M", "read -P 0 3M 1M", "discard 4M 512k", "read -P 0x44 1048576 511", "read -P 0x55 1049087 513",
		"write -f -P 0x66 128M 4k", "flush", "read -P 0 200M 1M", "write -P 0x77 268434944 512", "read -P 0x77 268434944 512",
	} {
		script = append(script, "-c", command)
	}
	out := harness.Tool(t, "qemu-io", append(script, s.URI("disk"))...)
	if strings.Contains(out, "Pattern verification failed") {
		t.Errorf("qemu-io:\n%s", out)
	}
	s.Lunar("snapshot", "create", "disk@a")
	harness.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", s.URI("disk"), s.URI("disk@a"))
	harness.Tool(t, "qemu-io", "-f", "raw", "-c", "write -P 0x99 64M 4k", s.URI("disk"))
	if _, err := harness.Try("qemu-img", "compare", "-f", "raw", "-F", "raw", s.URI("disk"), s.URI("disk@a")); err == nil {
		t.Error("qemu-img compare finds no difference after a write")
	}
	var extents []struct {
		Start, Length int64
		Data, Zero    bool
	}
	text := harness.Tool(t, "qemu-img", "map", "-f", "raw", "--output=json", s.URI("disk@a"))
	if err := json.Unmarshal([]byte(text), &extents); err != nil {
		t.Fatal(err)
	}
	data := int64(0)
	for _, e := range extents {
		if e.Data {
			data += e.Length
		}
	}
	if data == 0 || data > 8*mib {
		t.Errorf("qemu-img map sees %d bytes of data, want some 4 MiB: %s", data, text)
	}
	if info := harness.Tool(t, "qemu-img", "info", "-f", "raw", s.URI("disk")); !strings.Contains(info, "256 MiB") {
		t.Errorf("qemu-img info: %s", info)
	}
	s.Lunar("snapshot", "create", "disk@b")
	if out, err := harness.Try("qemu-io", "-f", "raw", "-c", "write 0 4k", s.URI("disk@b")); err == nil && !strings.Contains(out, "failed") {
		t.Errorf("qemu-io wrote to a snapshot: %s", out)
	}
}

// TestFioVerify: fio's own checksums over random writes of several sizes, several connections.
func TestFioVerify(t *testing.T) {
	harness.Need(t, "fio")
	s := harness.Start(t, "--capacity", "8G")
	s.Lunar("lun", "create", "disk", "256M")
	for i, blocks := range []string{"4k", "512-64k", "4k-1M"} {
		harness.Tool(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+s.URI("disk"), "--rw=randwrite", "--bsrange="+ranged(blocks), "--bs_unaligned=0",
			"--iodepth=16", "--size=128M", fmt.Sprintf("--offset=%dM", 32*i), "--io_size=64M", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
			fmt.Sprintf("--randseed=%d", i+1), "--fsync=64", "--output-format=terse", "--aux-path="+harness.TempDir(t))
	}
	harness.Tool(t, "fio", "--name=jobs", "--ioengine=nbd", "--uri="+s.URI("disk"), "--rw=randrw", "--bs=4k", "--iodepth=8", "--numjobs=4", "--size=32M",
		"--offset_increment=64M", "--verify=crc32c", "--verify_fatal=1", "--output-format=terse", "--aux-path="+harness.TempDir(t))
}

func ranged(blocks string) string {
	if strings.Contains(blocks, "-") {
		return blocks
	}
	return blocks + "-" + blocks
}

// TestNbdsh: libnbd from Python, with the structured replies, several connections and asynchronous commands.
func TestNbdsh(t *testing.T) {
	harness.Need(t, "nbdsh")
	s := harness.Start(t, "--capacity", "8G")
	s.Lunar("lun", "create", "disk", "64M")
	// Debian's python3 has the nbd module, another one in front of it in PATH has not.
	out := harness.Tool(t, "env", "PATH=/usr/bin:/bin", "nbdsh", "-u", s.URI("disk"), "-c", `
import nbd, os
assert h.get_size() == 64 << 20
assert h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero() and h.can_multi_conn() and not h.is_read_only()
print("structured replies:", h.get_structured_replies_negotiated())
data = os.urandom(1 << 20)
h.pwrite(data, 777)
assert h.pread(1 << 20, 777) == data
h.pwrite(data[:512], 8 << 20, nbd.CMD_FLAG_FUA)
h.zero(4096, 100 * 1024)
assert h.pread(8192, 100 * 1024 - 4096)[4096:] == bytes(4096)
h.trim(1 << 20, 16 << 20)
h.flush()

# Writes of one connection are seen by another after their answers.
g = nbd.NBD()
g.connect_uri(h.get_uri())
g.pwrite(b"x" * 4096, 32 << 20)
assert h.pread(4096, 32 << 20) == b"x" * 4096

# Many in flight.
buffers = [(nbd.Buffer.from_bytearray(bytearray(os.urandom(4096))), i * 4096) for i in range(200)]
cookies = [h.aio_pwrite(b, (40 << 20) + o) for b, o in buffers]
while cookies:
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
    if cookies: h.poll(1000)
for b, o in buffers:
    assert h.pread(4096, (40 << 20) + o) == b.to_bytearray()

# Refused, and the connection goes on.
for bad in (lambda: h.pread(4096, 64 << 20), lambda: h.pwrite(b"1" * 4096, (64 << 20) - 512)):
    try:
        h.set_strict_mode(0)
        bad()
        raise SystemExit("a request beyond the end was served")
    except nbd.Error as e:
        assert e.errno in ("EINVAL", "ENOSPC"), e.errno
assert h.get_size() == 64 << 20 and h.pread(4096, 32 << 20) == b"x" * 4096
print("ok")
`)
	if !strings.Contains(out, "ok") {
		t.Errorf("nbdsh: %s", out)
	}
	t.Log(strings.TrimSpace(out))
}

// TestNbdcopyConnections: four connections out and in.
func TestNbdcopyConnections(t *testing.T) {
	harness.Need(t, "nbdcopy")
	path, sum := realImage(t)
	s := harness.Start(t, "--capacity", "8G")
	s.Lunar("lun", "create", "a", imageSize())
	s.Lunar("lun", "create", "b", imageSize())
	harness.Tool(t, "nbdcopy", "-C", "4", "--flush", path, s.URI("a"))
	harness.Tool(t, "nbdcopy", "-C", "4", "--flush", s.URI("a"), s.URI("b"))
	out := filepath.Join(harness.TempDir(t), "b.img")
	harness.Tool(t, "nbdcopy", "-C", "4", s.URI("b"), out)
	sameFile(t, "nbdcopy -C 4 through two LUNs", out, sum)
}
