package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// sample is one run of one workload on one server.
type sample struct {
	Rate float64 `json:"rate"` // operations or bytes a second
	CPU  float64 `json:"cpu"`  // microseconds of the server's processor time for each operation
}

// outcome is what a fio job did.
type outcome struct {
	ops, bytes int64
	seconds    float64 // that the job measured
	// Completion latencies, in milliseconds; of the writes where there were any.
	p50, p999, longest float64
}

// direction is one of fio's reports of a group.
type direction struct {
	IOBytes int64 `json:"io_bytes"`
	Total   int64 `json:"total_ios"`
	Runtime int64 `json:"runtime"` // ms
	Latency struct {
		Max        float64
		Percentile map[string]float64
	} `json:"clat_ns"`
}

func (d direction) ms(percentile string) float64 { return d.Latency.Percentile[percentile] / 1e6 }

// fio runs a job and says what it did.
func fio(args []string) (outcome, error) {
	out, err := exec.Command(args[0], args[1:]...).Output()
	if err != nil {
		if exit, ok := err.(*exec.ExitError); ok {
			out = append(out, exit.Stderr...)
		}
		return outcome{}, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out[:min(len(out), 4000)])
	}
	var report struct {
		Jobs []struct {
			Error       int
			Read, Write direction
		}
	}
	text := string(out)
	if i := strings.IndexByte(text, '{'); i > 0 { // notes come first
		text = text[i:]
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil || len(report.Jobs) != 1 {
		return outcome{}, fmt.Errorf("%s: no report of one group: %w\n%s", strings.Join(args, " "), err, out)
	}
	job := report.Jobs[0]
	if job.Error != 0 {
		return outcome{}, fmt.Errorf("%s: fio error %d", strings.Join(args, " "), job.Error)
	}
	o := outcome{ops: job.Read.Total + job.Write.Total, bytes: job.Read.IOBytes + job.Write.IOBytes,
		seconds: float64(max(job.Read.Runtime, job.Write.Runtime)) / 1000}
	if o.seconds <= 0 {
		return outcome{}, fmt.Errorf("%s: fio measured no time", strings.Join(args, " "))
	}
	d := job.Read
	if job.Write.Total > 0 {
		d = job.Write
	}
	o.p50, o.p999, o.longest = d.ms("50.000000"), d.ms("99.900000"), d.Latency.Max/1e6
	return o, nil
}

// fioArgs is the command line of a job on an export.
func fioArgs(job []string, uri string, size int64, seconds int, seed int) []string {
	args := append([]string{"fio", "--name=bench", "--ioengine=nbd", "--uri=" + uri, fmt.Sprintf("--size=%d", size)}, job...)
	args = append(args, fmt.Sprintf("--randseed=%d", seed), "--group_reporting", "--output-format=json")
	if seconds > 0 {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%d", seconds))
	}
	return args
}

// measure runs one row on one server once.
func measure(r row, s *server, b *bench, seed int) (sample, error) {
	used := s.cpu()
	if r.copyIn || r.copyOut {
		args := []string{"nbdcopy", "-C", "4", s.uri, "null:"}
		if r.copyIn {
			args = []string{"nbdcopy", "-C", "4", b.source, s.uri}
		}
		b.show(args)
		began := time.Now()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return sample{}, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
		took := time.Since(began).Seconds()
		cpu := float64((s.cpu() - used).Microseconds())
		return sample{Rate: float64(b.size) / took, CPU: cpu / float64(b.size>>20)}, nil
	}
	args := fioArgs(r.job, s.uri, b.size, b.seconds, seed)
	b.show(args)
	o, err := fio(args)
	if err != nil {
		return sample{}, err
	}
	m := sample{Rate: float64(o.ops) / o.seconds, CPU: float64((s.cpu() - used).Microseconds()) / float64(max(o.ops, 1))}
	if r.large() {
		m.Rate = float64(o.bytes) / o.seconds
	}
	return m, nil
}
