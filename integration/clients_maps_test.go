package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lunar/integration/harness"
)

// run is one range of a map, as every tool's output is brought to.
type run struct {
	offset, length int64
	state          string
}

// joined merges neighbours of one state, as tools differ in where they cut.
func joined(list []run) []run {
	var out []run
	for _, r := range list {
		if last := len(out) - 1; last >= 0 && out[last].state == r.state && out[last].offset+out[last].length == r.offset {
			out[last].length += r.length
			continue
		}
		out = append(out, r)
	}
	return out
}

func sameRuns(t *testing.T, what string, got, want []run) {
	t.Helper()
	if got, want = joined(got), joined(want); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}

// nbdinfoMap is `nbdinfo --map=CONTEXT`: the type numbers of the protocol in words.
func nbdinfoMap(t *testing.T, uri, context string, words map[int]string) []run {
	t.Helper()
	var list []struct {
		Offset, Length int64
		Type           int
	}
	out := harness.Tool(t, "nbdinfo", "--json", "--map="+context, uri)
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("nbdinfo --map=%s: %v\n%s", context, err, out)
	}
	var runs []run
	for _, e := range list {
		word, ok := words[e.Type]
		if !ok {
			t.Fatalf("nbdinfo --map=%s: type %d in %s", context, e.Type, out)
		}
		runs = append(runs, run{e.Offset, e.Length, word})
	}
	return runs
}

var (
	allocationWords = map[int]string{0: "data", 1: "hole", 2: "zero", 3: "hole,zero"}
	changedWords    = map[int]string{0: "same", 1: "changed"}
)

