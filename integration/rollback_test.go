package integration

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lunar/integration/client"
	"lunar/integration/harness"
)

// rolled is what `rollback -o json` prints.
type rolled struct {
	LUN    string  `json:"lun"`
	To     string  `json:"to"`
	Kept   *string `json:"kept"`
	Online bool    `json:"online"`
}

// TestRollback: the content comes back byte for byte, the state before is kept, newer snapshots stay, and one can go
// forward again.
func TestRollback(t *testing.T) {
	harness.Need(t, "nbdcopy")
	path, sum := realImage(t)
	s := harness.Start(t, "--capacity", "8G")
	dir := harness.TempDir(t)
	s.Lunar("lun", "import", "disk", path)
	s.Lunar("snapshot", "create", "disk@good")

	c := s.Dial("disk")
	p := make([]byte, mib)
	for off := int64(0); off < c.Size; off += 8 * mib {
		fill(p, uint64(off)+5)
		if err := c.Write(p, off+4096, false); err != nil {
			t.Fatal(err)
		}
		if err := c.Trim(off+3*mib, 2*mib, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	copyOut := func(export string) string {
		t.Helper()
		out := filepath.Join(dir, "out.img")
		harness.Tool(t, "nbdcopy", s.URI(export), out)
		return fileSum(t, out)
	}
	ruined := copyOut("disk")
	if ruined == sum {
		t.Fatal("the LUN is not ruined, so the test proves nothing")
	}
	s.Lunar("snapshot", "create", "disk@ruined")

	// Refused while attached; --force disconnects and leaves the LUN offline, so that nobody writes an old cache back.
	before := state(s)
	s.Refused([]string{"disk", "--force"}, "rollback", "disk@good")
	if after := state(s); after != before {
		t.Errorf("a refused rollback has changed something:\n%s\n%s", before, after)
	}
	var r rolled
	s.JSON(&r, "rollback", "disk@good", "--force")
	if r.Kept == nil || r.Online {
		t.Fatalf("rollback --force: %+v, want a kept snapshot and the LUN offline", r)
	}
	if err := c.Write(p, 0, false); err == nil {
		t.Error("the old client can still write")
	}
	if _, err := client.Dial("unix", s.Socket, "disk"); err == nil {
		t.Error("an offline LUN was served")
	}
	s.Lunar("lun", "online", "disk")
	if copyOut("disk") != sum {
		t.Error("the content after the rollback is not the content at the snapshot")
	}
	s.Kill()
	s.Start()
	if copyOut("disk") != sum {
		t.Error("the content is gone after kill -9")
	}
	kept := strings.TrimPrefix(export("disk", *r.Kept), "disk@")
	if !strings.HasPrefix(kept, "before-rollback-") {
		t.Errorf("the kept snapshot is named %q", kept)
	}
	if copyOut("disk@"+kept) != ruined || copyOut("disk@ruined") != ruined {
		t.Error("the state before the rollback is not kept, or a newer snapshot has changed")
	}

	// Forward again, then back without keeping.
	waitNoClients(t, s, "disk")
	s.Lunar("rollback", "disk@ruined")
	if copyOut("disk") != ruined {
		t.Error("rollback to a newer snapshot does not bring it back")
	}
	waitNoClients(t, s, "disk")
	n := len(s.Snapshots("disk"))
	s.JSON(&r, "rollback", "disk@good", "--discard")
	if r.Kept != nil && len(s.Snapshots("disk")) != n {
		t.Errorf("--discard kept %v", *r.Kept)
	}
	if copyOut("disk") != sum {
		t.Error("the content after the second rollback is wrong")
	}
	testClone(t, s, copyOut, sum, ruined)
}

// testClone: a clone begins as its snapshot and depends on nothing.
func testClone(t *testing.T, s *harness.Server, copyOut func(string) string, sum, ruined string) {
	t.Helper()
	s.Lunar("clone", "disk@ruined", "copy")
	c := s.Dial("copy")
	p := make([]byte, 4096)
	if err := c.Read(p, 0); err != nil {
		t.Fatal(err)
	}
	c.Disconnect()
	if copyOut("copy") != ruined || copyOut("disk") != sum {
		t.Error("the clone is not its snapshot, or its source has changed")
	}
	s.Lunar("lun", "delete", "disk", "--force")
	s.Lunar("pool", "clean")
	s.Restart()
	if copyOut("copy") != ruined {
		t.Error("the clone has lost its content with its source")
	}
}

// TestRollbackIsInstant: it does not depend on what is mapped or has changed.
func TestRollbackIsInstant(t *testing.T) {
	s := harness.Start(t, "--capacity", "16G")
	s.Lunar("lun", "create", "d", "1G")
	c := s.Dial("d")
	mapAll(t, c, gib)
	s.Lunar("snapshot", "create", "d@a")
	p := make([]byte, mib)
	for off := int64(0); off < gib; off += 2 * mib {
		fill(p, uint64(off)+9)
		if err := c.Write(p, off, false); err != nil {
			t.Fatal(err)
		}
	}
	c.Disconnect()
	waitNoClients(t, s, "d")
	r := s.Run("rollback", "d@a")
	if r.Status != 0 {
		t.Fatal(r.Stderr)
	}
	t.Logf("rollback of 512 MiB of changes over 1 GiB: the command took %v", r.Took)
	if r.Took > harness.Within(500*time.Millisecond) {
		t.Errorf("rollback took %v", r.Took)
	}
	c = s.Dial("d")
	want, got := make([]byte, 4*mib), make([]byte, 4*mib)
	for off := int64(0); off < gib; off += int64(len(want)) {
		fill(want, uint64(off)+3)
		if err := c.Read(got, off); err != nil || string(got) != string(want) {
			t.Fatalf("wrong content at %d (%v)", off, err)
		}
	}
}
