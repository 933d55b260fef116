package lun

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"lunar/cow"
)

// TestScattered runs the scripts of testdata/scattered: which parts of a page are put together, and how much in all.
func TestScattered(t *testing.T) {
	datadriven.Walk(t, "testdata/scattered", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			arg := func(name string) (n int) {
				d.ScanArgs(t, name, &n)
				return n
			}
			switch d.Cmd {
			case "windows":
				loc := pageOf(t, d.Input)
				return windowsText(scattered(&loc, arg("least"), nil))
			case "least":
				return fmt.Sprintln(leastBreaks(arg("record"), arg("segment")))
			case "budget":
				return fmt.Sprintln(defragBudget(int64(arg("held")), int64(arg("written")), int64(arg("spent")), arg("available"), arg("high"), arg("segment")))
			}
			t.Fatalf("unknown command %s", d.Cmd)
			return ""
		})
	})
}

func windowsText(ws []window) string {
	if len(ws) == 0 {
		return "nothing\n"
	}
	var out strings.Builder
	for _, w := range ws {
		fmt.Fprintf(&out, "%d: %d blocks\n", w.from, w.stored)
	}
	return out.String()
}

func pageOf(t *testing.T, input string) (loc [cow.PageBlocks]uint64) {
	for line := range strings.Lines(input) {
		f := strings.Fields(line)
		var from, to, step int
		if n, _ := fmt.Sscanf(f[0], "%d-%d", &from, &to); n < 2 {
			to = from
		}
		step = 1
		if len(f) > 2 {
			fmt.Sscanf(f[2], "step=%d", &step)
		}
		var at int
		switch f[1] {
		case "hole":
		case "zero":
			at, step = int(cow.Zero), 0
		default:
			if _, err := fmt.Sscan(f[1], &at); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		}
		for i := from; i <= to; i++ {
			loc[i] = uint64(at)
			if at != 0 {
				at += step
			}
		}
	}
	return loc
}
