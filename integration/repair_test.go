package integration

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"lunar/integration/harness"
)

const repairBlock = 4096

// damagedServer serves LUN d, of which data is the content and block 5 is
// damaged on disk, and a snapshot d@s that shows the same.
func damagedServer(t *testing.T) (s *harness.Server, data []byte) {
	s = harness.Start(t, "--capacity", "1G")
	data = make([]byte, 64*repairBlock)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(harness.TempDir(t), "image")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Lunar("lun", "import", "d", file)
	s.Lunar("snapshot", "create", "d@s")
	flipOnDisk(t, s.Dir, data[5*repairBlock:6*repairBlock])
	return s, data
}

// flipOnDisk flips a bit of the block of a segment that has these bytes.
func flipOnDisk(t *testing.T, dir string, block []byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "segments", "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		body, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(body, block)
		if at < 0 {
			continue
		}
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte{block[77] ^ 4}, int64(at+77))
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("the block is in no segment")
}

func TestDamageOnDisk(t *testing.T) {
	s, data := damagedServer(t)
	for _, export := range []string{"d", "d@s"} {
		c := s.Dial(export)
		b := make([]byte, repairBlock)
		for i := range 64 {
			err := c.Read(b, int64(i)*repairBlock)
			switch {
			case i == 5 && !errors.Is(err, syscall.EIO):
				t.Errorf("%s block 5: %v, want EIO", export, err)
			case i != 5 && (err != nil || !bytes.Equal(b, data[i*repairBlock:(i+1)*repairBlock])):
				t.Errorf("%s block %d: %v, or other bytes", export, i, err)
			}
		}
		if err := c.Disconnect(); err != nil {
			t.Error(err)
		}
	}
	r := s.Run("pool", "scrub", "-o", "json")
	if r.Status != 1 || !strings.Contains(r.Stdout, `"offset": 20480`) || !strings.Contains(r.Stdout, `"d@s"`) || !strings.Contains(r.Stdout, `"d"`) {
		t.Errorf("scrub: status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
	}
	file := filepath.Join(harness.TempDir(t), "copy")
	if r := s.Run("lun", "export", "d@s", file); r.Status != 1 {
		t.Errorf("export of a damaged LUN: status %d", r.Status)
	}
	r = s.Run("lun", "export", "d@s", file, "--skip-damaged")
	got, err := os.ReadFile(file)
	want := bytes.Clone(data)
	clear(want[5*repairBlock : 6*repairBlock])
	if err != nil || r.Status != 1 || !strings.Contains(r.Stderr, "4096 bytes at offset 20480") || !bytes.Equal(got, want) {
		t.Errorf("export that skips: status %d, %v, right bytes %v\n%s%s", r.Status, err, bytes.Equal(got, want), r.Stdout, r.Stderr)
	}
	c := s.Dial("d")
	block := bytes.Repeat([]byte{7}, repairBlock)
	if err := errors.Join(c.Write(block, 5*repairBlock, true), c.Read(block, 5*repairBlock), c.Disconnect()); err != nil || block[0] != 7 {
		t.Errorf("the block that was overwritten: %v", err)
	}
	s.Lunar("snapshot", "delete", "d@s", "--wait")
	s.Lunar("pool", "scrub", "--restart")
}

// The index and its copies are gone: what the segments tell is readable, and
// nothing can be written.
func TestSalvageOnDisk(t *testing.T) {
	s, data := damagedServer(t)
	s.Stop()
	if err := errors.Join(os.RemoveAll(filepath.Join(s.Dir, "index")), os.RemoveAll(filepath.Join(s.Dir, "index-backup"))); err != nil {
		t.Fatal(err)
	}
	if r := s.Run("pool", "repair", "--data", s.Dir); r.Status != 1 || !strings.Contains(r.Stderr, "--salvage") {
		t.Errorf("repair: status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
	}
	s.Lunar("pool", "repair", "--data", s.Dir, "--salvage")
	s.NoCheck = true // it has no accounts
	s.Start()
	file := filepath.Join(harness.TempDir(t), "copy")
	for _, export := range []string{"d", "d@s"} {
		s.Run("lun", "export", export, file, "--skip-damaged", "--force")
		got, err := os.ReadFile(file)
		want := bytes.Clone(data)
		clear(want[5*repairBlock : 6*repairBlock])
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("export of %s: %v, right bytes %v", export, err, bytes.Equal(got, want))
		}
	}
	if r := s.Run("lun", "create", "new", "1G"); r.Status != 1 || !strings.Contains(r.Stderr, "salvaged") {
		t.Errorf("create: status %d %s", r.Status, r.Stderr)
	}
}