// qemuMap is `qemu-img map --output=json` of a qemu-img of this version.
func qemuMap(t *testing.T, tool string, args ...string) []run {
	t.Helper()
	var list []struct {
		Start, Length       int64
		Data, Zero, Present bool
	}
	out := harness.Tool(t, tool, append([]string{"map", "--output=json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%s map: %v\n%s", tool, err, out)
	}
	var runs []run
	for _, e := range list {
		state := "data"
		switch {
		case e.Zero && e.Data:
			state = "zero"
		case e.Zero:
			state = "hole,zero"
		case !e.Data:
			state = "hole"
		}
		runs = append(runs, run{e.Start, e.Length, state})
	}
	return runs
}

// bitmapMap is what qemu-img sees of a dirty bitmap: by its documented trick, a changed range is one without data.
func bitmapMap(t *testing.T, tool, socket, export, context string) []run {
	t.Helper()
	runs := qemuMap(t, tool, "--image-opts", fmt.Sprintf("driver=nbd,server.type=unix,server.path=%s,export=%s,x-dirty-bitmap=%s", socket, export, context))
	for i, r := range runs {
		runs[i].state = map[string]string{"data": "same", "hole": "changed"}[r.state]
	}
	return runs
}

// TestMapAfterTrim: what the tools say of a LUN after TRIM and WRITE_ZEROES is the truth, block by block: holes where
// whole blocks were given back, data where anything is left, and zeroes wherever they say zero.
func TestMapAfterTrim(t *testing.T) {
	harness.Need(t, "nbdinfo", "qemu-img", "qemu-io")
	for _, kind := range []string{"thin", "thick"} {
		t.Run(kind, func(t *testing.T) {
			s := harness.Start(t, "--capacity", "4G")
			create := []string{"lun", "create", "disk", "64M"}
			if kind == "thick" {
				create = append(create, "--thick")
			}
			s.Lunar(create...)
			qemuIO(t, s.URI("disk"), "write -P 1 0 16M", "write -P 2 32M 4M", "write -P 3 60M 4M")
			// 5 MiB whole; a range with odd ends: the blocks at its ends stay; all of a run; one at the end; one never written.
			qemuIO(t, s.URI("disk"), "discard 2M 5M", "discard 9437185 1048575", "discard 32M 4M", "discard 63M 1M", "discard 20M 4M", "write -zu 12M 1M", "write -z 14M 1M")
			want := map[int64]string{0: "data", 2 * mib: "hole,zero", 7 * mib: "data", 10 * mib: "data", 12 * mib: "hole,zero", 13 * mib: "data", 14 * mib: "zero",
				15 * mib: "data", 16 * mib: "hole,zero", 32 * mib: "hole,zero", 60 * mib: "data", 63 * mib: "hole,zero"}
			if kind == "thick" { // zeroes keep what was promised
				want[12*mib] = "zero"
			}
			seen := nbdinfoMap(t, s.URI("disk"), "base:allocation", allocationWords)
			covers(t, seen, 64*mib)
			for offset, state := range want {
				if got := stateAt(seen, offset); got != state {
					t.Errorf("nbdinfo: at %d MiB %q, want %q", offset/mib, got, state)
				}
			}
			// The first block of the odd range keeps a byte, the rest of it is gone; its last block is whole.
			if a, b := stateAt(seen, 9*mib), stateAt(seen, 9*mib+4096); a != "data" || b != "hole,zero" {
				t.Errorf("nbdinfo: the blocks of a TRIM with an odd start are %q and %q", a, b)
			}
			sameRuns(t, "qemu-img map and nbdinfo", asQemu(qemuMap(t, "qemu-img", "-f", "raw", s.URI("disk"))), asQemu(seen))
			zeroesAre(t, s, "disk", seen)

			// The same of a snapshot, after the LUN has gone on.
			s.Lunar("snapshot", "create", "disk@a")
			qemuIO(t, s.URI("disk"), "write -P 9 0 64M")
			sameRuns(t, "nbdinfo of the snapshot", nbdinfoMap(t, s.URI("disk@a"), "base:allocation", allocationWords), seen)
			zeroesAre(t, s, "disk@a", seen)
			if full := nbdinfoMap(t, s.URI("disk"), "base:allocation", allocationWords); len(joined(full)) != 1 || full[0].state != "data" {
				t.Errorf("nbdinfo of a LUN that was written whole: %v", full)
			}
		})
	}
}

// asQemu forgets what qemu-img map cannot say: it calls allocated zeroes holes, or not, by its version.
func asQemu(list []run) []run {
	var out []run
	for _, r := range list {
		if r.state == "zero" {
			r.state = "hole,zero"
		}
		out = append(out, r)
	}
	return out
}

func covers(t *testing.T, list []run, size int64) {
	t.Helper()
	at := int64(0)
	for _, r := range list {
		if r.offset != at || r.length <= 0 {
			t.Fatalf("a map with a gap or an overlap at %d: %v", at, list)
		}
		at += r.length
	}
	if at != size {
		t.Fatalf("a map of %d bytes of %d: %v", at, size, list)
	}
}

func stateAt(list []run, offset int64) string {
	for _, r := range list {
		if offset >= r.offset && offset < r.offset+r.length {
			return r.state
		}
	}
	return ""
}

// zeroesAre reads every range that is said to be zero, and one that is said to be data must not all be zeroes.
func zeroesAre(t *testing.T, s *harness.Server, export string, list []run) {
	t.Helper()
	c := s.Dial(export)
	defer c.Disconnect()
	for _, r := range list {
		p := make([]byte, r.length)
		for at := int64(0); at < r.length; at += mib {
			if err := c.Read(p[at:min(at+mib, r.length)], r.offset+at); err != nil {
				t.Fatal(err)
			}
		}
		zero := bytes.Equal(p, make([]byte, len(p)))
		if says := strings.Contains(r.state, "zero"); says != zero {
			t.Errorf("%s: %d+%d is said to be %q, all zeroes: %v", export, r.offset, r.length, r.state, zero)
		}
	}
}

func qemuIO(t *testing.T, uri string, commands ...string) {
	t.Helper()
	args := []string{"-f", "raw", "-d", "unmap"}
	for _, command := range commands {
		args = append(args, "-c", command)
	}
	if out := harness.Tool(t, "qemu-io", append(args, uri)...); strings.Contains(out, "failed") {
		t.Fatalf("qemu-io %q:\n%s", commands, out)
	}
}

// TestQemuDD: qemu-img dd reads a part and writes a part.
func TestQemuDD(t *testing.T) {
	harness.Need(t, "qemu-img", "qemu-io")
	s := harness.Start(t, "--capacity", "4G")
	s.Lunar("lun", "create", "disk", "64M")
	qemuIO(t, s.URI("disk"), "write -P 1 0 2M", "write -P 2 61M 3M")
	dir := harness.TempDir(t)
	head, tail := filepath.Join(dir, "head"), filepath.Join(dir, "tail")
	harness.Tool(t, "qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=1M", "count=3", "if="+s.URI("disk"), "of="+head)
	harness.Tool(t, "qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=1M", "skip=60", "if="+s.URI("disk"), "of="+tail)
	for path, want := range map[string][]byte{
		head: append(bytes.Repeat([]byte{1}, 2*mib), make([]byte, mib)...), tail: append(make([]byte, mib), bytes.Repeat([]byte{2}, 3*mib)...),
	} {
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("qemu-img dd: %s: %d bytes, want %d, or other ones; %v", filepath.Base(path), len(got), len(want), err)
		}
	}
}
