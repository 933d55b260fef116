package integration

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"lunar/integration/checker"
	"lunar/integration/client"
	"lunar/integration/harness"
)

// TestReadyLine: what `lunar serve` prints is what scripts parse.
func TestReadyLine(t *testing.T) {
	s := harness.Start(t, "--listen", "tcp://127.0.0.1:0")
	want := regexp.MustCompile(`^ready nbd=unix://` + regexp.QuoteMeta(s.Socket) + ` nbd=tcp://127\.0\.0\.1:[1-9][0-9]* admin=unix://` + regexp.QuoteMeta(s.Admin) + `$`)
	if !want.MatchString(s.Ready) {
		t.Errorf("ready line %q does not match %v", s.Ready, want)
	}
	info, err := os.Stat(s.Admin)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the admin socket has mode %v (%v), want 0600", info.Mode(), err)
	}
	s.Lunar("lun", "create", "a", "1M")
	if _, err := client.Dial("tcp", s.TCP(), "a"); err != nil {
		t.Errorf("attach over TCP: %v", err)
	}
	// An empty export name means the only LUN, and nothing as soon as there are two.
	if c, err := client.Dial("unix", s.Socket, ""); err != nil || c.Size != mib {
		t.Errorf("attach with an empty name: %v", err)
	}
	s.Lunar("lun", "create", "b", "1M")
	if _, err := client.Dial("unix", s.Socket, ""); err == nil {
		t.Error("an empty name was served although there are two LUNs")
	}
	var refused *client.OptionError
	if _, err := client.Dial("unix", s.Socket, "nosuch"); !errors.As(err, &refused) {
		t.Errorf("attach to an unknown export: %v, want a refused option", err)
	}
}

// TestSecondServer: one pool, one server; the refusal names the process that has it.
func TestSecondServer(t *testing.T) {
	s := harness.Start(t)
	s.Lunar("lun", "create", "a", "1M")
	dir := filepath.Dir(s.Dir)
	r := harness.Command(t, dir, nil, nil, "serve", "--data", s.Dir, "--listen", "unix://"+dir+"/second.sock")
	r.MustRefuse(t, fmt.Sprint(s.Pid))
	if s.LUN("a").SizeBytes != mib {
		t.Error("the first server is not well")
	}
	s.Kill() // a dead server's lock and sockets are in nobody's way
	s.Start()
	s.Dial("a")
}

// TestNewerFormat: a pool that a later version wrote is refused with both numbers, and left as it is.
func TestNewerFormat(t *testing.T) {
	s := harness.Start(t)
	s.Lunar("lun", "create", "a", "1M")
	s.Stop()
	dir := filepath.Dir(s.Dir)
	refused := func(name string, says ...string) {
		t.Helper()
		before := harness.TreeSum(t, s.Dir)
		for _, args := range [][]string{
			{"serve", "--data", s.Dir, "--listen", "unix://" + dir + "/new.sock"},
			{"pool", "check", "--offline", "--data", s.Dir},
		} {
			harness.Command(t, dir, nil, nil, args...).MustRefuse(t, says...)
		}
		if harness.TreeSum(t, s.Dir) != before {
			t.Errorf("%s: the pool was changed", name)
		}
	}

	identity := filepath.Join(s.Dir, "pool.json")
	text, err := os.ReadFile(identity)
	if err != nil {
		t.Fatal(err)
	}
	newer := strings.Replace(string(text), `"format": 1,`, `"format": 99,`, 1)
	if newer == string(text) {
		t.Fatalf("no format in %s", text)
	}
	if err := os.WriteFile(identity, []byte(newer), 0o644); err != nil {
		t.Fatal(err)
	}
	refused("pool.json", "format", "99", "1")
	if err := os.WriteFile(identity, text, 0o644); err != nil {
		t.Fatal(err)
	}

	markers, _ := filepath.Glob(filepath.Join(s.Dir, "index", "marker.lunar-index.*.*"))
	if len(markers) != 1 {
		t.Fatalf("markers of the index: %v", markers)
	}
	format := strings.TrimPrefix(filepath.Ext(markers[0]), ".")
	raised := strings.TrimSuffix(markers[0], format) + "98"
	if err := os.Rename(markers[0], raised); err != nil {
		t.Fatal(err)
	}
	refused("index", "format", "98", format)
	if err := os.Rename(raised, markers[0]); err != nil {
		t.Fatal(err)
	}
	s.Start()
	s.Dial("a")
}

