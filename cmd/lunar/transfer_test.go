package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lunar/lun"
)

// content reads a whole LUN or snapshot of the pool.
func (e *env) content(name, snapshot string) []byte {
	e.t.Helper()
	v, err := e.pool.OpenVolume(name, snapshot)
	if err != nil {
		e.t.Fatal(err)
	}
	p := make([]byte, v.Size())
	if err := v.ReadAt(p, 0); err != nil {
		e.t.Fatal(err)
	}
	return p
}

func writeFileT(t *testing.T, path string, p []byte) {
	t.Helper()
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
}

// diskBytes is what a file takes of its file system.
func diskBytes(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestImportAndExportOfFiles(t *testing.T) {
	e := newEnv(t)
	for _, n := range []int{1, 4096, 5000, 1<<20 + 1, 3<<20 + 512} {
		image := sparseImage(n, uint64(n))
		writeFileT(t, "in.raw", image)
		e.must("lun", "import", "disk", "in.raw")
		got := e.content("disk", "")
		if int64(len(got)) != lunSizeFor(int64(n)) || !bytes.Equal(got[:n], image) || !bytes.Equal(got[n:], make([]byte, len(got)-n)) {
			t.Fatalf("%d bytes do not come in as they are; the LUN has %d", n, len(got))
		}
		e.must("lun", "export", "disk", "out.raw")
		out, err := os.ReadFile("out.raw")
		if err != nil || !bytes.Equal(out, got) {
			t.Fatalf("%d bytes do not go out as they are: %v", n, err)
		}
		must(os.Remove("out.raw"))
		e.must("lun", "delete", "disk")
	}
	if list, _ := e.pool.Snapshots(""); len(list) != 0 {
		t.Errorf("snapshots are left: %v", list)
	}
}

// What is sparse costs nothing on either side.
func TestImportAndExportStaySparse(t *testing.T) {
	e := newEnv(t)
	f, err := os.Create("in.raw")
	if err != nil {
		t.Fatal(err)
	}
	const size = 8 << 30
	must(f.Truncate(size))
	for _, off := range []int64{0, 5<<30 + 4096, size - 4096} {
		if _, err := f.WriteAt([]byte("data"), off); err != nil {
			t.Fatal(err)
		}
	}
	must(f.Close())
	info := e.must("lun", "import", "disk", "in.raw", "-o", "json")
	if !strings.Contains(info, `"used_bytes": 12288`) {
		t.Errorf("three blocks of data take more: %s", info)
	}
	out := e.must("lun", "export", "disk", "out.raw", "-o", "json")
	if !strings.Contains(out, `"data_bytes": 12288`) {
		t.Errorf("three blocks of data are more on their way out: %s", out)
	}
	if n := diskBytes(t, "out.raw"); n > 64<<10 {
		t.Errorf("three blocks of data take %d bytes of disk", n)
	}
	stdout, err := os.Create("stdout.raw")
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	if _, err := stdout.WriteString("head"); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	if status := run(t.Context(), e.app(), []string{"--data", e.dir, "lun", "export", "disk", "-"}, nil, stdout, &stderr); status != 0 {
		t.Fatal(stderr.String())
	}
	if at, _ := stdout.Seek(0, io.SeekCurrent); at != size+4 || diskBytes(t, "stdout.raw") > 64<<10 {
		t.Errorf("stdout is at %d, takes %d bytes of disk", at, diskBytes(t, "stdout.raw"))
	}
	tail := make([]byte, 4096)
	if _, err := stdout.ReadAt(tail, 4+size-4096); err != nil || !bytes.HasPrefix(tail, []byte("data")) {
		t.Errorf("the last block is not there: %v", err)
	}
}

func TestImportFromAPipe(t *testing.T) {
	e := newEnv(t)
	for _, n := range []int{1, 4097, streamChunk, streamChunk + 12345} {
		image := sparseImage(n, uint64(n))
		r := e.lunarIn(io.MultiReader(bytes.NewReader(image)), "lun", "import", "disk", "-")
		if r.status != 0 {
			t.Fatalf("%d bytes: %s", n, r.stderr)
		}
		got := e.content("disk", "")
		if int64(len(got)) != lunSizeFor(int64(n)) || !bytes.Equal(got[:n], image) {
			t.Fatalf("%d bytes do not come in as they are; the LUN has %d", n, len(got))
		}
		out := e.lunar("lun", "export", "disk", "-")
		if out.status != 0 || out.stdout != string(got) || out.stderr != "" {
			t.Fatalf("%d bytes do not go out as they are: %d bytes, %s", n, len(out.stdout), out.stderr)
		}
		e.must("lun", "delete", "disk")
	}
}

func TestImportSizes(t *testing.T) {
	e := newEnv(t)
	writeFileT(t, "in.raw", bytes.Repeat([]byte{7}, 9000))
	writeFileT(t, "empty.raw", nil)
	e.must("lun", "import", "big", "in.raw", "--size", "1M", "--thick")
	if got := e.content("big", ""); len(got) != 1<<20 || got[8999] != 7 || got[9000] != 0 {
		t.Error("--size does not make it larger")
	}
	e.must("lun", "import", "empty", "empty.raw", "--size", "1M")
	if r := e.lunarIn(bytes.NewReader(make([]byte, 9000)), "lun", "import", "pipe", "-", "--size", "1M"); r.status != 0 {
		t.Error(r.stderr)
	}
	before := e.pool.describe()
	e.lunar("lun", "import", "x", "in.raw", "--size", "4K").wantFailure(t, exitFailed, "in.raw", "9000")
	e.lunarIn(bytes.NewReader(make([]byte, 9000)), "lun", "import", "x", "-", "--size", "4K").wantFailure(t, exitFailed, "--size")
	e.lunar("lun", "import", "x", "empty.raw").wantFailure(t, exitFailed, "empty.raw", "--size")
	e.lunarIn(bytes.NewReader(nil), "lun", "import", "x", "-").wantFailure(t, exitFailed, "stdin")
	e.lunar("lun", "import", "x", "nowhere.raw").wantFailure(t, exitFailed, "nowhere.raw")
	e.lunar("lun", "import", "x", ".").wantFailure(t, exitFailed, "folder")
	e.lunar("lun", "import", "big", "in.raw").wantFailure(t, exitFailed, "big", "exists")
	e.lunar("lun", "import", "b@d", "in.raw").wantFailure(t, exitUnparsable, "b@d")
	e.lunar("lun", "import", "x", "in.raw", "--size", "5000").wantFailure(t, exitUnparsable, "--size")
	e.lunar("lun", "import", "x").wantFailure(t, exitUnparsable, "FILE")
	if got := e.pool.describe(); got != before {
		t.Errorf("refused imports changed the pool from\n%sto\n%s", before, got)
	}
}

// While an import runs nobody can attach; a LUN is whole or not there.
func TestImportIsOfflineUntilDone(t *testing.T) {
	e := newEnv(t)
	var during string
	var once atomic.Bool
	e.pool.onWrite = func(string, int64) error {
		if once.CompareAndSwap(false, true) {
			l := e.pool.luns[0].info
			during = l.Description
			if l.Online {
				t.Error("the LUN is online during its import")
			}
		}
		return nil
	}
	writeFileT(t, "in.raw", bytes.Repeat([]byte{1}, 1<<20))
	e.must("lun", "import", "disk", "in.raw")
	if got := e.pool.describe(); during != importNote || got != "disk 1048576 online=true \"\" snapshots=0\n" {
		t.Errorf("during %q, after %s", during, got)
	}
}

// The server refuses in the middle of a long stream: its reason arrives although
// the client is still sending, and no LUN is left.
func TestImportThatFailsInTheServer(t *testing.T) {
	e := newEnv(t)
	var taken int64
	e.pool.onWrite = func(_ string, n int64) error {
		if taken += n; taken > 3<<20 {
			return lun.Errorf(lun.ErrNoSpace, "pool is full; delete snapshots")
		}
		return nil
	}
	for range 2 {
		taken = 0
		const all = 512 << 20
		in := &io.LimitedReader{R: ones{}, N: all}
		r := e.lunarIn(in, "lun", "import", "disk", "-")
		r.wantFailure(t, exitFailed, "import of disk: pool is full; delete snapshots")
		if sent := all - in.N; sent > all/2 {
			t.Errorf("the client sent %d bytes before it heard of the refusal", sent)
		}
		if got := e.pool.describe(); got != "" {
			t.Fatalf("a failed import left %s", got)
		}
	}
	for _, method := range []string{"flush", "close-volume", "open", "online"} {
		e.pool.onWrite = nil
		e.pool.fault = func(m, _ string) error {
			if m == method {
				return syscall.EIO
			}
			return nil
		}
		r := e.lunarIn(io.LimitReader(ones{}, 1<<20), "lun", "import", "disk", "-")
		r.wantFailure(t, exitFailed, "input/output error")
		if got := e.pool.describe(); got != "" {
			t.Fatalf("an import that failed in %s left %s", method, got)
		}
	}
}

// ones is an endless stream of data.
type ones struct{}

var manyOnes = bytes.Repeat([]byte{1}, 1<<20)

func (ones) Read(p []byte) (int, error) { return copy(p, manyOnes), nil }

// failingReader gives n bytes and then an error.
type failingReader struct {
	n   int
	err error
}

func (f *failingReader) Read(p []byte) (int, error) {
	if f.n == 0 {
		return 0, f.err
	}
	n := min(f.n, len(p))
	f.n -= n
	return copy(p[:n], manyOnes), nil
}

// The client cannot go on: when it returns, no LUN is left.
func TestImportThatFailsInTheClient(t *testing.T) {
	e := newEnv(t)
	r := e.lunarIn(&failingReader{streamChunk + 1, errors.New("tape is torn")}, "lun", "import", "disk", "-")
	r.wantFailure(t, exitFailed, "tape is torn")
	if got := e.pool.describe(); got != "" {
		t.Errorf("a failed import left %s", got)
	}
}

// interruptingReader cancels the command when it is read for the second time.
type interruptingReader struct {
	reads  int
	cancel context.CancelFunc
}

func (r *interruptingReader) Read(p []byte) (int, error) {
	if r.reads++; r.reads > streamChunk/len(manyOnes)+1 {
		r.cancel()
	}
	return ones{}.Read(p)
}

func TestImportThatIsInterrupted(t *testing.T) {
	e := newEnv(t)
	ctx, cancel := context.WithCancel(t.Context())
	var stderr bytes.Buffer
	status := run(ctx, e.app(), []string{"--data", e.dir, "lun", "import", "disk", "-"}, &interruptingReader{cancel: cancel}, io.Discard, &stderr)
	result{status, "", stderr.String()}.wantFailure(t, exitFailed, "interrupted")
	if got := e.pool.describe(); got != "" {
		t.Errorf("an interrupted import left %s", got)
	}
}

// A pipe that says nothing more does not keep Ctrl-C from working, neither before
// the import has begun nor in its middle.
func TestImportThatIsInterruptedWhileItWaits(t *testing.T) {
	e := newEnv(t)
	for _, n := range []int{1, streamChunk + 1} {
		ctx, cancel := context.WithCancel(t.Context())
		pr, pw := io.Pipe()
		done := make(chan result, 1)
		go func() {
			var stderr bytes.Buffer
			status := run(ctx, e.app(), []string{"--data", e.dir, "lun", "import", "disk", "-"}, pr, io.Discard, &stderr)
			done <- result{status, "", stderr.String()}
		}()
		if _, err := io.CopyN(pw, ones{}, int64(n)); err != nil {
			t.Fatal(err)
		}
		cancel()
		select {
		case r := <-done:
			r.wantFailure(t, exitFailed, "interrupted")
		case <-time.After(60 * time.Second):
			t.Fatal("the import cannot be interrupted")
		}
		pw.Close()
		if got := e.pool.describe(); got != "" {
			t.Errorf("an interrupted import left %s", got)
		}
	}
}

// The client dies without a word: the LUN goes all the same.
func TestImportWhoseClientDies(t *testing.T) {
	e := newEnv(t)
	c, err := (&app{data: e.dir}).client()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	req, err := c.request(ctx, "POST", lunPath("disk", "import")+"?size=1048576", pr)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = pw.Write([]byte{byte(frameSize)})
		cancel()
		pw.CloseWithError(io.ErrUnexpectedEOF)
	}()
	if _, err := c.send(req); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	eventually(t, func() bool { return e.pool.describe() == "" })
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen within 5 s")
		}
	}
}

