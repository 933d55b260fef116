package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"lunar/integration/client"
	"lunar/integration/harness"
)

// versions is a run of the benchmarks of snapshots, rollbacks, clones and deletes. Each part is a table of its own, with
// the claims that it must bear out.
type versions struct {
	b       *bench
	name    string // of the report
	all     []part
	parts   []string
	sizes   []int64 // of LUNs, for what must not grow with the size
	mapped  int64   // most bytes mapped in a LUN
	counts  []int   // of snapshots, rising
	repeats int     // of one operation in one state
	pairs   int     // interleaved repeats of fio runs

	report versionsReport
}

// part is one table of the versions benchmark.
type part struct {
	id   string
	long bool // only when it is named
	run  func(*versions) (table, error)
}

var parts = []part{
	{id: "logical", run: (*versions).logical},
	{id: "head", run: (*versions).head},
	{id: "miss", run: (*versions).miss},
	{id: "delete", run: (*versions).deletes},
	{id: "merge", run: (*versions).merge},
	{id: "index", run: (*versions).index},
	{id: "pause", run: (*versions).pause},
	{id: "clones", run: (*versions).clones},
	{id: "qemu", run: (*versions).qemu},
	{id: "chain", run: (*versions).chain},
	{id: "many", long: true, run: (*versions).many},
}

func partNames(parts []part) string {
	var names []string
	for _, p := range parts {
		names = append(names, p.id)
	}
	return strings.Join(names, ",")
}

func newVersions(b *bench, name string, parts []part, list string) *versions {
	v := &versions{b: b, name: name, all: parts, sizes: []int64{1 << 30, 16 << 30, 256 << 30}, mapped: 4 << 30, counts: []int{1, 256, 4096}, repeats: 15, pairs: 9}
	if b.quick {
		v.sizes, v.mapped, v.counts, v.repeats, v.pairs = []int64{1 << 30, 16 << 30}, 1<<30, []int{1, 256}, 7, 3
	}
	v.parts = strings.Split(list, ",")
	if list == "all" {
		v.parts = nil
		for _, p := range parts {
			if !p.long {
				v.parts = append(v.parts, p.id)
			}
		}
	}
	return v
}

func (v *versions) run(dir string) error {
	for _, name := range v.parts {
		if !slices.ContainsFunc(v.all, func(p part) bool { return p.id == name }) {
			return fmt.Errorf("-%s %s: there is no such part; want some of %s, or all", v.name, name, partNames(v.all))
		}
	}
	if err := v.b.begin(dir); err != nil {
		return err
	}
	defer os.RemoveAll(v.b.top)
	v.report = newVersionsReport(v.b, v.name, v.all)
	var failed error
	for _, p := range v.all {
		if !slices.Contains(v.parts, p.id) {
			continue
		}
		began := time.Now()
		fmt.Printf("== %s\n", p.id)
		t, err := p.run(v)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", p.id, err))
			fmt.Println("   failed:", err)
			continue
		}
		t.ID, t.Seconds, t.Time, t.Version, t.Mode = p.id, time.Since(began).Seconds(), time.Now().UTC(), v.report.version, v.b.mode
		fmt.Print(t.markdown())
		if err := v.report.keep(t); err != nil {
			return err
		}
	}
	return errors.Join(failed, v.report.write())
}

// serve starts a lunar server with an empty pool. env is NAME=VALUE.
func (v *versions) serve(env ...string) (*server, *admin, error) {
	dir, err := os.MkdirTemp(v.b.top, "s")
	if err != nil {
		return nil, nil, err
	}
	socket := filepath.Join(dir, "s")
	s := &server{name: "lunar", dir: dir, admin: filepath.Join(dir, "pool", "admin.sock"), uri: socket, env: env}
	s.args = []string{v.b.lunar, "serve", "--data", filepath.Join(dir, "pool"), "--listen", "unix://" + socket, "--capacity", "64G"}
	if v.b.pprof != "" {
		s.args = append(s.args, "--pprof", v.b.pprof)
	}
	if err := s.run(socket); err != nil {
		return nil, nil, errors.Join(err, s.stop())
	}
	return s, newAdmin(s.admin), nil
}

