package main

import (
	"fmt"
	"slices"
)

// growth draws what the logical and the head tables say: none of these lines should rise or fall.
func (r *versionsReport) growth() chart {
	c := chart{title: "lunar: versions do not cost more with the number of snapshots or the size of the LUN", below: r.Machine}
	for _, t := range r.Tables {
		switch t.ID {
		case "logical":
			c.panels = append(c.panels, t.logicalPanels()...)
		case "head":
			c.panels = append(c.panels, t.headPanel())
		}
	}
	return c
}

// logicalPanels are the times by number of snapshots (largest LUN) and by size of the LUN (most snapshots).
func (t table) logicalPanels() []panel {
	var sizes, counts []string
	for _, row := range t.Rows {
		if !slices.Contains(sizes, row[0]) {
			sizes = append(sizes, row[0])
		}
		if !slices.Contains(counts, row[1]) {
			counts = append(counts, row[1])
		}
	}
	if len(sizes) == 0 {
		return nil
	}
	largest, most := sizes[len(sizes)-1], counts[len(counts)-1]
	byCount := panel{title: "time of a command by snapshots, LUN of " + largest, x: counts, unit: " ms"}
	bySize := panel{title: fmt.Sprintf("time of a command by size of the LUN, %s snapshots", most), x: sizes, unit: " ms"}
	for _, op := range []string{opCreate, opRollback, opClone, opDelete, opRecord} {
		a, b := line{name: op}, line{name: op}
		for _, count := range counts {
			a.values = append(a.values, middle(t.Samples[fmt.Sprintf("%s, %s, %s snapshots", op, largest, count)]))
		}
		for _, size := range sizes {
			b.values = append(b.values, middle(t.Samples[fmt.Sprintf("%s, %s, %s snapshots", op, size, most)]))
		}
		byCount.lines, bySize.lines = append(byCount.lines, a), append(bySize.lines, b)
	}
	return []panel{byCount, bySize}
}

// headPanel is the speed of reads and writes by number of snapshots, as a part of that without.
func (t table) headPanel() panel {
	counts := t.Columns[1:] // "0 snapshots", ...
	p := panel{title: "speed of the head, as a part of that without snapshots", x: counts}
	for _, r := range headRows {
		l := line{name: r.Title}
		none := t.Samples[headKey(r, counts[0])]
		for _, count := range counts {
			var parts []float64
			for i, v := range t.Samples[headKey(r, count)] {
				parts = append(parts, v/none[i])
			}
			l.values = append(l.values, middle(parts))
		}
		p.lines = append(p.lines, l)
	}
	return p
}
