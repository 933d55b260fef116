// Command mutants shows that the crash tests are able to fail: it builds them with changes that are wrong on purpose, one
// after the other, and prints which of them the tests caught. Nothing in the checkout is changed (go test -overlay).
//
//	go run ./integration/mutants [-only TEXT]
//
// It exits with 1 if a mutant survived.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// battery is what a mutant has to get through, the quick ones first.
var battery = []struct {
	name, pkg string
	args      []string
}{
	{"simulated crashes", "./lun", []string{"-test.run", "TestSimulatedCrashes/works"}},
	{"crash tests", "./lun", []string{"-test.run", "Racing|TestRecordsBehind|TestIdentifiers|TestFlushAfterKill|TestCrashAfter|Damage|TestReused|TestCrashAtEvery|TestSimulatedErrors"}},
	{"tests of the log", "./store/segment", nil},
	{"tests of the index", "./store/index", nil},
	{"simulated crashes at each operation", "./lun", []string{"-test.run", "TestSimulatedCrashes", "-sim.for", "60s"}},
}

func main() {
	only := flag.String("only", "", "mutants whose name contains this")
	flag.Parse()
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		fail(err)
	}
	defer os.RemoveAll(dir)
	made, caught := 0, 0
	fmt.Println("| mutant | caught by | how |\n|---|---|---|")
	for _, m := range mutants {
		if !strings.Contains(m.name, *only) {
			continue
		}
		made++
		by, how, err := m.run(dir)
		if err != nil {
			fail(fmt.Errorf("%s: %w", m.name, err))
		}
		if by == "" {
			by = "**nothing**"
		} else {
			caught++
		}
		fmt.Printf("| %s | %s | %s |\n", m.name, by, how)
	}
	fmt.Printf("\n%d of %d caught\n", caught, made)
	if caught < made {
		os.RemoveAll(dir)
		os.Exit(1)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "mutants:", err)
	os.Exit(2)
}

// overlay writes the mutant beside the source, and the file that tells go to take it.
func (m mutant) overlay(dir string) (string, error) {
	replace := map[string]string{}
	for i, e := range m.edits {
		text, err := os.ReadFile(e.file)
		if err != nil {
			return "", err
		}
		if n := strings.Count(string(text), e.old); n != 1 {
			return "", fmt.Errorf("%s holds the text to be changed %d times", e.file, n)
		}
		wrong := filepath.Join(dir, fmt.Sprintf("wrong%d.go", i))
		if err := os.WriteFile(wrong, []byte(strings.Replace(string(text), e.old, e.new, 1)), 0o600); err != nil {
			return "", err
		}
		path, err := filepath.Abs(e.file)
		if err != nil {
			return "", err
		}
		replace[path] = wrong
	}
	body, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		return "", err
	}
	list := filepath.Join(dir, "overlay.json")
	return list, os.WriteFile(list, body, 0o600)
}

// run returns which tests caught the mutant, and what they said.
func (m mutant) run(dir string) (by, how string, err error) {
	list, err := m.overlay(dir)
	if err != nil {
		return "", "", err
	}
	built := map[string]bool{}
	for _, b := range battery {
		test := filepath.Join(dir, filepath.Base(b.pkg)+".test")
		if !built[b.pkg] {
			build := exec.Command("go", "test", "-c", "-vet=off", "-overlay", list, "-o", test, b.pkg)
			if out, err := build.CombinedOutput(); err != nil {
				return "", "", fmt.Errorf("it does not build: %s", out)
			}
			built[b.pkg] = true
		}
		cmd := exec.Command(test, append([]string{"-test.failfast", "-test.timeout", "10m"}, b.args...)...)
		cmd.Dir = b.pkg
		began := time.Now()
		out, err := cmd.CombinedOutput()
		if err != nil {
			return b.name, fmt.Sprintf("%s (%s)", reason(out), time.Since(began).Round(time.Second)), nil
		}
	}
	return "", "", nil
}

var place = regexp.MustCompile(`^\s*[a-z_]+_test\.go:\d+: (.*)`)

// reason is the first thing that a test complained about.
func reason(out []byte) string {
	for line := range strings.Lines(string(out)) {
		if m := place.FindStringSubmatch(line); m != nil && !strings.Contains(m[1], "seeds from") {
			return strings.ReplaceAll(m[1][:min(len(m[1]), 140)], "|", "/")
		}
		if strings.HasPrefix(line, "panic:") {
			return strings.TrimSpace(line[:min(len(line), 100)])
		}
	}
	return "it failed"
}
