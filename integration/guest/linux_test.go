package guest

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"lunar/integration/harness"
)

// fileSystem is how a guest makes and proves one.
type fileSystem struct {
	name, load, mkfs, check string
}

var fileSystems = []fileSystem{
	{name: "ext4", load: "true", mkfs: "mkfs.ext4 -q -F", check: "e2fsck -fn"},
	{name: "xfs", load: "load xfs", mkfs: "mkfs.xfs -q -f", check: "xfs_repair -n"},
}

// TestLinuxRollback is the main job: a Linux attaches with the real nbd-client over two connections, makes a file
// system and files; a snapshot; files are deleted and overwritten; a rollback brings every byte back.
func TestLinuxRollback(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs.name, func(t *testing.T) {
			t.Parallel()
			s := harness.Start(t, "--listen", "tcp://127.0.0.1:0", "--capacity", "8G")
			s.Lunar("lun", "create", "disk", "1G")
			g := Boot(t, Options{})
			_, port, err := net.SplitHostPort(s.TCP())
			if err != nil {
				t.Fatal(err)
			}
			attach := fmt.Sprintf("nbd-client %s %s /dev/nbd0 -N disk -C 2", HostAddress, port)

			g.Run(fs.load + "; " + attach + "; " + fs.mkfs + " /dev/nbd0; mount /dev/nbd0 /mnt")
			if n := s.LUN("disk").Clients; n != 2 {
				t.Errorf("lun show says %d clients, want the 2 connections of nbd-client -C 2", n)
			}
			want := g.Run(writeFiles + sums)
			if strings.Count(want, "\n") < 60 {
				t.Fatalf("too few files were written:\n%s", want)
			}
			// The mounted file system is snapshotted as a power cut would leave it; sync makes the files part of it.
			g.Run("sync")
			s.Lunar("snapshot", "create", "disk@good")

			g.Run(ruinFiles)
			if got := g.Run(sums); got == want {
				t.Fatal("the files are not ruined, so the test proves nothing")
			}
			s.Refused([]string{"disk"}, "rollback", "disk@good") // clients are attached
			g.Run("umount /mnt; nbd-client -d /dev/nbd0")
			s.Lunar("rollback", "disk@good")

			g.Run(attach + "; mount /dev/nbd0 /mnt")
			if got := g.Run(sums); got != want {
				t.Errorf("after the rollback:\n%s\nwant:\n%s", got, want)
			}
			g.Run("umount /mnt")
			t.Logf("up in %v; %s: %s", g.BootTime, fs.check, lastLine(g.Run(fs.check+" /dev/nbd0")))
			g.Run("nbd-client -d /dev/nbd0")
		})
	}
}

const writeFiles = `
cd /mnt
mkdir -p a/b c
dd if=/dev/urandom of=a/b/large bs=1M count=6 2>/dev/null
for i in $(seq 60); do dd if=a/b/large of=a/file$i bs=3k skip=$i count=$((i % 7 + 1)) 2>/dev/null; done
cp /bin/busybox c/busybox
ln -s ../a c/link
`

const sums = `cd /mnt; find . -type f | sort | xargs sha256sum`

const ruinFiles = `
cd /mnt
rm -rf a/file1* c
dd if=/dev/urandom of=a/b/large bs=1M seek=2 count=3 conv=notrunc 2>/dev/null
for i in $(seq 20 40); do echo ruined >a/file$i; done
dd if=/dev/urandom of=new bs=1M count=6 2>/dev/null
sync
`

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
