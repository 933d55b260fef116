package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/cockroachdb/datadriven"

	"lunar/lun"
)

// TestScripts runs command lines against a fake pool and compares all that they
// print, and their exit status, with testdata/script. -rewrite writes it anew.
//
//	lunar          each line of the input is a command line
//	pool           prepares what a command line cannot: fill, warn, read-only, problem, diff
func TestScripts(t *testing.T) {
	scripts, err := filepath.Abs("testdata/script")
	if err != nil {
		t.Fatal(err)
	}
	datadriven.Walk(t, scripts, func(t *testing.T, path string) {
		e := newEnv(t)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "lunar":
				return e.script(t, d.Input)
			case "pool":
				for _, line := range strings.Split(d.Input, "\n") {
					e.prepare(t, strings.Fields(line))
				}
				return ""
			}
			t.Fatalf("unknown directive %s", d.Cmd)
			return ""
		})
	})
}

func (e *env) script(t *testing.T, input string) string {
	var b strings.Builder
	lines := strings.Split(input, "\n")
	for _, line := range lines {
		r := e.lunar(splitWords(line)...)
		if len(lines) > 1 {
			fmt.Fprintf(&b, "$ %s\n", line)
		}
		b.WriteString(e.tidy(r.stdout))
		if r.stderr != "" {
			b.WriteString("stderr: " + e.tidy(r.stderr))
		}
		if r.status != exitOK {
			fmt.Fprintf(&b, "exit %d\n", r.status)
		}
		checkOutput(t, line, r)
	}
	return b.String()
}

// tidy takes out what differs from run to run.
func (e *env) tidy(s string) string {
	s = strings.ReplaceAll(s, fmt.Sprintf(`"pid": %d`, os.Getpid()), `"pid": PID`)
	return strings.ReplaceAll(s, e.dir, "DIR")
}

// checkOutput holds for every command line: failures say one line, tables fit.
func checkOutput(t *testing.T, line string, r result) {
	t.Helper()
	if r.status == exitFailed || r.status == exitUnparsable {
		if !strings.Contains(line, "--check") {
			r.wantFailure(t, r.status)
		}
	}
	names := strings.HasPrefix(line, "snapshot create") // no table, and never cut
	for _, l := range strings.Split(r.stdout, "\n") {
		if utf8.RuneCountInString(l) > tableWidth && !names && !strings.Contains(line, "json") && !strings.Contains(line, "--check") {
			t.Errorf("lunar %s: a line has more than %d columns: %s", line, tableWidth, l)
		}
	}
}

func (e *env) prepare(t *testing.T, words []string) {
	t.Helper()
	rest := strings.Join(words[1:], " ")
	switch words[0] {
	case "fill": // LUN BLOCKS
		v, err := e.pool.OpenVolume(words[1], "")
		if err != nil {
			t.Fatal(err)
		}
		n, err := lun.ParseSize(words[2])
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, n*zeroUnit)
		for i := range p {
			p[i] = byte(i/zeroUnit) | 1
		}
		if err := v.WriteAt(p, 0, false); err != nil {
			t.Fatal(err)
		}
	case "warn": // LEVEL TEXT
		e.pool.warnings = append(e.pool.warnings, lun.Warning{Level: words[1], Message: strings.Join(words[2:], " ")})
	case "read-only":
		e.pool.reason = rest
	case "problem": // WHERE TEXT
		e.pool.report = lun.CheckReport{Problems: []lun.Problem{{Where: words[1], What: strings.Join(words[2:], " ")}}}
	case "diff":
		e.pool.diff = []lun.DiffRange{{Offset: 0, Length: 8192, Kind: "data"}, {Offset: 1 << 40, Length: 4096, Kind: "hole"}}
	default:
		t.Fatalf("unknown preparation %s", words[0])
	}
}

// splitWords splits at blanks outside of double quotes.
func splitWords(line string) []string {
	var words []string
	word, quoted, any := "", false, false
	for _, r := range line {
		switch {
		case r == '"':
			quoted, any = !quoted, true
		case r == ' ' && !quoted:
			if any {
				words = append(words, word)
			}
			word, any = "", false
		default:
			word, any = word+string(r), true
		}
	}
	if any {
		words = append(words, word)
	}
	return words
}
