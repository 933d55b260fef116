package main

import (
	"fmt"
	"slices"
	"strings"
)

// curve is how total throughput goes with the number of LUNs or connections that are busy at once.
type curve struct {
	Of     string       `json:"of"` // LUNs, connections
	Title  string       `json:"title"`
	Points []scalePoint `json:"points"`
}

type scalePoint struct {
	N     int     `json:"n"`
	Rate  float64 `json:"rate"`
	CPU   float64 `json:"cpu_us"`
	Ratio spread  `json:"ratio"` // to the first point, repeat by repeat
}

const (
	scaleDepth = 64  // requests in flight, over all of them; at least one for each
	scaleShare = 16  // each LUN's part of the export's size
	scaleFloor = 0.9 // "does not fall": within the noise
)

var (
	scaleLUNs  = []int{1, 8, 64}
	scaleConns = []int{1, 16, 256}
	scaleJobs  = []struct{ title, rw string }{{"4K random read", "randread"}, {"4K random write", "randwrite"}}
)

// scale measures one lunar server with many LUNs and with many connections.
func (b *bench) scale() error {
	if !b.wants("scale") {
		return nil
	}
	s, err := start("lunar", b.lunar, b.top, b.size)
	if err != nil {
		return err
	}
	defer s.stop()
	if err := b.fill(s); err != nil {
		return err
	}
	each := b.size / scaleShare
	var luns []string
	for i := range slices.Max(scaleLUNs) {
		name := fmt.Sprintf("l%02d", i)
		if err := s.lunar("lun", "create", name, fmt.Sprint(each)); err != nil {
			return err
		}
		luns = append(luns, strings.Replace(s.uri, "/disk?", "/"+name+"?", 1))
	}
	fill := scaleArgs("write", luns, each, 0, 1)
	b.show(fill)
	if _, err := fio(fill); err != nil {
		return err
	}
	for _, j := range scaleJobs {
		one := slices.Repeat([]string{s.uri}, slices.Max(scaleConns))
		for _, c := range []struct {
			of    string
			ns    []int
			uris  []string
			bytes int64
		}{{"LUNs", scaleLUNs, luns, each}, {"connections", scaleConns, one, b.size}} {
			found, err := b.curve(s, j.rw, c.ns, c.uris, c.bytes)
			if err != nil {
				return err
			}
			found.Of, found.Title = c.of, j.title
			b.report.Curves = append(b.report.Curves, found)
			for _, p := range found.Points {
				fmt.Printf("    %s, %d %s: %.0f/s x%v, %.1f us CPU\n", j.title, p.N, c.of, p.Rate, p.Ratio, p.CPU)
			}
		}
	}
	return nil
}

// curve measures one workload at each number of exports, in turn.
func (b *bench) curve(s *server, rw string, ns []int, uris []string, bytes int64) (curve, error) {
	samples := make([][]sample, len(ns))
	for repeat := range b.repeats {
		for i := range ns {
			i = (i + repeat) % len(ns)
			args := scaleArgs(rw, uris[:ns[i]], bytes, b.seconds, repeat+1)
			if len(args) < 30 {
				b.show(args)
			}
			used := s.cpu()
			o, err := fio(args)
			if err != nil {
				return curve{}, err
			}
			samples[i] = append(samples[i], sample{Rate: float64(o.ops) / o.seconds, CPU: float64((s.cpu() - used).Microseconds()) / float64(max(o.ops, 1))})
		}
	}
	var c curve
	for i, n := range ns {
		c.Points = append(c.Points, scalePoint{N: n, Rate: middle(each(samples[i], rate)), CPU: middle(each(samples[i], cpu)), Ratio: ratios(samples[i], samples[0], rate)})
	}
	return c, nil
}

// scaleArgs is one fio with a job for each URI; without a time, each writes all of its export in large pieces.
func scaleArgs(rw string, uris []string, bytes int64, seconds, seed int) []string {
	args := []string{"fio", "--name=global", "--ioengine=nbd", "--thread", "--rw=" + rw, fmt.Sprintf("--size=%d", bytes), fmt.Sprintf("--randseed=%d", seed),
		"--group_reporting", "--output-format=json"}
	if seconds > 0 {
		args = append(args, "--bs=4k", fmt.Sprintf("--iodepth=%d", max(scaleDepth/len(uris), 1)), "--norandommap", "--time_based", fmt.Sprintf("--runtime=%d", seconds))
	} else {
		args = append(args, "--bs=1M", "--iodepth=1", "--end_fsync=1")
	}
	for i, uri := range uris {
		args = append(args, fmt.Sprintf("--name=j%d", i), "--uri="+uri)
	}
	return args
}

// scaleTable is the part of the report on LUNs and connections.
func (r *report) scaleTable() string {
	if len(r.Curves) == 0 {
		return ""
	}
	var out strings.Builder
	fmt.Fprintf(&out, "\nMany at once (total throughput; %d requests in flight over all, at least one for each; LUNs of %d MiB; x: to the first column, repeat by repeat):\n\n", scaleDepth, r.Size/scaleShare>>20)
	out.WriteString("| workload | of | few | | many | does not fall |\n|---|---|---|---|---|---|\n")
	for _, c := range r.Curves {
		fmt.Fprintf(&out, "| %s | %s |", c.Title, c.Of)
		least := 1.0
		for i, p := range c.Points {
			fmt.Fprintf(&out, " %d: %.0f/s", p.N, p.Rate)
			if i > 0 {
				fmt.Fprintf(&out, " x%v", p.Ratio)
				least = min(least, p.Ratio.Median)
			}
			out.WriteString(" |")
		}
		fmt.Fprintf(&out, " %s |\n", met(least >= scaleFloor))
	}
	return out.String()
}

// scaleSVG draws the curves: one panel for LUNs, one for connections.
func (r *report) scaleSVG() string {
	c := chart{title: "lunar, total 4K operations a second by LUNs and connections busy at once", below: r.Machine + ", " + r.Version}
	for _, of := range []string{"LUNs", "connections"} {
		p := panel{title: of}
		for _, found := range r.Curves {
			if found.Of != of {
				continue
			}
			p.x = nil
			l := line{name: found.Title}
			for _, point := range found.Points {
				p.x = append(p.x, fmt.Sprint(point.N))
				l.values = append(l.values, point.Rate)
			}
			p.lines = append(p.lines, l)
		}
		c.panels = append(c.panels, p)
	}
	return c.svg()
}
