package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"lunar/integration/harness"
)

// image is an ext4 file system with a real tree in it: the Go installation, 16 000 files in some 230 MB.
var image struct {
	sync.Once
	path, sum string
	size      int64
	err       error
}

func realImage(t *testing.T) (path, sum string) {
	t.Helper()
	harness.Need(t, "mkfs.ext4", "e2fsck")
	image.Do(func() {
		dir, err := os.MkdirTemp("", "lunar-image")
		if err != nil {
			image.err = err
			return
		}
		image.path = filepath.Join(dir, "go.ext4")
		goroot, err := harness.Try("go", "env", "GOROOT")
		if err != nil {
			image.err = err
			return
		}
		// What the files occupy, a quarter for the file system's own, in whole 16 MiB.
		goroot = strings.TrimSpace(goroot)
		image.size = (harness.DiskBytes(t, goroot)*5/4 + 63*mib) &^ (16*mib - 1)
		_, image.err = harness.Try("mkfs.ext4", "-q", "-F", "-d", goroot, image.path, fmt.Sprintf("%dK", image.size>>10))
		if image.err == nil {
			image.sum = fileSum(t, image.path)
		}
	})
	if image.err != nil {
		t.Fatal(image.err)
	}
	return image.path, image.sum
}

// imageSize is the size of a LUN for the image.
func imageSize() string { return fmt.Sprint(image.size) }

func removeImage() {
	if image.path != "" {
		os.RemoveAll(filepath.Dir(image.path))
	}
}

func fileSum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func sameFile(t *testing.T, what, path, sum string) {
	t.Helper()
	if got := fileSum(t, path); got != sum {
		t.Errorf("%s: sha256 %s, want %s", what, got, sum)
	}
}

// TestRealInputByClients: qemu-img writes a real file system to a LUN, nbdcopy reads it back.
func TestRealInputByClients(t *testing.T) {
	harness.Need(t, "qemu-img", "nbdcopy")
	path, sum := realImage(t)
	s := harness.Start(t, "--capacity", "8G")
	s.Lunar("lun", "create", "real", imageSize())
	harness.Tool(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", path, s.URI("real"))
	back := filepath.Join(harness.TempDir(t), "back.img")
	harness.Tool(t, "nbdcopy", s.URI("real"), back)
	sameFile(t, "nbdcopy after qemu-img convert", back, sum)
	harness.Tool(t, "e2fsck", "-fn", back)
	harness.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", path, s.URI("real"))

	// The other way round, over a restart: nbdcopy writes, qemu-img reads.
	s.Lunar("lun", "create", "again", imageSize(), "--thick")
	harness.Tool(t, "nbdcopy", "--flush", path, s.URI("again"))
	s.Restart()
	harness.Tool(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", s.URI("again"), back)
	sameFile(t, "qemu-img convert after nbdcopy and a restart", back, sum)

	used := s.LUN("real").UsedBytes
	if data := harness.DiskBytes(t, path); used > data+data/8 {
		t.Errorf("the LUN is charged %d bytes for %d bytes of data: zeroes were not kept sparse", used, data)
	}
}

// TestRealInputByCommands: the same through `lunar lun import` and `export`.
func TestRealInputByCommands(t *testing.T) {
	path, sum := realImage(t)
	s := harness.Start(t, "--capacity", "8G")
	dir := harness.TempDir(t)
	s.Lunar("lun", "import", "real", path)
	if got, want := s.LUN("real").SizeBytes, image.size; got != want {
		t.Errorf("imported LUN has %d bytes, want %d", got, want)
	}
	out := filepath.Join(dir, "out.img")
	s.Lunar("lun", "export", "real", out)
	sameFile(t, "lun export after lun import", out, sum)
	if got, want := harness.DiskBytes(t, out), harness.DiskBytes(t, path); got > want+want/8 {
		t.Errorf("the exported file occupies %d bytes, the source %d: not sparse", got, want)
	}
	s.Refused([]string{"out.img"}, "lun", "export", "real", out) // an existing file only with --force
	s.Lunar("lun", "export", "real", out, "--force")
	s.Refused([]string{"real"}, "lun", "import", "real", path)

	s.Lunar("snapshot", "create", "real@a")
	harness.Need(t, "qemu-io")
	harness.Tool(t, "qemu-io", "-f", "raw", "-c", "write -P 0xab 1M 8M", s.URI("real"))
	snap := filepath.Join(dir, "snap.img")
	s.Lunar("lun", "export", "real@a", snap)
	sameFile(t, "lun export of a snapshot", snap, sum)

	// Standard input and output, and an odd length that is padded to 512.
	small := filepath.Join(dir, "small")
	text := []byte(strings.Repeat("lunar\n", 3333))
	if err := os.WriteFile(small, text, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(small)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if r := harness.Command(t, dir, []string{"LUNAR_SERVER=unix://" + s.Admin}, f, "lun", "import", "small", "-"); r.Status != 0 {
		t.Fatalf("lun import from standard input: status %d\n%s", r.Status, r.Stderr)
	}
	cmd := exec.Command(harness.Binary(t), "lun", "export", "small", "-", "--server", "unix://"+s.Admin)
	cmd.Dir = dir
	got, err := cmd.Output()
	padded := len(text) + (512-len(text)%512)%512
	if err != nil || len(got) != padded || string(got[:len(text)]) != string(text) {
		t.Errorf("lun export to standard output: %v, %d bytes, want %d with the text first", err, len(got), padded)
	}

	harness.Need(t, "qemu-img")
	qcow := filepath.Join(dir, "image.qcow2")
	harness.Tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", path, qcow)
	s.Lunar("lun", "import", "qcow", qcow)
	s.Lunar("lun", "export", "qcow", out, "--force")
	sameFile(t, "lun import of a qcow2", out, sum)
	s.Refused([]string{"no-such-file"}, "lun", "import", "x", filepath.Join(dir, "no-such-file"))
}
