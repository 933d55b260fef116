package guest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"lunar/integration/checker"
	"lunar/integration/client"
	"lunar/integration/harness"
)

// tcpPort is the port of a server's first TCP listener, for guests.
func tcpPort(t *testing.T, s *harness.Server) string {
	t.Helper()
	_, port, err := net.SplitHostPort(s.TCP())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func attachCommand(t *testing.T, s *harness.Server, export, device string) string {
	t.Helper()
	return fmt.Sprintf("nbd-client %s %s %s -N %s", HostAddress, tcpPort(t, s), device, export)
}

// busyWriters makes files and flushes them one after another, telling of each in /run/flushed when it is; meanwhile
// another loop leaves the file system dirty in every way that is quick.
const busyWriters = `
mkdir -p /mnt/files /mnt/junk
( n=1
  while :; do
	dd if=/bin/busybox of=/mnt/files/new bs=4k skip=$((n % 200)) count=$((n % 7 + 1)) conv=fsync 2>/dev/null || break
	mv /mnt/files/new /mnt/files/f$n
	sync /mnt/files || break
	echo $n >>/run/flushed
	n=$((n + 1))
  done ) </dev/null >/dev/null 2>&1 &
( i=0
  while :; do
	i=$((i + 1))
	dd if=/dev/urandom of=/mnt/junk/j$((i % 20)) bs=16k count=$((i % 5 + 1)) 2>/dev/null || break
	mkdir -p /mnt/junk/d$((i % 7))
	mv /mnt/junk/j$((i % 20)) /mnt/junk/d$((i % 7))/k$((i % 11))
	rm -rf /mnt/junk/d$(((i + 3) % 7))
  done ) </dev/null >/dev/null 2>&1 &
`

// checkClone mounts a clone, which replays the journal; $1 files must be there, and the file system must be clean.
const checkClone = `
e2fsck -n %[1]s 2>&1 | grep -q 'skipping journal recovery' || { echo "%[1]s needs no recovery: it was not snapshotted in mid-work"; exit 1; }
mount -t ext4 %[1]s /mnt
dmesg | grep -q "(${dev:=$(basename %[1]s)}): recovery complete" || { echo "no journal was replayed on $dev"; dmesg | tail; exit 1; }
n=1
while [ $n -le %[2]d ]; do
	dd if=/bin/busybox bs=4k skip=$((n %% 200)) count=$((n %% 7 + 1)) 2>/dev/null | cmp - /mnt/files/f$n || { echo "file $n, which was flushed, is not there as it was"; exit 1; }
	n=$((n + 1))
done
umount /mnt
e2fsck -fn %[1]s
`

// TestSnapshotWhileGuestWrites: snapshots are taken while a guest writes to an ext4, which it does not know; clones of
// them are mounted by a second guest. Their journals replay, what had been flushed is there, and they are
// clean; the first guest goes on undisturbed.
func TestSnapshotWhileGuestWrites(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, "--listen", "tcp://127.0.0.1:0", "--capacity", "4G")
	s.Lunar("lun", "create", "disk", "64M")
	writer := Boot(t, Options{})
	writer.Run(attachCommand(t, s, "disk", "/dev/nbd0") + "; mkfs.ext4 -q -F /dev/nbd0; mount -t ext4 /dev/nbd0 /mnt")
	writer.Run(busyWriters)
	flushed := func() int {
		t.Helper()
		out := strings.TrimSpace(writer.Run("cat /run/flushed 2>/dev/null | tail -1"))
		n, err := strconv.Atoi(out)
		if err != nil && out != "" {
			t.Fatal(err)
		}
		return n
	}
	reader := Boot(t, Options{}) // the writers work meanwhile
	must := []int{}
	for i := range 3 {
		n, want := flushed(), 5
		if i > 0 {
			want += must[i-1]
		}
		for began := time.Now(); n < want; n = flushed() {
			if time.Since(began) > 60*time.Second {
				t.Fatalf("only %d files were flushed", n)
			}
			time.Sleep(50 * time.Millisecond)
		}
		s.Lunar("snapshot", "create", fmt.Sprintf("disk@s%d", i))
		s.Lunar("clone", fmt.Sprintf("disk@s%d", i), fmt.Sprintf("clone%d", i))
		must = append(must, n)
	}
	for i, n := range must {
		device := fmt.Sprintf("/dev/nbd%d", i)
		out := reader.Run(attachCommand(t, s, fmt.Sprintf("clone%d", i), device) + "\n" + fmt.Sprintf(checkClone, device, n) + "\nnbd-client -d " + device)
		t.Logf("clone %d: %d files were flushed before; %s", i, n, lastLine(out))
	}
	before := flushed()
	time.Sleep(300 * time.Millisecond)
	for began := time.Now(); flushed() == before; time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			t.Fatal("the writer in the first guest has stopped")
		}
	}
}

