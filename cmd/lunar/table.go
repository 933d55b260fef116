package main

import (
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode/utf8"
)

// tableWidth is what every table fits in.
const tableWidth = 100

const columnGap = 2

// table is rows under a header. When it is too wide it first does without its
// optional columns, one after the other, and then cuts the middle out of the long
// cells of its widest column.
type table struct {
	header   []string
	optional []string
	rows     [][]string
}

func newTable(header ...string) *table { return &table{header: header} }

// without names the columns that may go, the first to go first.
func (t *table) without(names ...string) *table {
	t.optional = names
	return t
}

func (t *table) row(cells ...string) {
	for i, c := range cells {
		cells[i] = strings.Map(printable, c)
	}
	t.rows = append(t.rows, cells)
}

func (t *table) write(w io.Writer) error {
	t.fit()
	tw := tabwriter.NewWriter(w, 0, 0, columnGap, ' ', 0)
	for _, row := range append([][]string{t.header}, t.rows...) {
		line := strings.TrimRight(strings.Join(row, "\t"), "\t")
		if _, err := io.WriteString(tw, line+"\n"); err != nil {
			return err
		}
	}
	return tw.Flush()
}

func (t *table) fit() {
	for _, name := range t.optional {
		if t.width() <= tableWidth {
			break
		}
		t.drop(slices.Index(t.header, name))
	}
	if over := t.width() - tableWidth; over > 0 {
		widest := 0
		for i := range t.header {
			if t.columnWidth(i) > t.columnWidth(widest) {
				widest = i
			}
		}
		room := max(t.columnWidth(widest)-over, len(t.header[widest]), 8)
		for _, row := range t.rows {
			row[widest] = elide(row[widest], room)
		}
	}
}

func (t *table) drop(column int) {
	t.header = slices.Delete(slices.Clone(t.header), column, column+1)
	for i, row := range t.rows {
		t.rows[i] = slices.Delete(row, column, column+1)
	}
}

func (t *table) width() int {
	sum := -columnGap
	for i := range t.header {
		sum += t.columnWidth(i) + columnGap
	}
	return sum
}

func (t *table) columnWidth(i int) int {
	n := utf8.RuneCountInString(t.header[i])
	for _, row := range t.rows {
		n = max(n, utf8.RuneCountInString(row[i]))
	}
	return n
}

// elide cuts the middle out of s so that it has at most n runes.
func elide(s string, n int) string {
	runes := []rune(s)
	if len(runes) <= n {
		return s
	}
	head := n / 2
	tail := n - head - 1
	return string(runes[:head]) + "…" + string(runes[len(runes)-tail:])
}

// fields is the table of one object: a name and a value in each line. Long
// values go on in the next line.
type fields struct{ lines [][2]string }

func (f *fields) add(name, value string) {
	f.lines = append(f.lines, [2]string{name, strings.Map(printable, value)})
}

func (f *fields) write(w io.Writer) error {
	width := 0
	for _, l := range f.lines {
		width = max(width, len(l[0]))
	}
	var b strings.Builder
	for _, l := range f.lines {
		name := l[0]
		for _, part := range wrap(l[1], tableWidth-width-columnGap) {
			line := name + strings.Repeat(" ", width+columnGap-len(name)) + part
			b.WriteString(strings.TrimRight(line, " ") + "\n")
			name = ""
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// wrap breaks s at blanks into lines of at most n runes; a longer word is broken
// where it must be. There is always one line.
func wrap(s string, n int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(s) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > n {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
		for utf8.RuneCountInString(line) > n {
			runes := []rune(line)
			lines = append(lines, string(runes[:n]))
			line = string(runes[n:])
		}
	}
	return append(lines, line)
}
