package integration

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"lunar/integration/harness"
)

// TestSpaceFollowsLiveData: what a pool occupies on disk goes down again after overwrites, TRIM, zeroes, snapshot and
// LUN deletion.
func TestSpaceFollowsLiveData(t *testing.T) {
	const size = 512 * mib
	s := harness.Start(t, "--capacity", "8G")
	s.Lunar("lun", "create", "d", fmt.Sprint(size))
	empty := s.DiskBytes()
	c := s.Dial("d")
	// Live data plus a tenth, the spare segments and the index.
	follows := func(what string, live int64) {
		t.Helper()
		s.Lunar("pool", "clean")
		used := s.DiskBytes() - empty
		most := live + live/10 + 320*mib
		t.Logf("%s: %d MiB live, %d MiB on disk", what, live/mib, used/mib)
		if used > most {
			t.Errorf("%s: the pool occupies %d MiB for %d MiB of live data, more than %d", what, used/mib, live/mib, most/mib)
		}
	}
	write := func(seed uint64) {
		t.Helper()
		p := make([]byte, 2*mib)
		for off := int64(0); off < size; off += int64(len(p)) {
			fill(p, uint64(off)*31+seed)
			if err := c.Write(p, off, false); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	for seed := range uint64(4) {
		write(seed)
	}
	follows("overwritten three times", size)

	s.Lunar("snapshot", "create", "d@a")
	write(10)
	follows("a snapshot and an overwrite", 2*size)
	var snapshot harness.Snapshot
	s.JSON(&snapshot, "snapshot", "show", "d@a")
	if snapshot.UniqueBytes < size*9/10 || snapshot.UniqueBytes > size*11/10 {
		t.Errorf("unique_bytes of a wholly overwritten snapshot is %d, want about %d", snapshot.UniqueBytes, size)
	}
	freed := dryRun(t, s, "d@a")
	if freed != snapshot.UniqueBytes {
		t.Errorf("delete --dry-run says %d, unique_bytes %d", freed, snapshot.UniqueBytes)
	}
	s.Lunar("snapshot", "delete", "d@a", "--wait")
	follows("the snapshot deleted", size)

	for off := int64(0); off < size; off += 64 * mib {
		if err := c.Trim(off, 48*mib, false); err != nil {
			t.Fatal(err)
		}
	}
	c.Flush()
	waitUsed(t, s, "d", size/4)
	follows("three quarters trimmed", size/4)
	checkTrimmed(t, s, "d", size)

	if err := c.Zero(0, size/2, false, false); err != nil {
		t.Fatal(err)
	}
	c.Flush()
	follows("half of the rest zeroed", size/8)
	c.Disconnect()
	waitNoClients(t, s, "d")
	s.Lunar("lun", "delete", "d")
	follows("the LUN deleted", 0)
	s.Restart()
	follows("restarted", 0)
}

func dryRun(t *testing.T, s *harness.Server, snapshot string) int64 {
	t.Helper()
	var report struct {
		FreedBytes *int64 `json:"freed_bytes"`
	}
	out := s.Lunar("snapshot", "delete", snapshot, "--dry-run", "-o", "json")
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.FreedBytes == nil {
		t.Fatalf("snapshot delete --dry-run: no freed_bytes in %s", out)
	}
	return *report.FreedBytes
}

// waitUsed waits until what a TRIM freed is accounted, which happens in the background.
func waitUsed(t *testing.T, s *harness.Server, lun string, want int64) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		used := s.LUN(lun).UsedBytes
		if used == want {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("used_bytes of %s is %d after 20 s, want %d", lun, used, want)
			return
		}
	}
}

// checkTrimmed: trimmed ranges read as zeroes and the others are as they were.
func checkTrimmed(t *testing.T, s *harness.Server, lun string, size int64) {
	t.Helper()
	c := s.Dial(lun)
	defer c.Disconnect()
	got, want := make([]byte, 2*mib), make([]byte, 2*mib)
	for off := int64(0); off < size; off += int64(len(got)) {
		clear(want)
		if off%(64*mib) >= 48*mib {
			fill(want, uint64(off)*31+10)
		}
		if err := c.Read(got, off); err != nil || string(got) != string(want) {
			t.Fatalf("wrong content at %d after TRIM (%v)", off, err)
		}
	}
}

// TestSnapshotChainSpace: many snapshots over the same blocks, deleted in every order, give everything back.
func TestSnapshotChainSpace(t *testing.T) {
	s := harness.Start(t, "--capacity", "8G")
	s.Lunar("lun", "create", "d", "64M")
	c := s.Dial("d")
	p := make([]byte, mib)
	for i := range 12 {
		for off := int64(0); off < 64*mib; off += mib {
			fill(p, uint64(off)+uint64(i)*977)
			if err := c.Write(p, off, false); err != nil {
				t.Fatal(err)
			}
		}
		s.Lunar("snapshot", "create", fmt.Sprintf("d@s%d", i))
	}
	for _, i := range []int{5, 0, 11, 6, 1, 10, 4, 3, 2, 9, 7, 8} {
		s.Lunar("snapshot", "delete", fmt.Sprintf("d@s%d", i), "--wait")
	}
	s.Lunar("pool", "clean")
	l := s.LUN("d")
	if l.UsedBytes != 64*mib || l.Area.UsedBytes != 0 || l.Snapshots != 0 {
		t.Errorf("after all snapshots are gone: used %d, area %d, %d snapshots; want %d, 0, 0", l.UsedBytes, l.Area.UsedBytes, l.Snapshots, 64*mib)
	}
	if disk := s.DiskBytes(); disk > 64*mib+320*mib {
		t.Errorf("the pool occupies %d MiB for 64 MiB", disk/mib)
	}
}
