package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is what a run found; it is also the JSON file.
type report struct {
	Time    time.Time            `json:"time"`
	Mode    string               `json:"mode"`
	Machine string               `json:"machine"`
	Version string               `json:"version"`
	Seconds int                  `json:"seconds"`
	Repeats int                  `json:"repeats"`
	Size    int64                `json:"size"`
	Servers map[string]footprint `json:"servers"`
	Rows    []result             `json:"rows"`
	Pairs   []pair               `json:"pairs"`
	Tails   []tail               `json:"latency,omitempty"`
	Curves  []curve              `json:"scale,omitempty"`
	order   []string
}

// footprint is what a server has taken at the end.
type footprint struct {
	RSS  int64 `json:"rss_peak"`
	Disk int64 `json:"disk"`
	Idle int64 `json:"disk_idle"` // idleTime later
}

// result is one row: for each server the samples, the median rate and CPU, and its ratio to the first server.
type result struct {
	row
	Samples map[string][]sample `json:"samples"`
	Rate    map[string]float64  `json:"rate"`
	CPU     map[string]float64  `json:"cpu_us"`
	Ratio   map[string]spread   `json:"ratio"`
	// OfMemory is lunar's ratio to nbdkit's memory plugin.
	OfMemory *spread `json:"of_memory,omitempty"`
}

type pair struct {
	row
	Rate [2]float64 `json:"rate"` // without, with
	CPUs [2]float64 `json:"cpu_us"`
	With spread     `json:"ratio"`
	CPU  spread     `json:"cpu_ratio"`
}

// spread is the median, smallest and largest of the per-repeat ratios.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func (s spread) String() string { return fmt.Sprintf("%.2f (%.2f-%.2f)", s.Median, s.Min, s.Max) }

func newReport(b *bench) report {
	version, _ := exec.Command(b.lunar, "version").Output()
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	fs, _ := exec.Command("df", "--output=fstype", b.top).Output()
	return report{Time: time.Now().UTC(), Mode: b.mode, Seconds: b.seconds, Repeats: b.repeats, Size: b.size, order: b.servers,
		Version: strings.TrimSpace(string(version)), Servers: map[string]footprint{},
		Machine: fmt.Sprintf("%d CPU %s, Linux %s, %s", runtime.NumCPU(), cpuModel(), strings.TrimSpace(string(kernel)), strings.TrimSpace(strings.TrimPrefix(string(fs), "Type")))}
}

func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for _, line := range strings.Split(string(text), "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func middle(list []float64) float64 {
	sorted := slices.Clone(list)
	slices.Sort(sorted)
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

func each(samples []sample, get func(sample) float64) []float64 {
	list := make([]float64, len(samples))
	for i, s := range samples {
		list[i] = get(s)
	}
	return list
}

func rate(s sample) float64 { return s.Rate }
func cpu(s sample) float64  { return s.CPU }

// ratios of runs of the same repeat, which saw the same machine.
func ratios(of, to []sample, get func(sample) float64) spread {
	var list []float64
	for i := range min(len(of), len(to)) {
		if get(to[i]) > 0 {
			list = append(list, get(of[i])/get(to[i]))
		}
	}
	if len(list) == 0 {
		return spread{}
	}
	return spread{Median: middle(list), Min: slices.Min(list), Max: slices.Max(list)}
}

func (r *report) add(w row, samples map[string][]sample) {
	found := result{row: w, Samples: samples, Rate: map[string]float64{}, CPU: map[string]float64{}, Ratio: map[string]spread{}}
	for kind, list := range samples {
		found.Rate[kind] = middle(each(list, rate))
		found.CPU[kind] = middle(each(list, cpu))
		found.Ratio[kind] = ratios(list, samples[r.order[0]], rate)
	}
	if lunar, memory := samples["lunar"], samples["nbdkit memory"]; w.Memory && lunar != nil && memory != nil {
		of := ratios(lunar, memory, rate)
		found.OfMemory = &of
	}
	r.Rows = append(r.Rows, found)
	for _, kind := range r.order {
		if len(samples[kind]) == 0 {
			continue
		}
		fmt.Printf("    %-15s %12s  x%-20v %6.1f us CPU\n", kind, found.amount(kind), found.Ratio[kind], found.CPU[kind])
	}
}

func (r *report) addPair(w row, without, with []sample) {
	found := pair{row: w, With: ratios(with, without, rate), CPU: ratios(with, without, cpu),
		Rate: [2]float64{middle(each(without, rate)), middle(each(with, rate))}, CPUs: [2]float64{middle(each(without, cpu)), middle(each(with, cpu))}}
	r.Pairs = append(r.Pairs, found)
	fmt.Printf("    rate x%v, CPU an operation x%v\n", found.With, found.CPU)
}

// amount is a rate as people read it: operations, or MB a second; median, smallest and largest.
func (f result) amount(kind string) string {
	rates := each(f.Samples[kind], rate)
	if len(rates) == 0 {
		return "-"
	}
	if f.large() {
		return fmt.Sprintf("%.0f MB/s (%.0f-%.0f)", f.Rate[kind]/1e6, slices.Min(rates)/1e6, slices.Max(rates)/1e6)
	}
	return fmt.Sprintf("%.0f/s (%.0f-%.0f)", f.Rate[kind], slices.Min(rates), slices.Max(rates))
}

// verdict compares a row with its target: met, near (not below the floor) or below.
func (f result) verdict() string {
	of, ok := f.Ratio["lunar"]
	switch {
	case !ok:
		return ""
	case f.OfMemory != nil && f.OfMemory.Median < 1:
		return "below"
	case f.OfMemory != nil && of.Median >= f.Target && f.OfMemory.Median >= 1.1:
		return "met"
	case f.OfMemory != nil:
		return "near"
	case of.Median >= f.Target:
		return "met"
	case of.Median >= f.Floor:
		return "near"
	}
	return "below"
}

func (p pair) verdict() string {
	switch {
	case p.With.Median >= p.Target:
		return "met"
	case p.With.Median >= p.Floor:
		return "near"
	}
	return "below"
}

// write writes the JSON, the charts and the tables into dir, the tables into docs if that is given, and prints them.
func (r *report) write(dir, docs string, out io.Writer) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	table := r.markdown()
	files := map[string]string{r.Mode + ".json": string(b) + "\n", r.Mode + ".md": table, r.Mode + ".svg": r.svg()}
	if len(r.Curves) > 0 {
		files[r.Mode+"-scale.svg"] = r.scaleSVG()
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if docs != "" {
		if err := include(docs, "bench", r.body()); err != nil {
			return err
		}
	}
	_, err = fmt.Fprint(out, "\n", table)
	return err
}
