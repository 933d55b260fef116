package main

import (
	"fmt"
	"html"
	"strings"
)

// chart is a picture of growth curves: panels side by side, each with its own numbers below it.
type chart struct {
	title, below string // below: the machine and the build
	panels       []panel
}

// panel is a set of lines over the same few points, which lie at even distances.
type panel struct {
	title string
	x     []string
	lines []line
	unit  string // of the values, behind the numbers at the left
}

type line struct {
	name   string
	values []float64 // one for each of the panel's x
}

const (
	panelWidth  = 400
	panelHeight = 260
	panelLeft   = 70
	panelTop    = 80
	panelLegend = 20 // of each line's name, under the numbers
)

var lineColours = []string{"#1565c0", "#2e7d32", "#c62828", "#ef6c00", "#6a1b9a", "#00838f"}

func (c chart) svg() string {
	most := 0
	for _, p := range c.panels {
		most = max(most, len(p.lines))
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n",
		(panelLeft+panelWidth+30)*len(c.panels), panelTop+panelHeight+40+panelLegend*most)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	fmt.Fprintf(&b, `<text x="10" y="22" font-size="16">%s</text>`+"\n", html.EscapeString(c.title))
	fmt.Fprintf(&b, `<text x="10" y="42" fill="#555">%s</text>`+"\n", html.EscapeString(c.below))
	for i, p := range c.panels {
		p.draw(&b, i*(panelLeft+panelWidth+30)+panelLeft)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (p panel) draw(b *strings.Builder, left int) {
	most := 0.0
	for _, l := range p.lines {
		for _, v := range l.values {
			most = max(most, v)
		}
	}
	if most == 0 {
		most = 1
	}
	most *= 1.1
	x := func(i int) float64 {
		return float64(left) + 20 + float64(panelWidth-40)*float64(i)/float64(max(len(p.x)-1, 1))
	}
	y := func(v float64) float64 { return panelTop + panelHeight*(1-v/most) }
	fmt.Fprintf(b, `<text x="%d" y="%d">%s</text>`+"\n", left, panelTop-14, html.EscapeString(p.title))
	for i := range 5 {
		v := most * float64(i) / 4
		fmt.Fprintf(b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			left, left+panelWidth, y(v), y(v), left-6, y(v)+4, html.EscapeString(short(v)+p.unit))
	}
	for i, name := range p.x {
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x(i), panelTop+panelHeight+18, html.EscapeString(name))
	}
	for k, l := range p.lines {
		colour := lineColours[k%len(lineColours)]
		var points []string
		for i, v := range l.values {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(i), y(v)))
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x(i), y(v), colour)
		}
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), colour)
		fmt.Fprintf(b, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", left, panelTop+panelHeight+40+panelLegend*k, colour, html.EscapeString(l.name))
	}
}

// short is a value with three digits or so.
func short(v float64) string {
	switch {
	case v >= 10000:
		return fmt.Sprintf("%.0fk", v/1000)
	case v >= 100 || v == 0:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
