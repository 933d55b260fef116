package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lunar/lun"
	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

// Here nothing is a fake: `lunar serve` on a real pool, with clients.

// live is a `lunar serve` that runs, and its command line.
type live struct {
	t    *testing.T
	dir  string
	nbd  net.Addr
	stop func() result
}

func startLive(t *testing.T, dir string) *live {
	t.Helper()
	l := &live{t: t, dir: dir, nbd: &net.UnixAddr{Name: filepath.Join(dir, "nbd.sock"), Net: "unix"}}
	e := &env{t: t}
	t.Setenv("LUNAR_SEGMENT_SIZE", "4M")
	s := e.serveApp(t, newApp(), "--data", dir, "--listen", "unix://"+l.nbd.String(), "--capacity", "256M", "--log-level", "warn")
	if s.ready == "" {
		t.Fatal(s.failed(t).stderr)
	}
	l.stop = func() result { return s.stop(t) }
	return l
}

func (l *live) lunar(args ...string) result {
	l.t.Helper()
	var stdout, stderr strings.Builder
	status := run(l.t.Context(), newApp(), append([]string{"--data", l.dir}, args...), strings.NewReader(""), &stdout, &stderr)
	return result{status, stdout.String(), stderr.String()}
}

func (l *live) must(args ...string) string {
	l.t.Helper()
	r := l.lunar(args...)
	if r.status != 0 {
		l.t.Fatalf("lunar %s: exit %d: %s%s", strings.Join(args, " "), r.status, r.stdout, r.stderr)
	}
	return r.stdout
}

func show[T any](l *live, args ...string) T {
	l.t.Helper()
	var v T
	if err := json.Unmarshal([]byte(l.must(append(args, "-o", "json")...)), &v); err != nil {
		l.t.Fatal(err)
	}
	return v
}

func TestLiveSession(t *testing.T) {
	isolate(t)
	dir := filepath.Join(shortDir(t), "d")
	l := startLive(t, dir)
	l.must("lun", "create", "disk", "64M")

	// The empty name is the only LUN, and clients are listed by its own name.
	c := nbdtest.Attach(t, l.nbd, "", true)
	before, after := bytes.Repeat([]byte{1}, 1<<20), bytes.Repeat([]byte{2}, 1<<20)
	c.Write(0, before)
	l.must("snapshot", "create", "disk@before")
	c.Write(0, after)
	if list := show[[]lun.ClientInfo](l, "client", "list"); len(list) != 1 || list[0].Export != "disk" {
		t.Errorf("%+v", list)
	}
	diff := show[[]lun.DiffRange](l, "diff", "disk@before")
	if len(diff) != 1 || diff[0] != (lun.DiffRange{Length: 1 << 20, Kind: "data"}) {
		t.Errorf("%+v", diff)
	}
	l.lunar("rollback", "disk@before").wantFailure(t, exitFailed, "disk", "attached", "--force")
	l.lunar("lun", "delete", "disk").wantFailure(t, exitFailed, "disk")
	kept := l.lunar("rollback", "disk@before", "--force")
	if kept.status != 0 || !strings.HasPrefix(kept.stdout, "disk@before-rollback-") || !strings.Contains(kept.stderr, "lunar lun online disk") {
		t.Errorf("%+v", kept)
	}
	if err := c.Gone(); err != nil {
		t.Errorf("the client is still there: %v", err)
	}
	if r := nbdtest.Dial(t, l.nbd).Last(nbdtest.OptGo, nbdtest.InfoData("disk")); r.Type&(1<<31) == 0 {
		t.Errorf("an offline LUN can be attached: %+v", r)
	}
	l.must("lun", "online", "disk")
	c = nbdtest.Attach(t, l.nbd, "disk", true)
	if !bytes.Equal(c.Read(0, len(before)), before) {
		t.Error("the rollback did not bring the data back")
	}
	c.Disc()
	snap := nbdtest.Attach(t, l.nbd, strings.TrimSpace(kept.stdout), true)
	if !bytes.Equal(snap.Read(0, len(after)), after) {
		t.Error("the state before the rollback was not kept")
	}
	snap.Disc()
	if text := l.must("events"); !strings.Contains(text, "lun-create") || !strings.Contains(text, "rollback") {
		t.Errorf("%s", text)
	}
	l.must("pool", "check")
	if r := l.stop(); r.status != 0 || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	if r := l.lunar("pool", "check", "--offline"); r.status != 0 || r.stdout != "ok\n" {
		t.Errorf("%+v", r)
	}
	again := startLive(t, dir)
	if list := show[[]lun.SnapshotInfo](again, "snapshot", "list", "disk"); len(list) != 2 || list[0].Name != "before" {
		t.Errorf("%+v", list)
	}
	again.must("pool", "check")
	again.stop()
}