func TestExportRefusals(t *testing.T) {
	e := newEnv(t)
	e.must("lun", "create", "disk", "1M")
	e.prepare(t, []string{"fill", "disk", "16"})
	e.must("snapshot", "create", "disk@a")
	writeFileT(t, "there.raw", []byte("precious"))
	must(os.Symlink("nowhere", "dangling"))
	must(os.Mkdir("dir", 0o755))

	e.lunar("lun", "export", "disk", "there.raw").wantFailure(t, exitFailed, "there.raw", "--force")
	e.lunar("lun", "export", "disk", "dangling").wantFailure(t, exitFailed, "dangling", "--force")
	e.lunar("lun", "export", "disk", "dir").wantFailure(t, exitFailed, "folder")
	e.lunar("lun", "export", "disk", "dir", "--force").wantFailure(t, exitFailed, "folder")
	e.lunar("lun", "export", "disk", "no/such/file").wantFailure(t, exitFailed, "no/such/file")
	e.lunar("lun", "export", "nobody", "new.raw").wantFailure(t, exitFailed, "nobody")
	e.lunar("lun", "export", "disk@b", "new.raw").wantFailure(t, exitFailed, "disk@b")
	e.lunar("lun", "export", "disk@", "new.raw").wantFailure(t, exitUnparsable)
	e.pool.fault = func(method, _ string) error {
		if method == "read" {
			return lun.Errorf(lun.ErrCorrupt, "block 7 of disk is damaged; roll back or restore it")
		}
		return nil
	}
	e.lunar("lun", "export", "disk", "new.raw").wantFailure(t, exitFailed, "block 7")
	e.lunar("lun", "export", "disk", "there.raw", "--force").wantFailure(t, exitFailed, "block 7")
	e.pool.fault = nil

	if text, _ := os.ReadFile("there.raw"); string(text) != "precious" {
		t.Error("a failed export touched the file that was there")
	}
	names, _ := filepath.Glob("{.*,*}")
	entries, _ := os.ReadDir(".")
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if got := strings.Join(names, " "); got != "dangling dir there.raw" {
		t.Errorf("failed exports left files: %s", got)
	}
	if list, _ := e.pool.Snapshots(""); len(list) != 1 {
		t.Errorf("failed exports left snapshots: %v", list)
	}
}

