package main

import (
	"fmt"
	"path/filepath"
	"time"

	"lunar/integration/client"
	"lunar/integration/harness"
)

// sizesParts are about size: many LUNs, a map larger than its cache, much to recover.
var sizesParts = []part{
	{id: "luns", run: (*versions).luns},
	{id: "map", run: (*versions).maps},
	{id: "recovery", run: (*versions).recovery},
}

// luns makes 10,000 LUNs, writes to each, and measures what they take at rest and in a start.
func (v *versions) luns() (table, error) {
	count, rest := 10000, 30*time.Second
	if v.b.quick {
		count, rest = 1000, 5*time.Second
	}
	t := table{
		Title:   fmt.Sprintf("%d LUNs", count),
		Notes:   "Each of 1 TiB, thin, written in one block; through the API on one connection. Memory: RSS more than of the empty server. At rest: processor time after the last checkpoint, as a part of one core, with 8 clients attached.",
		Columns: []string{"", "total", "each"},
	}
	s, a, err := v.serve("LUNAR_LOG_LEVEL=warn")
	if err != nil {
		return t, err
	}
	defer s.stop()
	empty := rss(s)
	began := time.Now()
	for i := range count {
		name := fmt.Sprintf("l%d", i)
		if _, err := a.call("POST", "/luns", object{"name": name, "size_bytes": int64(1) << 40}, nil); err != nil {
			return t, err
		}
		w, err := attach(s, name, uint64(i))
		if err != nil {
			return t, err
		}
		if err := w.Write(w.block, w.random.Int64N(w.Size/4096)*4096, false); err != nil {
			return t, err
		}
		w.Disconnect() // the server may have closed first
	}
	took := time.Since(began)
	t.row("made and written", took.Round(time.Millisecond).String(), millis(ms(took)/float64(count)))
	perLUN := func(title string) {
		more := float64(rss(s)-empty) / 1024 / float64(count)
		t.row(title, mib(rss(s)), fmt.Sprintf("%.1f KiB", more))
		t.Claims = append(t.Claims, claim{Title: title + ": KiB for each LUN", Value: more, Limit: 100})
	}
	perLUN("memory, all written")
	if err := v.lunsStart(&t, s, a, count); err != nil {
		return t, err
	}
	perLUN("memory, after a restart")
	return t, v.lunsRest(&t, s, rest)
}

func (v *versions) lunsStart(t *table, s *server, a *admin, count int) error {
	var times []float64
	for range 3 {
		if err := s.end(); err != nil {
			return err
		}
		took, err := timed(func() error { return s.run(s.uri) })
		if err != nil {
			return err
		}
		times = append(times, ms(took))
	}
	m := t.sample("start", times)
	t.row("start, until it is ready", millis(m), "")
	t.Claims = append(t.Claims, claim{Title: "start with all LUNs: seconds", Value: m / 1000, Limit: 2})
	var list []struct{ Name string }
	*a = *newAdmin(s.admin)
	took, err := a.call("GET", "/luns", nil, &list)
	if err == nil && len(list) != count {
		err = fmt.Errorf("%d LUNs after a restart, not %d", len(list), count)
	}
	t.row("list all", millis(ms(took)), "")
	return err
}

func (v *versions) lunsRest(t *table, s *server, rest time.Duration) error {
	var clients []*client.Conn
	for i := range 8 {
		w, err := attach(s, fmt.Sprintf("l%d", i), 1)
		if err != nil {
			return err
		}
		clients = append(clients, w.Conn)
	}
	time.Sleep(40 * time.Second) // the last checkpoint, and all comes to rest
	before := s.cpu()
	time.Sleep(rest)
	used := 100 * (s.cpu() - before).Seconds() / rest.Seconds()
	t.row(fmt.Sprintf("processor at rest, %v", rest), fmt.Sprintf("%.3f %% of a core", used), "")
	t.Claims = append(t.Claims, claim{Title: "processor at rest: percent of a core", Value: used, Limit: 0.1})
	for _, c := range clients {
		c.Close()
	}
	return nil
}

// recovery kills the server after different loads and measures the next start.
func (v *versions) recovery() (table, error) {
	written := []int64{1 << 30, 16 << 30}
	seconds := 25 // a checkpoint comes after 30
	if v.b.quick {
		written, seconds = []int64{1 << 30}, 5
	}
	t := table{
		Title:   "Start after kill -9",
		Notes:   "Until the server is ready, everything recovered. Fsync each: 4K random writes, depth 1, nearly a whole checkpoint interval of them.",
		Columns: []string{"killed after", "operations", "ready after"},
	}
	s, a, err := v.serve("LUNAR_LOG_LEVEL=warn")
	if err != nil {
		return t, err
	}
	defer s.stop()
	if err := a.createLUN("d", written[len(written)-1]); err != nil {
		return t, err
	}
	crash := func(title string, args []string) error {
		v.b.show(args)
		done, err := fio(args)
		if err != nil {
			return err
		}
		s.cmd.Process.Kill()
		s.cmd.Wait() // killed
		took, err := timed(func() error { return s.run(s.uri) })
		if err != nil {
			return err
		}
		t.row(title, fmt.Sprint(done.ops), millis(t.sample(title, []float64{ms(took)})))
		t.Claims = append(t.Claims, claim{Title: "start after " + title + ": seconds", Value: took.Seconds(), Limit: 2})
		return nil
	}
	for _, n := range written {
		args := fioArgs(job("--rw=write --bs=1M --iodepth=4"), export(s, "d"), n, 0, 1)
		if err := crash(fmt.Sprintf("%s of 1M writes", gib(n)), args); err != nil {
			return t, err
		}
	}
	last := written[len(written)-1]
	if err := crash("4K random writes", fioArgs(job("--rw=randwrite --bs=4k --iodepth=32 --norandommap"), export(s, "d"), last, seconds, 2)); err != nil {
		return t, err
	}
	return t, crash("4K random writes, fsync each", fioArgs(job("--rw=randwrite --bs=4k --iodepth=1 --fsync=1 --norandommap"), export(s, "d"), last, seconds, 3))
}

// peak is the most memory that the server had, in bytes.
func peak(s *server) int64 {
	most, _, err := harness.ProcessRSS(s.cmd.Process.Pid)
	if err != nil {
		return 0
	}
	return most
}

func (v *versions) chartPath(name string) string { return filepath.Join(v.b.out, name) }