// TestPortInUse: the address is named, and the pool is not made.
func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := harness.TempDir(t)
	r := harness.Command(t, dir, nil, nil, "serve", "--data", dir+"/pool", "--listen", "tcp://"+l.Addr().String())
	r.MustRefuse(t, l.Addr().String(), "in use")
	if _, err := os.Stat(dir + "/pool"); err == nil {
		t.Error("the pool was made although the server did not start")
	}
	// A unix socket that a living process listens on is not taken away either.
	u, err := net.Listen("unix", dir+"/taken.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	r = harness.Command(t, dir, nil, nil, "serve", "--data", dir+"/pool", "--listen", "unix://"+dir+"/taken.sock")
	r.MustRefuse(t, "taken.sock", "in use")
}

// TestUnwritableFolder: as somebody who may not write there.
func TestUnwritableFolder(t *testing.T) {
	dir := harness.TempDir(t)
	closed := filepath.Join(dir, "closed")
	if err := os.Mkdir(closed, 0o555); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(harness.Binary(t), "serve", "--data", closed+"/pool", "--listen", "unix:///tmp/lunar-never.sock")
	cmd.Dir = dir
	if os.Getuid() == 0 { // to root nothing is unwritable
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatalf("%v: may another user read the binary %s?", err, harness.Binary(t))
	}
	harness.Result{Args: cmd.Args[1:], Status: cmd.ProcessState.ExitCode(), Stderr: stderr.String()}.MustRefuse(t, closed, "permission")
}

// TestTerm: SIGTERM under load: exit 0 within seconds, and all that was acknowledged is there.
func TestTerm(t *testing.T) {
	const blocks = 8192
	s := harness.Start(t, "--capacity", "8G")
	s.Lunar("lun", "create", "d", fmt.Sprint(blocks*checker.BlockSize))
	model := checker.New(blocks)
	var slowest time.Duration
	for round := range 4 {
		load := &checker.Load{Model: model, Depth: 4, Seed: uint64(round), FlushEvery: 100}
		for range 4 {
			load.Devices = append(load.Devices, s.Dial("d"))
		}
		load.Start()
		time.Sleep(300 * time.Millisecond)
		slowest = max(slowest, s.Stop())
		err := load.Wait()
		if err == nil {
			t.Fatal("the load ended by itself")
		}
		var reply syscall.Errno
		if errors.As(err, &reply) { // a guest would see an I/O error
			t.Errorf("round %d: a client was answered %v instead of a closed connection", round, reply)
		}
		s.Start()
		// A clean stop loses nothing that was answered, flushed or not.
		verify(t, s, model, fmt.Sprintf("round %d: after SIGTERM", round), false)
	}
	requests, _ := model.Counts()
	t.Logf("%d requests in 4 rounds; the slowest stop took %v", requests, slowest)
}

// TestIdle: an idle server with attached clients uses next to no CPU. The long form waits for the checkpoint of what was written
// and gives the figure of docs/PERFORMANCE.md.
func TestIdle(t *testing.T) {
	s := harness.Start(t, "--capacity", "4G")
	s.Lunar("lun", "create", "d", "64M")
	for range 8 {
		c := s.Dial("d")
		if err := c.Write(make([]byte, 4096), 0, true); err != nil {
			t.Fatal(err)
		}
	}
	settle, span, most := time.Second, 3*time.Second, 100*time.Millisecond
	if harness.Long() {
		settle, span, most = 45*time.Second, 30*time.Second, 150*time.Millisecond
	}
	time.Sleep(settle)
	before := harness.CPUTime(t, s.Pid)
	time.Sleep(span)
	used := harness.CPUTime(t, s.Pid) - before
	t.Logf("an idle server with 8 clients used %v of CPU in %v: %.3f %% of a core", used, span, 100*used.Seconds()/span.Seconds())
	if most = harness.Within(most); used > most {
		t.Errorf("want at most %v", most)
	}
}