func TestExportByForce(t *testing.T) {
	e := newEnv(t)
	e.must("lun", "create", "disk", "1M")
	e.must("snapshot", "create", "disk@empty")
	e.prepare(t, []string{"fill", "disk", "16"})
	writeFileT(t, "there.raw", []byte("old"))
	must(os.Symlink("there.raw", "link"))
	e.must("lun", "export", "disk", "link", "--force")
	got, err := os.ReadFile("there.raw")
	if err != nil || !bytes.Equal(got, e.content("disk", "")) {
		t.Errorf("the file behind the link was not replaced: %v", err)
	}
	if info, _ := os.Stat("there.raw"); info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v by now", info.Mode())
	}
	e.must("lun", "export", "disk@empty", "there.raw", "--force")
	if got, _ := os.ReadFile("there.raw"); !bytes.Equal(got, make([]byte, 1<<20)) {
		t.Error("the snapshot is not empty")
	}
	if info, _ := os.Lstat("link"); info.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced")
	}
	e.must("lun", "export", "disk", "/dev/null", "--force")
}

// A server that died in an export left its snapshot; the next one removes it.
func TestTemporarySnapshotsGoAtTheStart(t *testing.T) {
	isolate(t)
	p := newFakePool()
	if _, err := p.CreateLUN(t.Context(), lun.CreateLUN{Name: "disk", SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	for name, labels := range map[string]map[string]string{"export-1": {temporaryLabel: "export"}, "mine": {"by": "me"}} {
		_, err := p.CreateSnapshots(t.Context(), []lun.SnapshotRequest{{LUN: "disk", Name: name}}, lun.SnapshotOptions{Labels: labels, Protect: true})
		if err != nil {
			t.Fatal(err)
		}
	}
	startEnv(t, p)
	if list, _ := p.Snapshots(""); len(list) != 1 || list[0].Name != "mine" {
		t.Errorf("%v", list)
	}
}

func TestImportOfQcow2(t *testing.T) {
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Fatalf("qemu-img is needed: install qemu-utils: %v", err)
	}
	e := newEnv(t)
	image := sparseImage(3<<20, 4)
	writeFileT(t, "in.raw", image)
	qemu := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %v: %v: %s", args, err, out)
		}
	}
	qemu("convert", "-f", "raw", "-O", "qcow2", "in.raw", "in.qcow2")
	t.Setenv("TMPDIR", shortDir(t))
	e.must("lun", "import", "file", "in.qcow2")
	f, err := os.Open("in.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if r := e.lunarIn(io.MultiReader(f), "lun", "import", "pipe", "-", "--size", "4M"); r.status != 0 {
		t.Fatal(r.stderr)
	}
	for name, size := range map[string]int{"file": 3 << 20, "pipe": 4 << 20} {
		if got := e.content(name, ""); len(got) != size || !bytes.Equal(got[:len(image)], image) {
			t.Errorf("%s: %d bytes, not those of the image", name, len(got))
		}
	}
	qemu("create", "-f", "qcow2", "-b", "in.raw", "-F", "raw", "overlay.qcow2")
	e.lunar("lun", "import", "x", "overlay.qcow2").wantFailure(t, exitFailed, "overlay.qcow2", "in.raw")
	writeFileT(t, "broken.qcow2", append(bytes.Clone(qcow2Magic), make([]byte, 1000)...))
	e.lunar("lun", "import", "x", "broken.qcow2").wantFailure(t, exitFailed, "broken.qcow2")
	t.Setenv("PATH", "/nonexistent")
	e.lunar("lun", "import", "x", "in.qcow2").wantFailure(t, exitFailed, "qemu-img", "install")
	if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) != 0 {
		t.Errorf("temporary files are left: %v", left)
	}
}
