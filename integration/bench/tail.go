package main

import (
	"fmt"
	"slices"
	"strings"
)

// tailRow is how long single writes take while others go on and checkpoints and the cleaner run: a stall shows here, not in a rate.
const (
	tailJob     = "--rw=randwrite --bs=4k --iodepth=8 --norandommap"
	tailSeconds = 12
	tailFactor  = 2.0 // lunar's p99.9 over median, at most so many times nbdkit memory's
	tailLongest = 100 // ms
)

// tail is one server's latencies: p99.9 over median, and the longest write of all repeats.
type tail struct {
	Server  string  `json:"server"`
	Median  float64 `json:"median_ms"`
	P999    float64 `json:"p999_ms"`
	Ratio   spread  `json:"p999_over_median"`
	Longest float64 `json:"longest_ms"`
	Rate    float64 `json:"rate"`
}

// tail runs the row on nbdkit's memory plugin and on lunar, in turn.
func (b *bench) tail(running map[string]*server) error {
	servers := slices.DeleteFunc(slices.Clone(b.servers), func(kind string) bool { return kind != "nbdkit memory" && kind != "lunar" })
	if len(servers) < 2 || !b.wants("tail") {
		return nil
	}
	seconds := tailSeconds
	if b.quick {
		seconds = 3
	}
	fmt.Printf("4K random write, depth 8, %d s: latencies\n", seconds)
	found := map[string][]outcome{}
	for repeat := range b.repeats {
		for i := range servers {
			kind := servers[(i+repeat)%len(servers)]
			args := fioArgs(job(tailJob), running[kind].uri, b.size, seconds, repeat+1)
			b.show(args)
			o, err := fio(args)
			if err != nil {
				return err
			}
			found[kind] = append(found[kind], o)
		}
	}
	for _, kind := range servers {
		t := tailOf(kind, found[kind])
		b.report.Tails = append(b.report.Tails, t)
		fmt.Printf("    %-15s p99.9 / median %v, longest %.1f ms\n", kind, t.Ratio, t.Longest)
	}
	return nil
}

func tailOf(kind string, list []outcome) tail {
	var medians, p999s, ratios, rates []float64
	t := tail{Server: kind}
	for _, o := range list {
		medians, p999s, ratios = append(medians, o.p50), append(p999s, o.p999), append(ratios, o.p999/max(o.p50, 1e-6))
		rates = append(rates, float64(o.ops)/o.seconds)
		t.Longest = max(t.Longest, o.longest)
	}
	t.Median, t.P999, t.Rate = middle(medians), middle(p999s), middle(rates)
	t.Ratio = spread{Median: middle(ratios), Min: slices.Min(ratios), Max: slices.Max(ratios)}
	return t
}

// tailTable is the part of the report on latencies.
func (r *report) tailTable() string {
	if len(r.Tails) < 2 {
		return ""
	}
	var out strings.Builder
	out.WriteString("\n4K random writes, depth 8, sustained, while checkpoints and the cleaner run; medians of the repeats:\n\n")
	out.WriteString("| server | writes | median | p99.9 | p99.9 / median | longest of all |\n|---|---|---|---|---|---|\n")
	by := map[string]tail{}
	for _, t := range r.Tails {
		by[t.Server] = t
		fmt.Fprintf(&out, "| %s | %.0f/s | %.3f ms | %.2f ms | %v | %.1f ms |\n", t.Server, t.Rate, t.Median, t.P999, t.Ratio, t.Longest)
	}
	times := by["lunar"].Ratio.Median / max(by["nbdkit memory"].Ratio.Median, 1e-6)
	fmt.Fprintf(&out, "\np99.9 / median is %.2f times that of nbdkit memory (allowed: %.0f): %s. Longest write at most %d ms: %s.\n",
		times, tailFactor, met(times <= tailFactor), tailLongest, met(by["lunar"].Longest <= tailLongest))
	return out.String()
}

func met(ok bool) string {
	if ok {
		return "met"
	}
	return "**not met**"
}