// TestGroupSnapshotOrder: in a guest a writer puts increasing numbers on disk a, then b, then c, each only after the
// one before was answered. A snapshot of all three is of one instant, so it shows, of a, b and c, one of
//
//	n, n-1, n-1    n, n, n-1    n, n, n
//
// that is a >= b >= c >= a-1: never a number on a later disk without it on the disks before. Each disk by itself holds
// all numbers up to its newest. After kill -9 of the server the snapshots are what they were.
func TestGroupSnapshotOrder(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, "--listen", "tcp://127.0.0.1:0", "--capacity", "4G")
	disks := []string{"a", "b", "c"}
	for _, name := range disks {
		s.Lunar("lun", "create", name, "4M")
	}
	g := Boot(t, Options{Files: map[string]string{"bin/stamper": buildStamper(t)}})
	for i, name := range disks {
		g.Run(attachCommand(t, s, name, fmt.Sprintf("/dev/nbd%d", i)))
	}
	g.Run("stamper /dev/nbd0 /dev/nbd1 /dev/nbd2 </dev/null >/run/stamper 2>&1 &")
	groups := 40
	if harness.Long() {
		groups = 400
	}
	seen := make([][]uint64, groups)
	apart := 0 // groups in which the disks differ: the writer was between two of them
	for i := range groups {
		time.Sleep(time.Duration(i*7%40) * time.Millisecond)
		args := []string{"snapshot", "create"}
		for _, name := range disks {
			args = append(args, fmt.Sprintf("%s@g%d", name, i))
		}
		s.Lunar(args...)
		seen[i] = newest(t, s, disks, i)
		a, b, c := seen[i][0], seen[i][1], seen[i][2]
		if !(a >= b && b >= c && c+1 >= a) {
			t.Errorf("group %d shows %d, %d, %d: not one instant of a writer that goes a, b, c", i, a, b, c)
		}
		if a != c {
			apart++
		}
	}
	last := seen[groups-1]
	t.Logf("%d groups, %d of them with the writer between two disks; the last shows %v; up in %v", groups, apart, last, g.BootTime)
	if last[0] < seen[0][0]+uint64(groups) {
		t.Errorf("the writer wrote from %d to %d only: it was no load: %s", seen[0][0], last[0], g.Run("cat /run/stamper"))
	}
	if apart == 0 {
		t.Error("the writer was never between two disks, so the test proves nothing")
	}
	s.Kill()
	s.Start()
	for i := 0; i < groups; i += 1 + groups/20 {
		if is := newest(t, s, disks, i); fmt.Sprint(is) != fmt.Sprint(seen[i]) {
			t.Errorf("group %d showed %v before the kill and shows %v after it", i, seen[i], is)
		}
	}
}

// newest reads what the snapshots of group i show.
func newest(t *testing.T, s *harness.Server, disks []string, i int) []uint64 {
	t.Helper()
	var numbers []uint64
	for _, name := range disks {
		export := fmt.Sprintf("%s@g%d", name, i)
		conn, err := client.Dial("unix", s.Socket, export)
		if err != nil {
			t.Fatal(err)
		}
		n, err := checker.Newest(conn)
		if err != nil {
			t.Errorf("%s: %v", export, err)
		}
		conn.Disconnect()
		numbers = append(numbers, n)
	}
	return numbers
}

func buildStamper(t *testing.T) string {
	t.Helper()
	path := filepath.Join(harness.TempDir(t), "stamper")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "./integration/guest/stamper")
	cmd.Dir = harness.Root()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building stamper: %v\n%s", err, out)
	}
	return path
}
