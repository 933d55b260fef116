package soak

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"lunar/integration/harness"
)

// sample is what the server takes while it is idle, at the end of a cycle.
type sample struct {
	cycle, life int
	heap        int64 // bytes, after a collection
	rss         int64
	goroutines  int64
	fds         int64
	segments    int64
	disk        int64
}

// log collects samples.
type log struct {
	samples []sample
	lives   int
	slowest time.Duration // start
}

func (l *log) start(took time.Duration) {
	l.lives++
	l.slowest = max(l.slowest, took)
}

// take samples once the clients are gone and their goroutines with them.
func (l *log) take(s *soak, cycle int) {
	s.t.Helper()
	x := sample{cycle: cycle, life: l.lives, goroutines: 1 << 30}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		now := number(s, "goroutine", `total (\d+)`)
		if now >= x.goroutines {
			break // as low as it gets
		}
		x.goroutines = now
	}
	x.heap = number(s, "heap?gc=1&", `# HeapAlloc = (\d+)`)
	_, x.rss, _ = harness.ProcessRSS(s.server.Pid)
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.server.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	x.fds = int64(len(entries))
	x.segments, x.disk = int64(s.server.Pool().Segments), s.server.DiskBytes()
	l.samples = append(l.samples, x)
}

// number reads one from a profile.
func number(s *soak, profile, pattern string) int64 {
	s.t.Helper()
	if !strings.HasSuffix(profile, "&") {
		profile += "?"
	}
	r, err := http.Get("http://" + s.pprof + "/debug/pprof/" + profile + "debug=1")
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	match := regexp.MustCompile(pattern).FindSubmatch(text)
	if err != nil || match == nil {
		s.t.Fatalf("%s: %v, no %s in %.200s", profile, err, pattern, text)
	}
	n, _ := strconv.ParseInt(string(match[1]), 10, 64)
	return n
}

// measure is one thing that must be flat: what may be added to its first values.
type measure struct {
	name  string
	of    func(sample) int64
	slack int64
}

// The bounds leave room for what is bounded by itself (the cache of maps, files of sealed segments, dead space up to the capacity)
// and none for what grows by a little each cycle of an hour.
var measures = []measure{
	{"heap", func(x sample) int64 { return x.heap }, 48 * mib},
	{"resident", func(x sample) int64 { return x.rss }, 192 * mib},
	{"goroutines", func(x sample) int64 { return x.goroutines }, 8},
	{"open files", func(x sample) int64 { return x.fds }, 64},
	{"segments", func(x sample) int64 { return x.segments }, 32},
	{"disk", func(x sample) int64 { return x.disk }, 256 * mib},
}

// judge compares the first third of the samples with the last: the median of the last may not be above the largest of the
// first by more than the slack. The very first cycles fill the LUNs.
func (l *log) judge(t *testing.T) {
	t.Helper()
	list := l.samples[min(2, len(l.samples)):]
	if len(list) < 3 {
		t.Errorf("%d samples are too few to judge by", len(l.samples))
		return
	}
	third := len(list) / 3
	for _, m := range measures {
		var first, last []int64
		for i, x := range list {
			if i < third {
				first = append(first, m.of(x))
			}
			if i >= len(list)-third {
				last = append(last, m.of(x))
			}
		}
		slices.Sort(last)
		if before, now := slices.Max(first), last[len(last)/2]; now > before+m.slack {
			t.Errorf("%s grows: at most %d in the first third of the time, %d in the last (median)\n%s", m.name, before, now, l.summary())
		}
	}
}

// summary is a table of at most a dozen samples.
func (l *log) summary() string {
	var b strings.Builder
	fmt.Fprintf(&b, "slowest start %v\n%6s %5s %9s %9s %11s %6s %9s %9s\n", l.slowest.Round(time.Millisecond), "cycle", "life", "heap MiB", "RSS MiB", "goroutines", "files", "segments", "disk MiB")
	step := max(1, (len(l.samples)+11)/12)
	for i, x := range l.samples {
		if i%step == 0 || i == len(l.samples)-1 {
			fmt.Fprintf(&b, "%6d %5d %9.1f %9d %11d %6d %9d %9d\n", x.cycle, x.life, float64(x.heap)/mib, x.rss/mib, x.goroutines, x.fds, x.segments, x.disk/mib)
		}
	}
	return b.String()
}
