package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestGrowth draws the last run's curves: the picture is well-formed XML and has each line of each panel.
func TestGrowth(t *testing.T) {
	text, err := os.ReadFile("../../docs/bench/versions.json")
	if err != nil {
		t.Fatal(err)
	}
	var r versionsReport
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	c := r.growth()
	if len(c.panels) != 3 {
		t.Fatalf("%d panels; want one each for snapshots, sizes and the head", len(c.panels))
	}
	drawn := c.svg()
	for _, p := range c.panels {
		if len(p.lines) < 4 {
			t.Errorf("%s: %d lines", p.title, len(p.lines))
		}
		for _, l := range p.lines {
			if len(l.values) != len(p.x) || !strings.Contains(drawn, ">"+l.name+"<") {
				t.Errorf("%s, %s: %d values for %d points, or no name in the picture", p.title, l.name, len(l.values), len(p.x))
			}
		}
	}
	d := xml.NewDecoder(strings.NewReader(drawn))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestInclude replaces what lies between the markers, and refuses a document without them.
func TestInclude(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.md")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a\n<!-- x: begin (make x) -->\nold\n<!-- x: end -->\nb\n")
	if err := include(path, "x", "new\n"); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "a\n<!-- x: begin (make x) -->\nnew\n<!-- x: end -->\nb\n" {
		t.Errorf("%q", got)
	}
	write("a\n<!-- x: end -->\n<!-- x: begin -->\n")
	if err := include(path, "x", "new\n"); err == nil {
		t.Error("markers in the wrong order were taken")
	}
}
