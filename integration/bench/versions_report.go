package main

import (
	"encoding/json"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// claim is one thing that the project says of versions, and what was measured.
type claim struct {
	Title   string  `json:"title"`
	Value   float64 `json:"value"`
	Limit   float64 `json:"limit"`
	AtLeast bool    `json:"at_least,omitempty"` // the value must reach the limit; else it must not pass it
}

func (c claim) met() bool {
	if c.AtLeast {
		return c.Value >= c.Limit
	}
	return c.Value <= c.Limit
}

func (c claim) verdict() string {
	if c.met() {
		return "met"
	}
	return "not met"
}

// table is the result of one part.
type table struct {
	ID      string    `json:"id"`
	Title   string    `json:"title"`
	Notes   string    `json:"notes"`
	Time    time.Time `json:"time"`
	Version string    `json:"version"`
	Mode    string    `json:"mode"`
	Seconds float64   `json:"seconds"`

	Columns []string             `json:"columns"`
	Rows    [][]string           `json:"rows"`
	Claims  []claim              `json:"claims,omitempty"`
	Samples map[string][]float64 `json:"samples,omitempty"`
}

func (t *table) row(cells ...string) { t.Rows = append(t.Rows, cells) }

// sample keeps the raw figures of a cell and returns their median; durations are in milliseconds.
func (t *table) sample(key string, list []float64) float64 {
	if t.Samples == nil {
		t.Samples = map[string][]float64{}
	}
	t.Samples[key] = list
	if len(list) == 0 {
		return 0
	}
	return middle(list)
}

func (t *table) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n### %s\n\n%s %s, %s, %.0f s.\n\n", t.Title, t.Notes, t.Version, t.Time.Format("2006-01-02 15:04 UTC"), t.Seconds)
	fmt.Fprintf(&b, "| %s |\n|%s\n", strings.Join(t.Columns, " | "), strings.Repeat("---|", len(t.Columns)))
	for _, row := range t.Rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
	}
	if len(t.Claims) > 0 {
		b.WriteString("\n| it must show | wanted | measured | |\n|---|---|---|---|\n")
		for _, c := range t.Claims {
			sign := "at most"
			if c.AtLeast {
				sign = "at least"
			}
			fmt.Fprintf(&b, "| %s | %s %.2f | %.2f | %s |\n", c.Title, sign, c.Limit, c.Value, c.verdict())
		}
	}
	return b.String()
}

// versionsReport is all tables; a run of some parts replaces only theirs.
type versionsReport struct {
	Machine string  `json:"machine"`
	Tables  []table `json:"tables"`

	path    string // without its ending
	name    string
	order   []part
	version string
	docs    string // the document that includes it, if any
}

func newVersionsReport(b *bench, name string, order []part) versionsReport {
	of := newReport(b)
	r := versionsReport{path: filepath.Join(b.out, name), name: name, order: order, version: of.Version, docs: b.docs}
	if b.quick {
		r.path += "-quick"
	}
	if text, err := os.ReadFile(r.path + ".json"); err == nil {
		if err := json.Unmarshal(text, &r); err != nil {
			fmt.Printf("   %s.json cannot be read and is made anew: %v\n", r.path, err)
		}
	}
	r.Machine = of.Machine
	return r
}

// keep puts a table in its place and writes the report, so that a part that fails later costs nothing.
func (r *versionsReport) keep(t table) error {
	if i := slices.IndexFunc(r.Tables, func(old table) bool { return old.ID == t.ID }); i >= 0 {
		r.Tables[i] = t
	} else {
		r.Tables = append(r.Tables, t)
	}
	order := func(id string) int { return slices.IndexFunc(r.order, func(p part) bool { return p.id == id }) }
	slices.SortStableFunc(r.Tables, func(a, b table) int { return order(a.ID) - order(b.ID) })
	return r.write()
}

func (r *versionsReport) write() error {
	if err := os.MkdirAll(filepath.Dir(r.path), 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	files := map[string]string{".json": string(text) + "\n", ".md": r.markdown(), ".svg": r.svg()}
	if growth := r.growth(); len(growth.panels) > 0 {
		files["-growth.svg"] = growth.svg()
	}
	for end, text := range files {
		if err := os.WriteFile(r.path+end, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if r.docs == "" {
		return nil
	}
	return include(r.docs, r.name, r.body())
}

func (r *versionsReport) markdown() string {
	return fmt.Sprintf("# %s\n\n%s", strings.ToUpper(r.name[:1])+r.name[1:], r.body())
}

// body is the report without its heading, as a document includes it.
func (r *versionsReport) body() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. Times are medians.\n", r.Machine)
	for _, t := range r.Tables {
		b.WriteString(t.markdown())
	}
	return b.String()
}

// svg is a bar for each claim: the part of its limit that was measured, with the limit as a mark at 1.
func (r *versionsReport) svg() string {
	const label, width, row, top, most = 560, 400, 24, 60, 2.0
	var claims []claim
	for _, t := range r.Tables {
		claims = append(claims, t.Claims...)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n", label+width+130, top+row*len(claims)+20)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	fmt.Fprintf(&b, `<text x="10" y="22" font-size="16">lunar, %s: measured as a part of what is allowed (black mark)</text>`+"\n", r.name)
	fmt.Fprintf(&b, `<text x="10" y="42" fill="#555">%s</text>`+"\n", html.EscapeString(r.Machine))
	for i, c := range claims {
		y := top + i*row
		of, colour := c.Value/c.Limit, colours["met"]
		if c.AtLeast && c.Value > 0 {
			of = c.Limit / c.Value
		}
		if !c.met() {
			colour = colours["below"]
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", label-8, y+16, html.EscapeString(c.Title))
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", label, y+4, min(of, most)*width/most, row-8, colour)
		fmt.Fprintf(&b, `<text x="%d" y="%d">%.2f</text>`+"\n", label+width+8, y+16, c.Value)
	}
	fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%d" y2="%d" stroke="black" stroke-width="2"/>`+"\n", label+width/2, label+width/2, top, top+row*len(claims))
	b.WriteString("</svg>\n")
	return b.String()
}

// ms is a duration as figures have it: milliseconds.
func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

func millis(x float64) string {
	switch {
	case x >= 1000:
		return fmt.Sprintf("%.2f s", x/1000)
	case x >= 10:
		return fmt.Sprintf("%.0f ms", x)
	}
	return fmt.Sprintf("%.2f ms", x)
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
