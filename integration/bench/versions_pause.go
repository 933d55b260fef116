package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// latency is what fio says of the writes of one run, in milliseconds.
type latency struct{ max, p999, iops float64 }

func writeLatency(args []string) (l latency, err error) {
	out, err := exec.Command(args[0], args[1:]...).Output()
	if err != nil {
		return l, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	text := string(out)
	if i := strings.IndexByte(text, '{'); i > 0 {
		text = text[i:]
	}
	var report struct {
		Jobs []struct {
			Write struct {
				IOPS float64
				Clat struct {
					Max        float64
					Percentile map[string]float64
				} `json:"clat_ns"`
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		return l, err
	}
	if len(report.Jobs) != 1 || report.Jobs[0].Write.Clat.Max == 0 {
		return l, fmt.Errorf("%s: no latencies\n%s", strings.Join(args, " "), out)
	}
	w := report.Jobs[0].Write
	return latency{max: w.Clat.Max / 1e6, p999: w.Clat.Percentile["99.900000"] / 1e6, iops: w.IOPS}, nil
}

const (
	pauseSnapshots = 100
	pauseSeconds   = 5
)

// pause measures the longest write of a client while 100 snapshots are taken, beside the same load without.
func (v *versions) pause() (table, error) {
	t := table{
		Title:   fmt.Sprintf("The longest write while %d snapshots are taken", pauseSnapshots),
		Notes:   fmt.Sprintf("fio, 4K random writes, depth 8, %d s, %d interleaved pairs; latencies in milliseconds, median (largest).", pauseSeconds, v.pairs),
		Columns: []string{"", "longest", "p99.9", "writes"},
	}
	s, a, err := v.serve()
	if err != nil {
		return t, err
	}
	defer s.stop()
	all := map[string][]latency{}
	for i := range v.pairs {
		for k := range 2 {
			name, snapshots := "without", 0
			if (i+k)%2 == 1 {
				name, snapshots = "with", pauseSnapshots
			}
			l, err := v.pauseRun(s, a, fmt.Sprintf("%s%d", name, i), i, snapshots)
			if err != nil {
				return t, err
			}
			all[name] = append(all[name], l)
		}
	}
	middles := map[string][2]float64{}
	for _, name := range []string{"without", "with"} {
		var longest, p999, iops []float64
		for _, l := range all[name] {
			longest, p999, iops = append(longest, l.max), append(p999, l.p999), append(iops, l.iops)
		}
		middles[name] = [2]float64{t.sample(name+", longest", longest), t.sample(name+", p99.9", p999)}
		t.row(name, fmt.Sprintf("%.1f (%.1f)", middles[name][0], largest(longest)), fmt.Sprintf("%.2f (%.2f)", middles[name][1], largest(p999)), fmt.Sprintf("%.0f/s", t.sample(name+", writes", iops)))
	}
	t.Claims = []claim{
		{Title: "longest write, with snapshots / without", Value: middles["with"][0] / middles["without"][0], Limit: 2},
		{Title: "p99.9, with snapshots / without", Value: middles["with"][1] / middles["without"][1], Limit: 2},
	}
	return t, nil
}

// pauseRun loads a LUN, fills it first, and takes snapshots of it evenly over the load.
func (v *versions) pauseRun(s *server, a *admin, name string, seed, snapshots int) (l latency, err error) {
	if err := a.createLUN(name, headSize); err != nil {
		return l, err
	}
	w, err := attach(s, name, 1)
	if err != nil {
		return l, err
	}
	if err := w.spread(headSize); err != nil {
		return l, err
	}
	w.Close()
	if err := quiet(s); err != nil {
		return l, err
	}
	var calls sync.WaitGroup
	var failed error
	calls.Go(func() {
		time.Sleep(500 * time.Millisecond) // fio connects
		every := (pauseSeconds - 1) * time.Second / pauseSnapshots
		for i := range snapshots {
			next := time.Now().Add(every)
			if _, failed = a.snapshot(name, fmt.Sprintf("s%d", i)); failed != nil {
				return
			}
			time.Sleep(time.Until(next))
		}
	})
	args := fioArgs(job("--rw=randwrite --bs=4k --iodepth=8 --norandommap"), export(s, name), headSize, pauseSeconds, seed+1)
	v.b.show(args)
	l, err = writeLatency(args)
	calls.Wait()
	if err == nil {
		err = failed
	}
	if err == nil {
		err = a.wantSnapshots(name, snapshots)
	}
	if err != nil {
		return l, err
	}
	fmt.Printf("   %s: longest %.1f ms, p99.9 %.2f ms, %.0f/s\n", name, l.max, l.p999, l.iops)
	if _, err := a.deleteLUN(name); err != nil {
		return l, err
	}
	return l, quiet(s)
}
