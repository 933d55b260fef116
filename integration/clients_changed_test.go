package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lunar/integration/harness"
)

// changedLUN is a LUN of 64 MiB with two snapshots; `since` tells what changed after each, before each of the others.
func changedLUN(t *testing.T, s *harness.Server) {
	t.Helper()
	s.Lunar("lun", "create", "disk", "64M")
	qemuIO(t, s.URI("disk"), "write -P 1 0 8M", "write -P 2 32M 1M")
	s.Lunar("snapshot", "create", "disk@a")
	qemuIO(t, s.URI("disk"), "write -P 3 4M 64k", "discard 32M 512k", "write -P 4 41943040 5000")
	s.Lunar("snapshot", "create", "disk@b")
	qemuIO(t, s.URI("disk"), "write -P 5 10M 4k", "write -P 1 0 4k")
}

// diffRuns is `lunar diff` in full: what it does not name is the same.
func diffRuns(t *testing.T, s *harness.Server, size int64, from, to string) []run {
	t.Helper()
	var list []struct {
		Offset, Length int64
		Kind           string
	}
	s.JSON(&list, "diff", from, to)
	var runs []run
	at := int64(0)
	for _, d := range list {
		if d.Offset > at {
			runs = append(runs, run{at, d.Offset - at, "same"})
		}
		runs = append(runs, run{d.Offset, d.Length, "changed"})
		at = d.Offset + d.Length
	}
	if at < size {
		runs = append(runs, run{at, size - at, "same"})
	}
	return runs
}

// TestChangedContexts: every tool that can read a change map reads the same one, between LUN and snapshot and between
// two snapshots, also after kill -9: it is computed from the maps and cannot be lost.
func TestChangedContexts(t *testing.T) {
	harness.Need(t, "nbdinfo", "qemu-img")
	s := harness.Start(t, "--capacity", "4G")
	changedLUN(t, s)
	info := harness.Tool(t, "nbdinfo", s.URI("disk"))
	for _, context := range []string{"base:allocation", "lunar:changed:a", "lunar:changed:b", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"} {
		if !strings.Contains(info, context+"\n") {
			t.Errorf("nbdinfo does not name %s:\n%s", context, info)
		}
	}
	for round := range 2 {
		for _, view := range []struct{ export, since, from, to string }{
			{"disk", "a", "disk@a", "disk"}, {"disk", "b", "disk@b", "disk"}, {"disk@b", "a", "disk@a", "disk@b"},
		} {
			want := diffRuns(t, s, 64*mib, view.from, view.to)
			if len(want) < 2 {
				t.Fatalf("lunar diff %s %s: %v", view.from, view.to, want)
			}
			what := fmt.Sprintf("round %d: %s since %s", round, view.export, view.since)
			for _, prefix := range []string{"lunar:changed:", "qemu:dirty-bitmap:"} {
				got := nbdinfoMap(t, s.URI(view.export), prefix+view.since, changedWords)
				covers(t, got, 64*mib)
				sameRuns(t, what+", nbdinfo "+prefix, got, want)
			}
			for _, tool := range []string{"qemu-img", harness.Qemu10(t)} {
				sameRuns(t, what+", "+tool, bitmapMap(t, tool, s.Socket, view.export, "qemu:dirty-bitmap:"+view.since), want)
			}
		}
		if round == 0 {
			s.Kill()
			s.Start()
		}
	}
	// What is unknown is refused, not taken for "nothing has changed".
	if out, err := harness.Try("nbdinfo", "--map=lunar:changed:nosuch", s.URI("disk")); err == nil {
		t.Errorf("a map since an unknown snapshot: %s", out)
	}
	s.Lunar("snapshot", "delete", "disk@a", "--wait")
	if out, err := harness.Try("nbdinfo", "--map=lunar:changed:a", s.URI("disk")); err == nil {
		t.Errorf("a map since a snapshot that was deleted: %s", out)
	}
}

// incrementalScript copies to a file only what a context says has changed, as backup programs on libnbd do.
const incrementalScript = `
import nbd, os, sys
context, path = %q, %q
c = nbd.NBD()
c.add_meta_context(context)
c.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
c.connect_uri(%q)
assert c.can_meta_context(context), "no " + context
size, copied, at = c.get_size(), 0, 0
with open(path, "r+b") as f:
    while at < size:
        found = {}
        def note(name, offset, entries, err):
            found[name] = list(entries)
        c.block_status(min(size - at, 16 << 20), at, note)
        assert context in found, found
        entries, step = found[context], 0
        for length, state in zip(entries[::2], entries[1::2]):
            if state & 1:
                f.seek(at + step)
                for o in range(0, length, 1 << 20):
                    n = min(1 << 20, length - o)
                    f.write(c.pread(n, at + step + o))
                copied += length
            step += length
        assert step > 0
        at += step
print("copied", copied)
`

// TestIncrementalBackup: a full copy, then twice only the changed blocks, of a LUN and between two snapshots; each time
// the copy is the export, byte for byte, and no more was read than had changed.
func TestIncrementalBackup(t *testing.T) {
	harness.Need(t, "nbdsh", "nbdcopy")
	s := harness.Start(t, "--capacity", "4G")
	s.Lunar("lun", "create", "disk", "64M")
	qemuIO(t, s.URI("disk"), "write -P 1 0 20M", "write -P 2 32M 16M")
	s.Lunar("snapshot", "create", "disk@full")
	backup, whole := filepath.Join(harness.TempDir(t), "backup.img"), filepath.Join(harness.TempDir(t), "whole.img")
	harness.Tool(t, "nbdcopy", s.URI("disk@full"), backup)
	for i, step := range []struct {
		context, since string
		most           int64
		writes         []string
	}{
		{"qemu:dirty-bitmap:", "full", 900 << 10, []string{"write -P 3 1M 64k", "write -P 4 32000001 3", "discard 33M 512k", "write -z 40M 128k", "write -P 5 50M 100k"}},
		{"lunar:changed:", "inc0", 300 << 10, []string{"write -P 6 0 4k", "write -P 7 33M 128k", "discard 50M 100k"}},
		{"lunar:changed:", "inc1", 0, nil}, // nothing has changed
	} {
		if len(step.writes) > 0 {
			qemuIO(t, s.URI("disk"), step.writes...)
		}
		name := fmt.Sprintf("disk@inc%d", i)
		s.Lunar("snapshot", "create", name)
		out := harness.Tool(t, "env", "PATH=/usr/bin:/bin", "nbdsh", "-c", fmt.Sprintf(incrementalScript, step.context+step.since, backup, s.URI(name)))
		var copied int64
		if _, err := fmt.Sscanf(strings.TrimSpace(out), "copied %d", &copied); err != nil || copied > step.most || copied == 0 != (step.most == 0) {
			t.Errorf("step %d: %q, want some bytes, at most %d (%v)", i, out, step.most, err)
		}
		os.Remove(whole)
		harness.Tool(t, "nbdcopy", s.URI(name), whole)
		sameFile(t, fmt.Sprintf("the backup after step %d", i), backup, fileSum(t, whole))
		t.Logf("step %d: %d KiB copied", i, copied>>10)
	}
}