func TestLiveImportAndExport(t *testing.T) {
	isolate(t)
	l := startLive(t, filepath.Join(shortDir(t), "d"))
	image := sparseImage(5<<20+1000, 1)
	writeFileT(t, "in.raw", image)
	l.must("lun", "import", "disk", "in.raw")
	l.must("lun", "export", "disk", "out.raw")
	out, err := os.ReadFile("out.raw")
	if err != nil || int64(len(out)) != lunSizeFor(int64(len(image))) || !bytes.Equal(out[:len(image)], image) {
		t.Errorf("%d bytes do not come back as they went: %v", len(out), err)
	}
	a := newApp()
	var stdout, stderr bytes.Buffer
	if status := run(t.Context(), a, []string{"--data", l.dir, "lun", "import", "pipe", "-", "--thick"}, io.LimitReader(ones{}, streamChunk+4096), &stdout, &stderr); status != 0 {
		t.Fatal(stderr.String())
	}
	if info := show[lun.LUNInfo](l, "lun", "show", "pipe"); info.SizeBytes != streamChunk+4096 || info.UsedBytes != info.SizeBytes || !info.Online {
		t.Errorf("%+v", info)
	}
	stderr.Reset()
	status := run(t.Context(), a, []string{"--data", l.dir, "lun", "import", "huge", "-"}, io.LimitReader(ones{}, 512<<20), &stdout, &stderr)
	result{status, "", stderr.String()}.wantFailure(t, exitFailed, "import of huge")
	l.lunar("lun", "show", "huge").wantFailure(t, exitFailed, "huge")
	if list := show[[]lun.SnapshotInfo](l, "snapshot", "list"); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	l.must("pool", "clean") // what the failed import held is back
	l.must("pool", "check")
	l.stop()
}

// The suite of the protocol on what clients of `lunar serve` get.
func TestLiveSuite(t *testing.T) {
	for _, name := range []string{"disk", "disk@a"} {
		t.Run(name, func(t *testing.T) {
			nbdtest.Suite(t, func(t *testing.T) (nbd.Backend, string) {
				c := &config{Data: filepath.Join(t.TempDir(), "d"), Capacity: 1 << 30, SegmentBytes: 4 << 20, IndexCache: 8 << 20}
				p, err := openLivePool(context.Background(), poolOptions{Config: c, Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := p.Close(); err != nil {
						t.Error(err)
					}
				})
				if _, err := p.CreateLUN(t.Context(), lun.CreateLUN{Name: "disk", SizeBytes: 8<<20 + 512, QoS: lun.QoS{IOPS: 1e6, BytesPerSecond: 1 << 40}}); err != nil {
					t.Fatal(err)
				}
				if _, err := p.CreateSnapshots(t.Context(), []lun.SnapshotRequest{{LUN: "disk", Name: "a"}}, lun.SnapshotOptions{}); err != nil {
					t.Fatal(err)
				}
				return &backend{pool: p}, name
			})
		})
	}
}

// Who cannot open a pool says why and changes nothing.
func TestLiveRefusals(t *testing.T) {
	isolate(t)
	dir := filepath.Join(shortDir(t), "d")
	l := startLive(t, dir)
	second := func(data string, parts ...string) {
		t.Helper()
		e := &env{t: t}
		e.serveApp(t, newApp(), "--data", data, "--listen", "tcp://127.0.0.1:0").failed(t).wantFailure(t, exitFailed, parts...)
	}
	second(dir, dir, "in use", "pid")
	// Without its admin socket it is the lock that tells.
	must(os.Rename(filepath.Join(dir, adminSocket), filepath.Join(dir, "away.sock")))
	second(dir, dir, "in use", "pid")
	l.lunar("pool", "check", "--offline").wantFailure(t, exitFailed, "in use")
	must(os.Rename(filepath.Join(dir, "away.sock"), filepath.Join(dir, adminSocket)))
	l.must("lun", "list")
	l.stop()

	foreign := shortDir(t)
	writeFileT(t, filepath.Join(foreign, "letter"), []byte("dear"))
	second(foreign, foreign, "letter")
	if entries, _ := os.ReadDir(foreign); len(entries) != 1 {
		t.Errorf("%v", entries)
	}
	runAlone(t, "--data", foreign, "pool", "check", "--offline").wantFailure(t, exitFailed, foreign)
	runAlone(t, "--data", foreign, "pool", "repair").wantFailure(t, exitFailed, foreign)
	runAlone(t, "--data", foreign+"/no", "pool", "check", "--offline").wantFailure(t, exitFailed, foreign+"/no")
	if _, err := os.Stat(foreign + "/no"); err == nil {
		t.Error("a check made the folder")
	}
	second("/dev/null/x", "/dev/null/x")
	identity, err := os.ReadFile(filepath.Join(dir, "pool.json"))
	if err != nil {
		t.Fatal(err)
	}
	newer := bytes.Replace(identity, []byte(`"format": 1`), []byte(`"format": 99`), 1)
	writeFileT(t, filepath.Join(dir, "pool.json"), newer)
	second(dir, "format 99")
}
