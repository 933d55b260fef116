package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lunar/integration/client"
	"lunar/integration/harness"
)

// noted makes a hook that writes down that it ran and what it was told, and then does something.
func noted(file, do string) string {
	return fmt.Sprintf(`echo "$LUNAR_HOOK [$LUNAR_LUNS] $LUNAR_RESULT [$LUNAR_SNAPSHOTS]" >>%s; %s`, file, do)
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Errorf("no hook ran: %v", err)
	}
	os.Remove(path)
	if strings.Join(strings.Fields(string(text)), " ") != want {
		t.Errorf("the hooks noted %q, want %q", text, want)
	}
}

// TestSnapshotHooks: pre and post run around the snapshot, as whoever called; post always does.
func TestSnapshotHooks(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, "--capacity", "4G")
	s.Lunar("lun", "create", "db", "16M")
	s.Lunar("lun", "create", "log", "16M")
	note := filepath.Join(harness.TempDir(t), "note")
	pre, post := noted(note, "true"), noted(note, "true")

	if out := s.Lunar("snapshot", "create", "db@a", "log@b", "--pre", pre, "--post", post); out != "db@a\nlog@b\n" {
		t.Errorf("snapshot create printed %q", out)
	}
	wantFile(t, note, "pre [db log] [] post [db log] taken [db@a log@b]")

	s.Refused([]string{"--pre", "failed with status 3: cannot freeze", "no snapshot was taken"},
		"snapshot", "create", "db@no", "--pre", noted(note, "echo cannot freeze >&2; exit 3"), "--post", post)
	wantFile(t, note, "pre [db] [] post [db] failed []")

	began := time.Now()
	s.Refused([]string{"--pre", "was not done after 1s", "was killed: still waiting", "no snapshot was taken"},
		"snapshot", "create", "db@no", "--hook-timeout", "1s", "--pre", noted(note, "echo still waiting >&2; sleep 60 | cat"), "--post", post)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("a pre of 60 s with a timeout of 1 s took %v", took)
	}
	wantFile(t, note, "pre [db] [] post [db] failed []")

	s.Refused([]string{"db@a", "exists already"}, "snapshot", "create", "db@a", "--pre", pre, "--post", post)
	wantFile(t, note, "pre [db] [] post [db] failed []")

	r := s.Run("snapshot", "create", "db@thaw", "--post", "echo not thawed >&2; exit 1")
	if r.Status != 1 || r.Stdout != "db@thaw\n" || !strings.Contains(r.Stderr, "not thawed") || !strings.Contains(r.Stderr, "the snapshot was taken: db@thaw") {
		t.Errorf("a failing post: %+v", r)
	}
	s.Refused([]string{"nobody"}, "snapshot", "create", "nobody", "--pre", pre, "--post", post)
	if _, err := os.Stat(note); err == nil {
		t.Error("hooks ran for a LUN that is not there")
	}

	// A hook finds the same server: here it takes another snapshot.
	s.Lunar("snapshot", "create", "db@outer", "--pre", harness.Binary(t)+" snapshot create log@inner")
	var names []string
	for _, list := range [][]harness.Snapshot{s.Snapshots("db"), s.Snapshots("log")} {
		for _, x := range list {
			names = append(names, x.LUN+"@"+x.Name)
		}
	}
	if got := strings.Join(names, " "); got != "db@a db@thaw db@outer log@b log@inner" {
		t.Errorf("snapshots are %s", got)
	}
}

// TestSnapshotHooksInterrupted: Ctrl-C, a closed terminal or SIGTERM in pre ends it, and post runs; a second signal
// does not stop post.
func TestSnapshotHooksInterrupted(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, "--capacity", "4G")
	s.Lunar("lun", "create", "db", "16M")
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		dir := harness.TempDir(t)
		cmd := exec.Command(harness.Binary(t), "--server", "unix://"+s.Admin, "snapshot", "create", "db",
			"--pre", "touch frozen; sleep 60", "--post", "touch thawing; sleep 0.5; touch thawed")
		var stderr bytes.Buffer
		cmd.Dir, cmd.Stderr = dir, &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "pre", func() bool { return exists(dir, "frozen") })
		cmd.Process.Signal(signal)
		waitFor(t, "post", func() bool { return exists(dir, "thawing") })
		cmd.Process.Signal(signal)
		err := cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(stderr.String(), "interrupted") || !strings.Contains(stderr.String(), "no snapshot was taken") {
			t.Errorf("%v: %v, status %d: %s", signal, err, code, stderr.String())
		}
		if !exists(dir, "thawed") {
			t.Errorf("%v: post was not done", signal)
		}
	}
	if list := s.Snapshots("db"); len(list) != 0 {
		t.Errorf("there are snapshots: %v", list)
	}
}

