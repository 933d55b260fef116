package main

import (
	"fmt"
	"html"
	"slices"
	"strings"
)

// markdown is the report as a document of its own.
func (r *report) markdown() string { return fmt.Sprintf("# Bench, %s\n\n%s", r.Mode, r.body()) }

// body is the report without its heading, as docs/PERFORMANCE.md includes it.
func (r *report) body() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. %s. %d s x %d interleaved repeats on %d MiB, unix sockets, fio nbd engine, %s.\n",
		r.Machine, r.Version, r.Seconds, r.Repeats, r.Size>>20, r.Time.Format("2006-01-02 15:04 UTC"))
	fmt.Fprintf(&b, "xN: median (smallest-largest) of the per-repeat ratios to %s. CPU: microseconds of the server for each operation (for nbdcopy each MiB).\n\n", r.order[0])
	b.WriteString("| workload | target | not below |")
	for _, kind := range r.order {
		b.WriteString(" " + kind + " |")
	}
	b.WriteString(" lunar is | CPU lunar | CPU " + r.order[0] + " |\n|---|---|---|" + strings.Repeat("---|", len(r.order)) + "---|---|---|\n")
	for _, row := range r.Rows {
		floor := fmt.Sprintf("%.2f", row.Floor)
		if row.Memory {
			floor = "1.0 of memory"
		}
		fmt.Fprintf(&b, "| %s | %.2f | %s |", row.Title, row.Target, floor)
		for i, kind := range r.order {
			fmt.Fprintf(&b, " %s", row.amount(kind))
			if i > 0 && len(row.Samples[kind]) > 0 {
				fmt.Fprintf(&b, " x%v", row.Ratio[kind])
			}
			b.WriteString(" |")
		}
		verdict := row.verdict()
		if row.OfMemory != nil {
			verdict += fmt.Sprintf(", x%v of memory", *row.OfMemory)
		}
		fmt.Fprintf(&b, " %s | %.1f | %.1f |\n", verdict, row.CPU["lunar"], row.CPU[r.order[0]])
	}
	if len(r.Pairs) > 0 {
		fmt.Fprintf(&b, "\n%d snapshots, each followed by %d random 4K writes, beside the same LUN without:\n\n", snapshotCount, snapshotWrites)
		b.WriteString("| workload | target | not below | with / without | CPU with / without | lunar is |\n|---|---|---|---|---|---|\n")
		for _, p := range r.Pairs {
			fmt.Fprintf(&b, "| %s | %.2f | %.2f | %v | %v | %s |\n", p.Title, p.Target, p.Floor, p.With, p.CPU, p.verdict())
		}
	}
	b.WriteString(r.cpuTable() + r.tailTable() + r.scaleTable())
	b.WriteString("\n| server | peak RSS | disk at the end | after being idle |\n|---|---|---|---|\n")
	for _, kind := range r.order {
		if f, ok := r.Servers[kind]; ok {
			fmt.Fprintf(&b, "| %s | %d MiB | %d MiB, x%.2f of the data | x%.2f |\n", kind, f.RSS>>20, f.Disk>>20, float64(f.Disk)/float64(r.Size), float64(f.Idle)/float64(r.Size))
		}
	}
	if f, ok := r.Servers["lunar"]; ok {
		data := float64(f.Idle) / float64(r.Size)
		fmt.Fprintf(&b, "\nPeak RSS at most 1 GiB and the index cache (256 MiB): %s. Disk at most 1.3 x the data, %s later: %s.\n", met(f.RSS <= 1280<<20), idleTime, met(data <= 1.3))
	}
	return b.String()
}

// cpuTargets are microseconds of the server's processor time for an operation: the goal, and the most.
var cpuTargets = map[string][2]float64{"randread-q32": {4.5, 7}, "randwrite-q32": {5, 7}}

// cpuTable compares the processor time of the rows that have a target for it.
func (r *report) cpuTable() string {
	var b strings.Builder
	for _, row := range r.Rows {
		target, ok := cpuTargets[row.ID]
		list := each(row.Samples["lunar"], cpu)
		if !ok || len(list) == 0 {
			continue
		}
		is := "below"
		if m := middle(list); m <= target[0] {
			is = "met"
		} else if m <= target[1] {
			is = "near"
		}
		fmt.Fprintf(&b, "| %s | %.1f us | %.1f us | %v us | %s |\n", row.Title, target[0], target[1], spread{middle(list), slices.Min(list), slices.Max(list)}, is)
	}
	if b.Len() == 0 {
		return ""
	}
	return "\nThe server's processor time for an operation:\n\n| workload | target | not above | lunar | lunar is |\n|---|---|---|---|---|\n" + b.String()
}

const (
	chartLabel = 330
	chartWidth = 560
	chartRow   = 26
	chartTop   = 60
)

var colours = map[string]string{"met": "#2e7d32", "near": "#f9a825", "below": "#c62828", "": "#607d8b"}

// svg is a bar for each row: lunar's ratio, with a mark at the target and the range of the repeats.
func (r *report) svg() string {
	most := 1.0
	for _, row := range r.Rows {
		most = max(most, row.Ratio["lunar"].Max, row.Target)
	}
	scale := chartWidth / most
	height := chartTop + chartRow*(len(r.Rows)+len(r.Pairs)) + 30
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n", chartLabel+chartWidth+130, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	fmt.Fprintf(&b, `<text x="10" y="22" font-size="16">lunar, ratio to %s (bar: median; thin line: range; black mark: target)</text>`+"\n", html.EscapeString(r.order[0]))
	fmt.Fprintf(&b, `<text x="10" y="42" fill="#555">%s</text>`+"\n", html.EscapeString(r.Machine+", "+r.Version))
	y := chartTop
	bar := func(title, verdict string, s spread, target float64) {
		middle := y + chartRow/2
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", chartLabel-8, middle+4, html.EscapeString(title))
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", chartLabel, y+5, s.Median*scale, chartRow-10, colours[verdict])
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#333"/>`+"\n", chartLabel+s.Min*scale, chartLabel+s.Max*scale, middle, middle)
		fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="3" height="%d"/>`+"\n", chartLabel+target*scale-1, y+2, chartRow-4)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d">x%.2f</text>`+"\n", chartLabel+max(s.Max, target)*scale+8, middle+4, s.Median)
		y += chartRow
	}
	for _, row := range r.Rows {
		bar(row.Title, row.verdict(), row.Ratio["lunar"], row.Target)
	}
	for _, p := range r.Pairs {
		bar(p.Title+" / without", p.verdict(), p.With, p.Target)
	}
	fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#999" stroke-dasharray="3 3"/>`+"\n", chartLabel+scale, chartLabel+scale, chartTop-6, y+4)
	fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle" fill="#555">1.0</text>`+"\n</svg>\n", chartLabel+scale, y+18)
	return b.String()
}