// export is the address of a LUN for fio. s.uri is the socket here.
func export(s *server, lun string) string { return "nbd+unix:///" + lun + "?socket=" + s.uri }

// quiet waits until the server has been without work of its own for a moment.
func quiet(s *server) error {
	idle := 0
	for range 3000 {
		before := s.cpu()
		time.Sleep(100 * time.Millisecond)
		if s.cpu() == before {
			if idle++; idle == 3 {
				return nil
			}
		} else {
			idle = 0
		}
	}
	return fmt.Errorf("the server is busy for 5 minutes without a client")
}

// writer writes to one LUN over one connection.
type writer struct {
	*client.Conn
	random *rand.Rand
	block  []byte
}

func attach(s *server, lun string, seed uint64) (*writer, error) {
	c, err := client.Dial("unix", s.uri, lun)
	if err != nil {
		return nil, err
	}
	w := &writer{c, rand.New(rand.NewPCG(seed, 7)), make([]byte, 4096)}
	source := rand.NewChaCha8([32]byte{byte(seed)})
	source.Read(w.block)
	return w, nil
}

// scatter writes n random blocks, up to 64 at a time.
func (w *writer) scatter(n int) error {
	blocks := make([]int, 0, 64)
	for n > 0 {
		blocks = blocks[:min(n, 64)]
		n -= len(blocks)
		for i := range blocks {
			blocks[i] = w.random.IntN(int(w.Size / 4096))
		}
		if err := w.writeBlocks(blocks); err != nil {
			return err
		}
	}
	return nil
}

// writeBlocks writes blocks all at once and waits for them.
func (w *writer) writeBlocks(blocks []int) error {
	var calls sync.WaitGroup
	errs := make([]error, len(blocks))
	for i, block := range blocks {
		calls.Go(func() { errs[i] = w.Write(w.block, int64(block)*4096, false) })
	}
	calls.Wait()
	return errors.Join(errs...)
}

// spread maps n bytes in even parts over all pages of 2 MiB of the LUN, in ascending order.
func (w *writer) spread(n int64) error {
	const page = 2 << 20
	part := max(n*page/w.Size, 4096)
	data := make([]byte, part)
	rand.NewChaCha8([32]byte{3}).Read(data)
	var calls sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		calls.Go(func() {
			for off := int64(i) * page; off < w.Size && errs[i] == nil; off += int64(len(errs)) * page {
				errs[i] = w.Write(data, off, false)
			}
		})
	}
	calls.Wait()
	return errors.Join(append(errs, w.Flush())...)
}

// grow takes snapshots s0, s1 ... of a LUN up to n, each followed by 64 random writes.
func (v *versions) grow(a *admin, w *writer, lun string, from, n int) error {
	began := time.Now()
	for i := from; i < n; i++ {
		if _, err := a.snapshot(lun, fmt.Sprintf("s%d", i)); err != nil {
			return err
		}
		if err := w.scatter(snapshotWrites); err != nil {
			return err
		}
	}
	if n > from {
		fmt.Printf("   %s: %d snapshots, each with %d writes, in %v\n", lun, n-from, snapshotWrites, time.Since(began).Round(time.Millisecond))
	}
	return a.wantSnapshots(lun, n)
}

// detach says goodbye and waits until the server knows.
func detach(a *admin, w *writer, lun string) error {
	if err := w.Disconnect(); err != nil && !errors.Is(err, net.ErrClosed) { // the server may have closed first
		return err
	}
	for range 1000 {
		info, err := a.lun(lun)
		if err != nil || info.Clients == 0 {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("the server still counts a client of %s after it left", lun)
}

func rss(s *server) int64 {
	_, now, err := harness.ProcessRSS(s.cmd.Process.Pid)
	if err != nil {
		return 0
	}
	return now
}

func gib(n int64) string { return fmt.Sprintf("%d GiB", n>>30) }
