package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var qemuVersion = regexp.MustCompile(`version (\d+)\.(\d+)`)

// Qemu10 is a qemu-img that knows extended headers (8.2 or later): the host's own, or the one from Debian's backports that
// `make tools` puts into .cache/qemu10. Its qemu-io is beside it.
func Qemu10(t testing.TB) string {
	t.Helper()
	own, _ := exec.LookPath("qemu-img")
	for _, path := range []string{filepath.Join(root(), ".cache/qemu10/usr/bin/qemu-img"), own} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err != nil {
			continue
		}
		out, err := Try(path, "--version")
		if err != nil {
			t.Fatal(err)
		}
		match := qemuVersion.FindStringSubmatch(out)
		if match == nil {
			t.Fatalf("%s --version says %q", path, strings.SplitN(out, "\n", 2)[0])
		}
		major, _ := strconv.Atoi(match[1])
		minor, _ := strconv.Atoi(match[2])
		if major > 8 || major == 8 && minor >= 2 {
			return path
		}
	}
	t.Fatal("no qemu-img of 8.2 or later: run `make tools`, which gets one from bookworm-backports")
	return ""
}
