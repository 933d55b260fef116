package main

import (
	"fmt"
	"os"
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
	p := panel{title: "by what is mapped (and its map as a multiple of the small cache)"}
	for _, n := range m.sizes {
		p.x = append(p.x, fmt.Sprintf("%s (%.1fx)", gib(n), float64(n>>21)*8/1024/5))
	}
	for _, r := range mapRows {
		l := line{name: r.Title}
		for _, n := range m.sizes {
			l.values = append(l.values, m.ratio(r, n))
		}
		p.lines = append(p.lines, l)
	}
	return chart{title: fmt.Sprintf("lunar: speed with index.cache %s as a part of that with %s", caches[1], caches[0]), below: m.v.report.Machine, panels: []panel{p}}.svg()
}