func exists(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name))
	return err == nil
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for began := time.Now(); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("%s did not happen within 30 s", what)
		}
	}
}

// TestSnapshotLifetimes: a time to live ends a snapshot, protection holds it until its own end, and both can be changed.
func TestSnapshotLifetimes(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, "--capacity", "4G")
	s.Lunar("lun", "create", "d", "16M")
	s.Lunar("snapshot", "create", "d@short", "--ttl", "1s", "--label", "by=cron")
	s.Lunar("snapshot", "create", "d@held", "--ttl", "1s", "--protect-for", "4s")
	s.Lunar("snapshot", "create", "d@kept", "--ttl", "1s", "--protect")
	s.Lunar("snapshot", "create", "d@long", "--ttl", "1s", "--label", "app=web", "--label", "by=cron")
	s.Lunar("snapshot", "set", "d@long", "--ttl", "none", "--drop-label", "app", "--label", "by=hand", "--description", "kept by hand")
	created := time.Now()

	var held struct {
		Protected      bool
		ProtectedUntil *time.Time `json:"protected_until"`
		Expires        *time.Time
	}
	s.JSON(&held, "snapshot", "show", "d@held")
	if held.ProtectedUntil == nil || !held.Protected || held.Expires == nil || held.ProtectedUntil.Sub(*held.Expires).Round(time.Second) != 3*time.Second {
		t.Errorf("d@held: %+v", held)
	}
	s.Refused([]string{"d@held is protected", "unprotect", "--force"}, "snapshot", "delete", "d@held")
	names := func(args ...string) string {
		t.Helper()
		var list []harness.Snapshot
		s.JSON(&list, append([]string{"snapshot", "list", "d"}, args...)...)
		var names []string
		for _, x := range list {
			names = append(names, x.Name)
		}
		return strings.Join(names, " ")
	}
	if got := names("--label", "by=hand"); got != "long" {
		t.Errorf("snapshots by hand: %q", got)
	}
	if got := names("--label", "app"); got != "" {
		t.Errorf("snapshots with an app: %q", got)
	}
	waitFor(t, "the end of d@short", func() bool { return !strings.Contains(names(), "short") })
	if got := names(); time.Since(created) < 3*time.Second && got != "held kept long" {
		t.Errorf("left are %q, want held kept long", got)
	}
	waitFor(t, "the end of d@held", func() bool { return names() == "kept long" })
	if time.Since(created) < 3*time.Second {
		t.Errorf("d@held was deleted after %v, its protection lasted 4 s", time.Since(created))
	}
	s.Kill()
	s.Start()
	s.Lunar("snapshot", "unprotect", "d@kept")
	waitFor(t, "the end of d@kept", func() bool { return names() == "long" })
	if !strings.Contains(s.Lunar("snapshot", "show", "d@long"), "kept by hand") {
		t.Error("the description is lost")
	}
}

// TestResize: clients that are attached go on while their LUN grows, new ones see the new size; a shrink can be undone
// by a snapshot, and what was cut off does not come back otherwise.
func TestResize(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, "--capacity", "4G")
	s.Lunar("lun", "create", "d", "4M")
	old := s.Dial("d")
	block := make([]byte, 4096)
	fill(block, 1)
	write := func(c *client.Conn, off int64) {
		t.Helper()
		if err := c.Write(block, off, false); err != nil {
			t.Fatalf("write at %d: %v", off, err)
		}
	}
	read := func(c *client.Conn, off int64) []byte {
		t.Helper()
		p := make([]byte, len(block))
		if err := c.Read(p, off); err != nil {
			t.Fatalf("read at %d: %v", off, err)
		}
		return p
	}
	write(old, 0)
	s.Lunar("lun", "resize", "d", "8M")
	write(old, 4*mib-4096)
	grown := s.Dial("d")
	if old.Size != 4*mib || grown.Size != 8*mib {
		t.Errorf("sizes of old and new connections are %d and %d", old.Size, grown.Size)
	}
	write(grown, 8*mib-4096)
	if !bytes.Equal(read(old, 0), block) {
		t.Error("the old connection reads something else")
	}

	s.Lunar("snapshot", "create", "d@whole")
	s.Refused([]string{"shrinking", "snapshot", "--force"}, "lun", "resize", "d", "2M")
	s.Refused([]string{"2 clients", "disconnect"}, "lun", "resize", "d", "2M", "--force")
	old.Disconnect()
	grown.Disconnect()
	waitNoClients(t, s, "d")
	s.Lunar("lun", "offline", "d")
	s.Lunar("lun", "resize", "d", "2M", "--force")
	s.Lunar("lun", "resize", "d", "8M")
	s.Lunar("lun", "online", "d")
	c := s.Dial("d")
	if p := read(c, 8*mib-4096); !bytes.Equal(p, make([]byte, 4096)) {
		t.Error("what was cut off came back by growing")
	}
	if c := s.Dial("d@whole"); c.Size != 8*mib || !bytes.Equal(read(c, 8*mib-4096), block) {
		t.Error("the snapshot has not kept its size and content")
	}
	c.Disconnect()
	waitNoClients(t, s, "d")
	s.Lunar("lun", "resize", "d", "16M")
	s.Lunar("rollback", "d@whole", "--discard")
	if got := s.LUN("d").SizeBytes; got != 8*mib {
		t.Errorf("size after the rollback: %d", got)
	}
	s.Kill()
	s.Start()
	if c := s.Dial("d"); c.Size != 8*mib || !bytes.Equal(read(c, 8*mib-4096), block) {
		t.Error("the rollback across the resize is not what was snapshotted")
	}
}

