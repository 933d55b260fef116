package reservation

import (
	"os"
	"strings"
	"testing"
)

// TestCapacityPage holds docs/CAPACITY.md to the story that its example comes from: the explanations line by line, and the rows
// of its first table figure by figure.
func TestCapacityPage(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	page, story := read("../docs/CAPACITY.md"), read("testdata/worked")
	parts := strings.Split(page, "```worked\n")
	if len(parts) != 3 {
		t.Fatalf("%d explanations, want 2", len(parts)-1)
	}
	for _, part := range parts[1:] {
		text, _, _ := strings.Cut(part, "```")
		if !strings.Contains(story, "explain lun=") || !strings.Contains(story, text) {
			t.Errorf("the story does not say:\n%s", text)
		}
	}
	rows := 0
	for line := range strings.Lines(parts[0]) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 7 || !strings.HasSuffix(strings.TrimSpace(cells[5]), "B") {
			continue
		}
		rows++
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		want := "promised " + cells[2] + ", beyond " + cells[3] + ", shared 0 B, index " + cells[4] + ", free " + cells[5] + "\n"
		if !strings.Contains(story, want) {
			t.Errorf("the story has no line %q", want)
		}
	}
	if rows != 8 {
		t.Errorf("%d rows were compared, want 8", rows)
	}
}
