package figures

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

func machine() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	name := runtime.GOARCH
	for _, line := range strings.Split(string(text), "\n") {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			name = strings.TrimSpace(value)
			break
		}
	}
	return fmt.Sprintf("%s, %d cores", name, runtime.NumCPU())
}

func (f *figures) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Capacity figures\n\n%s; %s. An ext4 of 2 GiB in a loop-mounted image, segments of 4 MiB, 4 KiB writes at random, 16 in flight on one connection. Made by `make bench-capacity`.\n",
		f.Machine, f.Time.Format("2006-01-02 15:04 UTC"))
	b.WriteString("\nA thick LUN of so much of what was free, overwritten once its size and then measured:\n\n")
	b.WriteString("| use | LUN | writes/s | write amplification | median | 99 % | slowest |\n|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, s := range f.Sustained {
		fmt.Fprintf(&b, "| %d %% | %d MiB | %.0f | %.2f | %.1f ms | %.1f ms | %.0f ms |\n", s.Use, s.LUNBytes/mib, s.Rate, s.Amplification, s.Median, s.P99, s.Slowest)
	}
	fmt.Fprintf(&b, "\nAn area of at most 256 MiB as it fills (a snapshot for each 16 MiB). With freeze the first ENOSPC came at %.1f %%:\n\n", f.Refused)
	b.WriteString("| policy | area, % of its limit | writes/s | median | 99 % |\n|---|---:|---:|---:|---:|\n")
	for _, policy := range []string{"recycle", "freeze"} {
		for _, s := range f.Areas[policy] {
			fmt.Fprintf(&b, "| %s | %.1f | %.0f | %.2f ms | %.1f ms |\n", policy, s.Fill, s.Rate, s.Median, s.P99)
		}
	}
	b.WriteString("\nWhat the pool takes of the disk beside its own account (live + areas + shared + index):\n\n")
	b.WriteString("| | account | disk | difference |\n|---|---:|---:|---:|\n")
	for _, d := range f.Disk {
		fmt.Fprintf(&b, "| %s | %d MiB | %d MiB | %+d MiB, %+.1f %% |\n", d.When, d.Ledger/mib, d.Disk/mib, (d.Disk-d.Ledger)/mib, float64(d.Disk-d.Ledger)/float64(d.Ledger)*100)
	}
	return b.String()
}

const (
	panelWidth  = 420
	panelHeight = 260
	panelLeft   = 70
	panelTop    = 60
)

// svg has two panels: throughput and amplification by use, and throughput on the way to an area's limit.
func (f *figures) svg() string {
	var b strings.Builder
	width := 2*(panelWidth+panelLeft) + 60
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n", width, panelHeight+panelTop+70)
	b.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n")
	f.usePanel(&b, panelLeft)
	f.areaPanel(&b, panelLeft*2+panelWidth+40)
	fmt.Fprintf(&b, `<text x="10" y="%d" fill="#555">%s, %s</text>`+"\n</svg>\n", panelHeight+panelTop+60, f.Machine, f.Time.Format("2006-01-02"))
	return b.String()
}

func frame(b *strings.Builder, x int, title, below string, most float64) {
	fmt.Fprintf(b, `<text x="%d" y="30" font-size="16">%s</text>`+"\n", x-40, title)
	fmt.Fprintf(b, `<path d="M%d %dV%dH%d" fill="none" stroke="#333"/>`+"\n", x, panelTop, panelTop+panelHeight, x+panelWidth)
	for i := range 5 {
		y := panelTop + panelHeight - panelHeight*i/4
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end" fill="#555">%.0f</text>`+"\n", x-6, y+4, most*float64(i)/4)
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle" fill="#555">%s</text>`+"\n", x+panelWidth/2, panelTop+panelHeight+40, below)
}

func (f *figures) usePanel(b *strings.Builder, x int) {
	most := 1.0
	for _, s := range f.Sustained {
		most = max(most, s.Rate*1.15)
	}
	frame(b, x, "sustained 4K random overwrite: writes a second (amplification)", "thick LUN, % of the pool's free space", most)
	for i, s := range f.Sustained {
		h := int(s.Rate / most * panelHeight)
		at := x + 40 + i*130
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="80" height="%d" fill="#1565c0"/>`+"\n", at, panelTop+panelHeight-h, h)
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle">%.0f (x%.1f)</text>`+"\n", at+40, panelTop+panelHeight-h-6, s.Rate, s.Amplification)
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle">%d %%</text>`+"\n", at+40, panelTop+panelHeight+18, s.Use)
	}
}

func (f *figures) areaPanel(b *strings.Builder, x int) {
	most := 1.0
	for _, list := range f.Areas {
		for _, s := range list {
			most = max(most, s.Rate*1.1)
		}
	}
	frame(b, x, "writes a second as a snapshot area fills", "area, % of its limit", most)
	for i, policy := range []string{"recycle", "freeze"} {
		colour := []string{"#2e7d32", "#c62828"}[i]
		var points []string
		for _, s := range f.Areas[policy] {
			points = append(points, fmt.Sprintf("%.1f,%.1f", float64(x)+s.Fill/105*panelWidth, panelTop+panelHeight-s.Rate/most*panelHeight))
		}
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), colour)
		fmt.Fprintf(b, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", x+panelWidth-70, panelTop+18*i+10, colour, policy)
	}
	for _, p := range []int{0, 50, 90, 100} {
		at := x + p*panelWidth/105
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle" fill="#555">%d</text>`+"\n", at, panelTop+panelHeight+18, p)
	}
}