// TestDiffAndCloneOfLUN: diff lists what was written, in both forms; a clone of a LUN without a snapshot is its content now.
func TestDiffAndCloneOfLUN(t *testing.T) {
	t.Parallel()
	s := harness.Start(t, "--capacity", "4G")
	s.Lunar("lun", "create", "d", "64M")
	c := s.Dial("d")
	block := make([]byte, 8192)
	fill(block, 1)
	put := func(off int64) {
		t.Helper()
		if err := c.Write(block, off, false); err != nil {
			t.Fatal(err)
		}
	}
	put(0)
	put(32 * mib)
	s.Lunar("snapshot", "create", "d@a")
	put(4096)
	put(48 * mib)
	if err := c.Trim(32*mib, 4096, true); err != nil {
		t.Fatal(err)
	}
	s.Lunar("snapshot", "create", "d@b")
	put(63 * mib)
	type part struct {
		Offset, Length int64
		Kind           string
	}
	diff := func(args ...string) (out []part) {
		t.Helper()
		s.JSON(&out, append([]string{"diff"}, args...)...)
		return out
	}
	want := []part{{4096, 8192, "data"}, {32 * mib, 4096, "hole"}, {48 * mib, 8192, "data"}}
	if got := diff("d@a", "d@b"); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("diff a b: %v, want %v", got, want)
	}
	if got := diff("d@a"); fmt.Sprint(got) != fmt.Sprint(append(want, part{63 * mib, 8192, "data"})) {
		t.Errorf("diff from a to now: %v", got)
	}
	back := []part{{4096, 4096, "data"}, {8192, 4096, "hole"}, {32 * mib, 4096, "data"}, {48 * mib, 8192, "hole"}}
	if got := diff("d@b", "d@a"); fmt.Sprint(got) != fmt.Sprint(back) {
		t.Errorf("diff b a: %v, want %v", got, back)
	}
	if got := diff("d@b", "d@b"); len(got) != 0 {
		t.Errorf("diff of one with itself: %v", got)
	}
	if lines := strings.Count(s.Lunar("diff", "d@a", "d@b"), "\n"); lines != 4 {
		t.Errorf("the table has %d lines, want a head and three", lines)
	}
	s.Lunar("lun", "create", "e", "1M")
	s.Lunar("snapshot", "create", "e@b")
	s.Refused([]string{"no version in common"}, "diff", "d@a", "e@b")

	// A clone of a LUN is taken while it is attached, without a snapshot that anybody sees.
	s.Lunar("clone", "d", "copy")
	put(0)
	if n := len(s.Snapshots("d")); n != 2 {
		t.Errorf("d has %d snapshots after its clone, want its 2", n)
	}
	s.Lunar("snapshot", "create", "copy@begin")
	if p := make([]byte, 8192); s.Dial("copy").Read(p, 63*mib) != nil || !bytes.Equal(p, block) {
		t.Error("the clone does not hold what was written before it")
	}
	if l := s.LUN("copy"); l.UsedBytes != 0 || l.Parent == nil || *l.Parent != "d" {
		t.Errorf("the clone: %+v, want nothing charged and d as its parent", l)
	}
	// One family: from the LUN's snapshot to the clone, what the LUN had changed before it was cloned.
	if got := diff("d@a", "copy"); fmt.Sprint(got) != fmt.Sprint(append(want, part{63 * mib, 8192, "data"})) {
		t.Errorf("diff from d@a to the clone: %v", got)
	}
	s.Refused([]string{"copy", "exists already"}, "clone", "d", "copy")
	s.Refused([]string{"nobody"}, "clone", "nobody", "x")
	s.Refused([]string{"d@nothing"}, "clone", "d@nothing", "x")
}
