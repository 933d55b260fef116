// Command bench measures lunar beside nbdkit and qemu-nbd on one machine, one file system, in one run, interleaved, and
// prints ratios: absolute figures say more about the machine than about the server. It installs nothing (make tools).
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// bench is one run.
type bench struct {
	lunar    string
	out      string
	docs     string
	mode     string
	size     int64
	seconds  int
	repeats  int
	pairRuns int
	only     string
	servers  []string
	quick    bool
	pprof    string

	top    string // folder of the servers' files
	source string // 1 GiB of data that does not compress, for nbdcopy in
	shown  map[string]bool
	report report
}

func main() {
	b := &bench{shown: map[string]bool{}}
	var dir, servers string
	flag.StringVar(&b.lunar, "lunar", "bin/lunar", "the binary to measure")
	flag.StringVar(&b.out, "out", "docs/bench", "folder for the report (JSON, SVG, markdown)")
	flag.StringVar(&b.docs, "docs", "", "document whose marked part is to show the tables, too (docs/PERFORMANCE.md)")
	flag.StringVar(&dir, "dir", os.TempDir(), "folder for the servers' files")
	flag.Int64Var(&b.size, "size", 1<<30, "bytes of the export")
	flag.IntVar(&b.seconds, "seconds", 4, "seconds of each run, at least 1 (fio takes less for 0)")
	flag.IntVar(&b.repeats, "repeats", 3, "interleaved repeats of each row")
	flag.IntVar(&b.pairRuns, "pairs", 15, "interleaved pairs of the snapshot rows")
	flag.StringVar(&b.only, "only", "", "only the rows whose id contains this")
	flag.StringVar(&servers, "servers", strings.Join(kinds, ","), "servers to run; the first is the measure")
	flag.BoolVar(&b.quick, "quick", false, "about two minutes: 1 s, 3 repeats, the main rows, without qemu-nbd and go-nbd")
	versions := flag.String("versions", "", "measure snapshots, rollbacks and clones instead: a list of "+partNames(parts)+", or all")
	sizes := flag.String("sizes", "", "measure many LUNs, maps larger than their cache and recovery instead: a list of "+partNames(sizesParts)+", or all")
	flag.StringVar(&b.pprof, "pprof", "", "serve lunar's profiles on HOST:PORT (with -versions and -sizes)")
	flag.Parse()
	b.servers = strings.Split(servers, ",")
	b.mode = "full"
	if b.quick {
		b.mode, b.seconds, b.repeats, b.pairRuns = "quick", 1, 3, 5
		b.servers = slices.DeleteFunc(b.servers, func(kind string) bool { return strings.HasPrefix(kind, "qemu-nbd") || kind == "go-nbd" })
	}
	run := b.run
	switch {
	case *versions != "":
		run = newVersions(b, "versions", parts, *versions).run
	case *sizes != "":
		run = newVersions(b, "sizes", sizesParts, *sizes).run
	}
	if err := run(dir); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// begin checks the options and makes the folder of the servers' files, which its caller removes.
func (b *bench) begin(dir string) (err error) {
	if b.seconds < 1 {
		return fmt.Errorf("-seconds %d: fio reads less than 1 as no limit", b.seconds)
	}
	if b.lunar, err = filepath.Abs(b.lunar); err != nil {
		return err
	}
	b.top, err = os.MkdirTemp(dir, "lunar-bench")
	return err
}

func (b *bench) run(dir string) error {
	if err := b.begin(dir); err != nil {
		return err
	}
	defer os.RemoveAll(b.top)
	b.source = filepath.Join(b.top, "source")
	if err := writeSource(b.source, b.size); err != nil {
		return err
	}
	b.report = newReport(b)
	if err := b.compare(); err != nil {
		return err
	}
	if slices.Contains(b.servers, "lunar") {
		if err := b.pairs(); err != nil {
			return err
		}
		if err := b.scale(); err != nil {
			return err
		}
	}
	return b.report.write(b.out, b.docs, os.Stdout)
}

// show prints a command line the first time that its kind is run.
func (b *bench) show(args []string) {
	line := strings.Join(args, " ")
	key := line
	for _, word := range args {
		if strings.Contains(word, b.top) || strings.HasPrefix(word, "--randseed") {
			key = strings.ReplaceAll(key, word, "")
		}
	}
	if !b.shown[key] {
		b.shown[key] = true
		fmt.Println("   ", strings.ReplaceAll(line, b.top+"/", ""))
	}
}

func (b *bench) wanted(list []row) []row {
	return slices.DeleteFunc(slices.Clone(list), func(r row) bool {
		return (b.quick && r.Long) || !strings.Contains(r.ID, b.only)
	})
}

// idleTime is what the servers get to tidy up before their files are counted once more.
const idleTime = 15 * time.Second

// wants says whether -only asks for a part that is no row.
func (b *bench) wants(part string) bool { return strings.Contains(part, b.only) }

// compare runs all rows, all servers up at once, one of them busy at a time.
func (b *bench) compare() error {
	wanted := b.wanted(rows)
	if len(wanted) == 0 && !b.wants("tail") {
		return nil
	}
	running := map[string]*server{}
	defer func() {
		for _, s := range running {
			s.stop()
		}
	}()
	for _, kind := range b.servers {
		s, err := start(kind, b.lunar, b.top, b.size)
		if err != nil {
			return err
		}
		running[kind] = s
		fmt.Println("   ", strings.ReplaceAll(strings.Join(s.args, " "), b.top+"/", ""))
	}
	if len(wanted) == 0 || wanted[0].before == "" {
		for _, s := range running {
			if err := b.fill(s); err != nil {
				return err
			}
		}
	}
	for _, r := range wanted {
		if err := b.row(r, running); err != nil {
			return err
		}
	}
	if err := b.tail(running); err != nil {
		return err
	}
	for kind, s := range running {
		b.report.Servers[kind] = footprint{RSS: s.memory(), Disk: s.disk()}
	}
	time.Sleep(idleTime)
	for kind, s := range running {
		f := b.report.Servers[kind]
		f.Idle = s.disk()
		b.report.Servers[kind] = f
	}
	return nil
}

// row runs one row: repeats of all servers in turn, beginning with another one each time.
func (b *bench) row(r row, running map[string]*server) error {
	fmt.Printf("%s\n", r.Title)
	if err := b.prepare(r, running); err != nil {
		return err
	}
	samples := map[string][]sample{}
	for repeat := range b.repeats {
		for i := range b.servers {
			kind := b.servers[(i+repeat)%len(b.servers)]
			if r.flushes() && !running[kind].flushes() {
				continue
			}
			if r.before == "fresh" {
				if err := running[kind].stop(); err != nil {
					return err
				}
				s, err := start(kind, b.lunar, b.top, b.size)
				if err != nil {
					return err
				}
				running[kind] = s
			}
			m, err := measure(r, running[kind], b, repeat+1)
			if err != nil {
				return fmt.Errorf("%s on %s: %w", r.ID, kind, err)
			}
			samples[kind] = append(samples[kind], m)
		}
	}
	b.report.add(r, samples)
	return nil
}

func (b *bench) prepare(r row, running map[string]*server) error {
	if r.before == "idle" {
		fmt.Println("    60 s idle")
		time.Sleep(60 * time.Second)
		return nil
	}
	for _, kind := range b.servers {
		switch r.before {
		case "fill":
			if err := b.fill(running[kind]); err != nil {
				return err
			}
		case "scatter":
			// Every block once, in random order.
			args := fioArgs(job("--rw=randwrite --bs=4k --iodepth=32"+endFlush(running[kind])), running[kind].uri, b.size, 0, 77)
			b.show(args)
			if _, err := fio(args); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) fill(s *server) error {
	args := fioArgs(job("--rw=write --bs=1M --iodepth=4"+endFlush(s)), s.uri, b.size, 0, 1)
	b.show(args)
	_, err := fio(args)
	return err
}

func endFlush(s *server) string {
	if s.flushes() {
		return " --end_fsync=1"
	}
	return ""
}

// writeSource makes a file that neither compresses nor holds zeroes.
func writeSource(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	random := rand.NewChaCha8([32]byte{1})
	p := make([]byte, 1<<20)
	for left := size; left > 0; left -= int64(len(p)) {
		random.Read(p)
		if _, err := f.Write(p[:min(left, int64(len(p)))]); err != nil {
			return err
		}
	}
	return nil
}
