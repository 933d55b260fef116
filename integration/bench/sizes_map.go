package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"strings"
	"time"
)

// caches are the sizes of index.cache that are compared: all of the map fits, and a tenth of it or less.
var caches = []string{"256M", "5M"}

// mapRows are run with each cache; reads first, since writes change the layout.
var mapRows = []row{
	{ID: "randread-q1", Title: "4K random read, depth 1", Floor: 0.5, job: job("--rw=randread --bs=4k --iodepth=1 --norandommap")},
	{ID: "randread", Title: "4K random read, depth 32", Floor: 0.5, job: job("--rw=randread --bs=4k --iodepth=32 --norandommap")},
	{ID: "randwrite", Title: "4K random write, depth 32", Floor: 0.25, job: job("--rw=randwrite --bs=4k --iodepth=32 --norandommap")},
}

// mapRun is one LUN whose map is up to 13 times the small cache (8 KiB for 2 MiB), read and written in growing parts of it.
type mapRun struct {
	v       *versions
	t       *table
	s       *server
	sizes   []int64
	rates   map[string][]float64 // by row, cache and part
	written map[string][2]int64  // by cache: bytes of data and of index, of one run of random writes to the whole LUN
	peak    map[string]int64
}

// maps measures reads and writes with a map larger than its cache, and what random writes cost the index.
func (v *versions) maps() (table, error) {
	m := &mapRun{v: v, sizes: []int64{1 << 30, 2 << 30, 4 << 30, 8 << 30, 16 << 30}, rates: map[string][]float64{}, written: map[string][2]int64{}, peak: map[string]int64{}}
	repeats := 3
	if v.b.quick {
		m.sizes, repeats = []int64{1 << 30, 4 << 30}, 1
	}
	size := m.sizes[len(m.sizes)-1]
	t := table{
		Title:   "A map larger than its cache",
		Notes:   fmt.Sprintf("One LUN of %s, all mapped (%d MiB of maps), with index.cache %s and %s in turn; fio on the first part of it, %d s, median of %d. x: of the speed with the large cache.", gib(size), size>>28, caches[0], caches[1], v.b.seconds, repeats),
		Columns: []string{"workload", "part"},
	}
	for _, c := range caches {
		t.Columns = append(t.Columns, "index.cache "+c)
	}
	m.t = &t
	s, a, err := v.serve("LUNAR_LOG_LEVEL=warn")
	if err != nil {
		return t, err
	}
	m.s = s
	defer s.stop()
	if err := a.createLUN("d", size); err != nil {
		return t, err
	}
	if _, err := fio(fioArgs(job("--rw=write --bs=1M --iodepth=4 --end_fsync=1"), export(s, "d"), size, 0, 1)); err != nil {
		return t, err
	}
	for repeat := range repeats {
		for _, cache := range caches {
			if err := m.once(cache, repeat, repeat == repeats-1); err != nil {
				return t, err
			}
		}
	}
	m.tell(size)
	return t, os.WriteFile(v.chartPath("sizes-map.svg"), []byte(m.svg()), 0o644)
}

// once runs all rows with one cache; at last it waits for the checkpoints that tell what the index wrote.
func (m *mapRun) once(cache string, seed int, last bool) error {
	m.s.env = []string{"LUNAR_LOG_LEVEL=warn", "LUNAR_INDEX_CACHE=" + cache}
	if err := restart(m.s); err != nil {
		return err
	}
	a := newAdmin(m.s.admin)
	for _, r := range mapRows {
		for _, size := range m.sizes {
			count := last && r.ID == "randwrite" && size == m.sizes[len(m.sizes)-1]
			before, err := m.indexWritten(a, count)
			if err != nil {
				return err
			}
			args := fioArgs(r.job, export(m.s, "d"), size, m.v.b.seconds, seed+1)
			m.v.b.show(args)
			done, err := fio(args)
			if err != nil {
				return err
			}
			key := rateKey(r, cache, size)
			m.rates[key] = append(m.rates[key], float64(done.ops)/done.seconds)
			after, err := m.indexWritten(a, count)
			if err != nil {
				return err
			}
			if count {
				m.written[cache] = [2]int64{done.bytes, after - before}
			}
		}
	}
	m.peak[cache] = max(m.peak[cache], peak(m.s))
	return nil
}

