package guest

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lunar/integration/harness"
)

//go:embed rootinit.sh
var rootInit []byte

// rootImage is a small ext4 with a busybox system in it.
func rootImage(t *testing.T) string {
	t.Helper()
	harness.Need(t, "mkfs.ext4")
	tree := harness.TempDir(t)
	for _, dir := range []string{"bin", "sbin", "dev", "proc", "sys", "tmp", "data", "vol"} {
		if err := os.Mkdir(filepath.Join(tree, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: run `make tools` (busybox-static)", err)
	}
	for name, data := range map[string][]byte{"bin/busybox": busybox, "sbin/init": rootInit, "bin/write": []byte(writeScript), "bin/verify": []byte(verifyScript)} {
		if err := os.WriteFile(filepath.Join(tree, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("busybox", filepath.Join(tree, "bin/sh")); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(harness.TempDir(t), "root.img")
	harness.Tool(t, "mkfs.ext4", "-q", "-F", "-d", tree, image, "64M")
	return image
}

// write DIR: numbered blocks into one file and numbered small files beside it, each one fsync'ed before its number is
// printed, until /dev/stop is there.
const writeScript = `#!/bin/sh
i=1
until [ -e /dev/stop ]; do
	printf '%4096d' $i | dd of=$1/blocks bs=4k seek=$i conv=notrunc,fsync 2>/dev/null || exit 1
	if [ $((i % 5)) = 0 ]; then printf '%d\n' $i | dd of=$1/file$i conv=fsync 2>/dev/null || exit 1; fi
	echo $i
	i=$((i + 1))
done
`

// verify DIR TO: all of it is there, as the disk has it.
const verifyScript = `#!/bin/sh
echo 3 >/proc/sys/vm/drop_caches
i=1
while [ $i -le $2 ]; do
	printf '%4096d' $i
	i=$((i + 1))
done >/dev/shm.want
dd if=$1/blocks bs=4k skip=1 2>/dev/null | cmp - /dev/shm.want || { echo "blocks differ"; exit 1; }
i=5
while [ $i -le $2 ]; do
	[ "$(cat $1/file$i)" = $i ] || { echo "file$i: $(cat $1/file$i)"; exit 1; }
	i=$((i + 5))
done
`

// nbdDisk is a virtio disk on an export, as docs/OPERATIONS.md has it: requests wait for a server that is away.
func nbdDisk(s *harness.Server, export, device string) []string {
	return []string{
		"-blockdev", fmt.Sprintf("driver=nbd,node-name=%s,server.type=unix,server.path=%s,export=%s,reconnect-delay=60,discard=unmap", export, s.Socket, export),
		"-device", fmt.Sprintf("virtio-blk-pci,drive=%s%s", export, device),
	}
}

// attached waits until qemu has found the server again.
func attached(t *testing.T, s *harness.Server, export string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); s.LUN(export).Clients == 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("30 s after a restart nobody is attached to %s", export)
		}
	}
}

// TestBootFromLUN: a guest whose root file system is a LUN boots from it and runs on it while the server is restarted
// under its writes, three times by SIGTERM; then it writes to a second LUN through a disk without a write cache while the
// server is killed. No I/O error reaches it, whatever it fsync'ed is there, and both file systems are clean.
//
// Without the write cache, because a server that is killed loses what it has acknowledged in the last few milliseconds
// and was not flushed, as a disk loses its cache; a guest that goes on would not know.
func TestBootFromLUN(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, "--capacity", "4G")
	image := rootImage(t)
	s.Lunar("lun", "import", "root", image)
	s.Lunar("lun", "create", "vol", "64M")
	empty := filepath.Join(harness.TempDir(t), "vol.img")
	harness.Tool(t, "mkfs.ext4", "-q", "-F", empty, "64M")
	harness.Tool(t, "nbdcopy", "--flush", empty, s.URI("vol"))

	g := Boot(t, Options{Append: "lunar.root=/dev/vda", Qemu: append(nbdDisk(s, "root", ""), nbdDisk(s, "vol", ",write-cache=off")...)})
	if out := g.Run("cat /proc/mounts; cat /sys/block/vda/queue/write_cache /sys/block/vdb/queue/write_cache"); !strings.Contains(out, "/dev/vda / ext4") ||
		!strings.HasSuffix(strings.TrimSpace(out), "write back\nwrite through") {
		t.Fatalf("the guest does not run from the LUN, or not with the caches it was given:\n%s", out)
	}
	g.Run("mount -o remount,noatime /; mount -t ext4 -o noatime /dev/vdb /vol")
	began := time.Now()
	disturbed := func(dir, export string, rounds int, disturb func()) (writes int) {
		t.Helper()
		g.Run("rm -f /dev/stop")
		written := make(chan string, 1)
		go func() {
			out, status, err := g.Try("write " + dir)
			if err != nil || status != 0 {
				out = fmt.Sprintf("status %d, %v: %s", status, err, out)
			}
			written <- out
		}()
		for range rounds {
			attached(t, s, export)
			time.Sleep(500 * time.Millisecond) // of writes
			select {
			case out := <-written:
				t.Fatalf("the writes to %s ended by themselves: %.2000s", dir, out)
			default:
			}
			disturb()
		}
		attached(t, s, export)
		time.Sleep(300 * time.Millisecond)
		g.Run("touch /dev/stop")
		select {
		case out := <-written:
			lines := strings.Fields(out)
			if writes = len(lines); writes < 2*rounds || lines[writes-1] != fmt.Sprint(writes) {
				t.Fatalf("the guest's writes to %s: %.2000s", dir, out)
			}
		case <-time.After(90 * time.Second):
			t.Fatalf("the guest's writes to %s do not end\n%s", dir, g.Console())
		}
		return writes
	}
	first := disturbed("/data", "root", 3, s.Restart)
	g.Run(fmt.Sprintf("sync; verify /data %d", first))
	second := disturbed("/vol", "vol", 3, func() { s.Kill(); s.Start() })
	g.Run(fmt.Sprintf("sync; verify /vol %d; verify /data %d", second, first))
	if out := g.Run("dmesg | grep -i -E 'I/O error|ext4-fs (error|warning)|remounted read-only|blk_update' || true"); strings.TrimSpace(out) != "" {
		t.Errorf("the guest saw errors:\n%s", out)
	}
	g.Run("umount /vol; mount -o remount,ro /")
	t.Logf("up in %v; 3 restarts under %d writes and 3 kills under %d in %v", g.BootTime, first, second, time.Since(began).Round(time.Millisecond))
	g.PowerCut()
	for _, export := range []string{"root", "vol"} {
		out := filepath.Join(harness.TempDir(t), export)
		s.Lunar("lun", "export", export, out)
		harness.Tool(t, "e2fsck", "-fn", out)
	}
}
