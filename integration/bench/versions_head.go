package main

import (
	"fmt"
	"time"
)

// headRows are what a LUN's snapshots must not slow down.
var headRows = []row{
	{ID: "randread", Title: "4K random read, depth 32", job: job("--rw=randread --bs=4k --iodepth=32 --norandommap")},
	{ID: "read", Title: "1M read, depth 4", job: job("--rw=read --bs=1M --iodepth=4")},
	{ID: "randwrite", Title: "4K random write, depth 32", job: job("--rw=randwrite --bs=4k --iodepth=32 --norandommap")},
	{ID: "write", Title: "1M write, depth 4", job: job("--rw=write --bs=1M --iodepth=4")},
}

const headSize = 1 << 30

// head measures what snapshots cost the head: LUNs of one server with the same history, without and with snapshots.
func (v *versions) head() (table, error) {
	counts := append([]int{0}, v.counts[1:]...)
	t := table{
		Title:   "Reading and writing a LUN that has snapshots",
		Notes:   fmt.Sprintf("%d MiB, all mapped, the same random writes to each LUN; fio, %d s, interleaved, after the cleaner has put together what was scattered; median of %d; x: ratio of the same repeat to the LUN without snapshots, median (smallest-largest); CPU: the server's time for each operation.", headSize>>20, v.b.seconds, v.pairs),
		Columns: []string{"workload"},
	}
	for _, n := range counts {
		t.Columns = append(t.Columns, fmt.Sprintf("%d snapshots", n))
	}
	s, a, err := v.serve()
	if err != nil {
		return t, err
	}
	defer s.stop()
	most := counts[len(counts)-1]
	for _, n := range counts {
		if err := v.headLUN(s, a, n, most); err != nil {
			return t, err
		}
	}
	if err := together(s, a); err != nil {
		return t, err
	}
	for _, r := range headRows {
		if err := v.headRow(&t, r, s, counts); err != nil {
			return t, err
		}
	}
	for _, n := range counts {
		if err := a.wantSnapshots(headName(n), n); err != nil {
			return t, err
		}
	}
	return t, nil
}

// together waits until the cleaner has put together what was scattered, and then until the server is quiet. If that takes
// more than two minutes, what is measured is what there is then.
func together(s *server, a *admin) error {
	for began := time.Now(); time.Since(began) < 2*time.Minute; time.Sleep(time.Second) {
		info, err := a.pool()
		if err != nil {
			return err
		}
		if info.Scattered == 0 {
			break
		}
	}
	return quiet(s)
}

// headKey is the name of a cell's samples; count is its column's title.
func headKey(r row, count string) string { return r.ID + ", " + count }

func headName(n int) string { return fmt.Sprintf("h%d", n) }

// headLUN makes a LUN with the history of all, and n snapshots at its end.
func (v *versions) headLUN(s *server, a *admin, n, most int) error {
	name := headName(n)
	if err := a.createLUN(name, headSize); err != nil {
		return err
	}
	w, err := attach(s, name, 1)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.spread(headSize); err != nil {
		return err
	}
	if err := w.scatter((most - n) * snapshotWrites); err != nil {
		return err
	}
	return v.grow(a, w, name, 0, n)
}

func (v *versions) headRow(t *table, r row, s *server, counts []int) error {
	samples := make([][]sample, len(counts))
	for i := range v.pairs {
		for k := range counts {
			k = (k + i) % len(counts)
			target := *s
			target.uri = export(s, headName(counts[k]))
			m, err := measure(r, &target, v.b, i+1)
			if err != nil {
				return err
			}
			samples[k] = append(samples[k], m)
		}
	}
	cells := []string{r.Title}
	for k, n := range counts {
		m := t.sample(headKey(r, t.Columns[k+1]), each(samples[k], rate))
		text := fmt.Sprintf("%.0f/s", m)
		if r.large() {
			text = fmt.Sprintf("%.0f MB/s", m/1e6)
		}
		if n > 0 {
			of := ratios(samples[k], samples[0], rate)
			text += fmt.Sprintf(" x%v, CPU x%.2f", of, ratios(samples[k], samples[0], cpu).Median)
			t.Claims = append(t.Claims, claim{Title: fmt.Sprintf("%s, %d snapshots / none", r.Title, n), Value: of.Median, Limit: 0.9, AtLeast: true})
		}
		cells = append(cells, text)
	}
	t.row(cells...)
	fmt.Println("  ", cells)
	return nil
}