// indexWritten is what the index has written since the start; with settled after a checkpoint of all that went before.
func (m *mapRun) indexWritten(a *admin, settled bool) (int64, error) {
	if settled {
		time.Sleep(32 * time.Second)
	}
	if err := quiet(m.s); err != nil {
		return 0, err
	}
	info, err := a.pool()
	return info.Written, err
}

func rateKey(r row, cache string, size int64) string { return r.ID + " " + cache + " " + gib(size) }

func (m *mapRun) ratio(r row, size int64) float64 {
	return middle(m.rates[rateKey(r, caches[1], size)]) / middle(m.rates[rateKey(r, caches[0], size)])
}

// tell makes the table and the claims.
func (m *mapRun) tell(size int64) {
	for _, r := range mapRows {
		for _, n := range m.sizes {
			large := m.t.sample(rateKey(r, caches[0], n), m.rates[rateKey(r, caches[0], n)])
			small := m.t.sample(rateKey(r, caches[1], n), m.rates[rateKey(r, caches[1], n)])
			m.t.row(r.Title, gib(n), fmt.Sprintf("%.0f/s", large), fmt.Sprintf("%.0f/s x%.2f", small, small/large))
		}
		m.t.Claims = append(m.t.Claims, claim{Title: r.Title + ", index.cache " + caches[1] + " / " + caches[0], Value: m.ratio(r, size), Limit: r.Floor, AtLeast: true})
	}
	for i, cache := range caches {
		w := m.written[cache]
		part := float64(w[1]) / float64(max(w[0], 1))
		m.t.row("index written, random 4K writes", gib(size), cache, fmt.Sprintf("%.1f %% of %s", 100*part, mib(w[0])))
		m.t.row("peak memory", "", cache, mib(m.peak[cache]))
		m.t.Claims = append(m.t.Claims, claim{Title: "index written / data, random 4K writes, index.cache " + cache, Value: part, Limit: []float64{0.25, 0.4}[i]})
	}
	m.t.Claims = append(m.t.Claims, claim{Title: "peak memory with index.cache " + caches[1] + ", MiB", Value: float64(m.peak[caches[1]] >> 20), Limit: 1024 + 5})
}

// svg is the curve: the part of the speed that is left as the map outgrows its cache.
func (m *mapRun) svg() string {
	const left, top, width, height = 70, 60, 560, 280
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n", left+width+230, top+height+60)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	fmt.Fprintf(&b, `<text x="10" y="22" font-size="16">lunar: speed with index.cache %s as a part of that with %s</text>`+"\n", caches[1], caches[0])
	fmt.Fprintf(&b, `<text x="10" y="42" fill="#555">%s</text>`+"\n", html.EscapeString(m.v.report.Machine))
	most := 1.2
	x := func(n int64) float64 {
		first, last := math.Log2(float64(m.sizes[0])), math.Log2(float64(m.sizes[len(m.sizes)-1]))
		return left + width*(math.Log2(float64(n))-first)/(last-first)
	}
	y := func(part float64) float64 { return top + height*(1-min(part, most)/most) }
	for part := 0.0; part < most; part += 0.25 {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%.2f</text>`+"\n", left, left+width, y(part), y(part), left-8, y(part)+4, part)
	}
	for _, n := range m.sizes {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x(n), top+height+20, gib(n))
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle" fill="#555">%.1fx</text>`+"\n", x(n), top+height+38, float64(n>>21)*8/1024/5)
	}
	for i, r := range mapRows {
		colour := []string{"#1565c0", "#2e7d32", "#c62828"}[i]
		var points []string
		for _, n := range m.sizes {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(n), y(m.ratio(r, n))))
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), colour)
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", left+width+20, top+20+20*i, colour, html.EscapeString(r.Title))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" fill="#555">mapped, and the map as</text><text x="%d" y="%d" fill="#555">a multiple of the cache</text>`+"\n", left+width+20, top+height+20, left+width+20, top+height+38)
	b.WriteString("</svg>\n")
	return b.String()
}
