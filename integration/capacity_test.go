package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lunar/integration/client"
	"lunar/integration/harness"
)

// These tests run on file systems of 2 GiB of their own: what is promised must hold where the disk really ends.

const smallSize = 2 * gib

// onSmall runs a test on an ext4 and on an xfs at the same time.
func onSmall(t *testing.T, test func(t *testing.T, fs *harness.SmallFS)) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			test(t, harness.Small(t, kind, smallSize))
		})
	}
}

// fioVerify writes a whole LUN at random in pieces of several sizes and reads it back against the checksums in it.
func fioVerify(s *harness.Server, lun string, size int64, seed int) error {
	_, err := harness.Try("fio", "--name="+lun, "--ioengine=nbd", "--uri="+s.URI(lun), "--rw=randwrite", "--bsrange=4k-256k", "--iodepth=16",
		fmt.Sprintf("--size=%d", size), "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", fmt.Sprintf("--randseed=%d", seed),
		"--end_fsync=1", "--output-format=terse", "--aux-path="+s.Dir)
	return err
}

// fillUp writes pieces one after the other from `from` on until a write is refused for want of space or `most` is written,
// and returns how much it was. The last pieces are of one block, so that nothing that fits is left.
func fillUp(t *testing.T, c *client.Conn, from, most int64, seed uint64) (written int64) {
	t.Helper()
	p := make([]byte, mib)
	for n := int64(len(p)); written < most; {
		fill(p[:n], uint64(from+written)+seed)
		switch err := c.Write(p[:n], from+written, false); {
		case err == nil:
			written += n
		case !errors.Is(err, syscall.ENOSPC):
			t.Fatalf("after %d MiB: %v, want ENOSPC", written/mib, err)
		case n > 4096:
			n = max(n/16, 4096)
		default:
			return written
		}
	}
	return written
}

// checkFilled reads back what fillUp wrote.
func checkFilled(t *testing.T, r interface {
	Read(p []byte, off int64) error
}, from, n int64, seed uint64) {
	t.Helper()
	got, want := make([]byte, mib), make([]byte, mib)
	for off := int64(0); off+mib <= n; off += mib {
		fill(want, uint64(from+off)+seed)
		if err := r.Read(got, from+off); err != nil || string(got) != string(want) {
			t.Fatalf("what was written at %d MiB reads back wrong (%v)", (from+off)/mib, err)
		}
	}
}

// checkDisk compares what the pool takes of the file system with its own account, after `pool clean`.
func checkDisk(t *testing.T, s *harness.Server, what string) {
	t.Helper()
	s.Lunar("pool", "clean")
	p, disk := s.Pool(), s.DiskBytes()
	ledger := p.UsedBytes + p.IndexBytes
	differ := max(disk-ledger, ledger-disk)
	most := ledger*3/100 + 4*segmentBytes(t, s) + 128*mib
	t.Logf("%s: %d MiB on disk, %d MiB in the ledger (%d segments)", what, disk/mib, ledger/mib, p.Segments)
	if differ > most {
		t.Errorf("%s: the pool takes %d MiB of the disk and %d MiB by its own account, they differ by more than %d", what, disk/mib, ledger/mib, most/mib)
	}
}

// TestFullPool: a thin LUN takes all that is free while a thick one is written to its last byte and verified; the thin
// one gets ENOSPC, and goes on once a snapshot of it was deleted. The server lives through all of it.
func TestFullPool(t *testing.T) {
	harness.Need(t, "fio")
	onSmall(t, func(t *testing.T, fs *harness.SmallFS) {
		const thick = 192 * mib
		s := fs.Serve()
		if size := segmentBytes(t, s); size != 4*mib {
			t.Errorf("segments of %d bytes on a small file system", size)
		}
		s.Lunar("lun", "create", "thick", fmt.Sprint(thick), "--thick")
		s.Lunar("lun", "create", "thin", "8G", "--on-full", "freeze")
		offered := s.Pool().FreeBytes
		thin := s.Dial("thin")
		const held = 128 * mib
		p := make([]byte, mib)
		for off := int64(0); off < held; off += mib {
			fill(p, uint64(off)+1)
			if err := thin.Write(p, off, false); err != nil {
				t.Fatal(err)
			}
		}
		s.Lunar("snapshot", "create", "thin@a")
		verified := make(chan error, 1)
		go func() { verified <- fioVerify(s, "thick", thick, 1) }()
		written := fillUp(t, thin, 0, 8*gib, 2)
		t.Logf("free %d MiB; the thin LUN wrote %d MiB beside a snapshot of %d MiB, then ENOSPC", offered/mib, written/mib, held/mib)
		if offered-written-held > 64*mib {
			t.Errorf("ENOSPC with %d MiB of %d MiB written", (written+held)/mib, offered/mib)
		}
		if err := <-verified; err != nil {
			t.Fatalf("a thick LUN while the pool fills: %v\n%s", err, s.Log())
		}
		if err := fioVerify(s, "thick", thick, 2); err != nil {
			t.Fatalf("a thick LUN in a full pool: %v\n%s", err, s.Log())
		}
		p4k := make([]byte, 4096)
		if err := thin.Write(p4k, 7*gib, false); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a thin write in a full pool: %v, want ENOSPC", err)
		}
		checkSnapshot(t, s, "thin@a", 0, held, 1)
		checkFilled(t, thin, 0, written, 2)
		freed := dryRun(t, s, "thin@a")
		s.Lunar("snapshot", "delete", "thin@a", "--wait")
		again := fillUp(t, thin, 4*gib, 8*gib, 3)
		t.Logf("deleting the snapshot was to free %d MiB; %d MiB were written then", freed/mib, again/mib)
		if again < freed*9/10 {
			t.Errorf("%d bytes were freed, and %d could be written", freed, again)
		}
		if err := thin.Flush(); err != nil {
			t.Error(err)
		}
		checkFilled(t, thin, 4*gib, again, 3)
		checkDisk(t, s, "a full pool")
		s.Restart()
		if err := fioVerify(s, "thick", thick, 4); err != nil {
			t.Fatalf("a thick LUN in a full pool after a restart: %v\n%s", err, s.Log())
		}
	})
}

// checkSnapshot reads back what fillUp wrote before a snapshot, and lets go of it.
func checkSnapshot(t *testing.T, s *harness.Server, snapshot string, from, n int64, seed uint64) {
	t.Helper()
	c := s.Dial(snapshot)
	checkFilled(t, c, from, n, seed)
	c.Disconnect()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var snap harness.Snapshot
		s.JSON(&snap, "snapshot", "show", snapshot)
		if snap.Clients == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s still has %d clients", snapshot, snap.Clients)
		}
	}
}

// segmentBytes is the size of a pool's segment files.
func segmentBytes(t *testing.T, s *harness.Server) int64 {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.Dir, "segments", "*.seg"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no segments in %s (%v)", s.Dir, err)
	}
	info, err := os.Stat(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// events are the messages of all events that contain a text.
func events(t *testing.T, s *harness.Server, text string) (found []string) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(s.Lunar("events", "-o", "json")), "\n") {
		var e struct {
			Message string `json:"message"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("events: %v in %q", err, line)
		}
		if strings.Contains(e.Message, text) {
			found = append(found, e.Message)
		}
	}
	return found
}
