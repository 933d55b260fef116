// Package harness runs the release binary as its users do: as a process, by its command line, over its sockets. It
// imports nothing of the server. What it needs is installed or the test fails: nothing is skipped for want of a tool.
package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	buildOnce sync.Once
	buildDir  string
	buildPath string
	buildErr  error
)

// Binary is the release binary: LUNAR_BIN, or one built for this run.
func Binary(t testing.TB) string {
	t.Helper()
	buildOnce.Do(func() {
		if buildPath = os.Getenv("LUNAR_BIN"); buildPath != "" {
			_, buildErr = os.Stat(buildPath)
			return
		}
		if buildDir, buildErr = os.MkdirTemp("", "lunar-bin"); buildErr != nil {
			return
		}
		os.Chmod(buildDir, 0o755) // one test runs the binary as another user
		buildPath = filepath.Join(buildDir, "lunar")
		buildErr = goBuild(buildPath, "./cmd/lunar")
	})
	if buildErr != nil {
		t.Fatalf("no binary to test: %v", buildErr)
	}
	return buildPath
}

func goBuild(out, pkg string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, pkg)
	cmd.Dir = root()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, text)
	}
	return nil
}

// Root is the top folder of the repository.
func Root() string { return root() }

func root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// Run runs a package's tests, for its TestMain, and removes what was built for them; more clean-up may follow.
func Run(m *testing.M, cleanup ...func()) int {
	// mkfs, e2fsck and nbd-client live in sbin, which is not in everyone's PATH.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
	code := m.Run()
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	for _, fn := range cleanup {
		fn()
	}
	return code
}

// Long says whether the tests run at full size (make test-long).
func Long() bool { return os.Getenv("LUNAR_LONG") != "" }

// Within is the limit for what must take at most d on a machine that does nothing else, as in the long runs. Where the
// default tests run, other work has its share: ten times as much there, so that only what has become of another order fails.
func Within(d time.Duration) time.Duration {
	if Long() {
		return d
	}
	return 10 * d
}

// Need fails the test when a tool is missing.
func Need(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing: run `make tools`", tool)
		}
	}
}

// Tool runs a program that must succeed and returns its standard output.
func Tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := Try(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Try runs a program; the error holds all that it printed.
func Try(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// TempDir is a folder with a short name (a unix socket's path has 107 bytes at most), open to other users.
func TempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lt")
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o755)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
