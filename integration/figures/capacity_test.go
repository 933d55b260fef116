// Package figures takes the figures of docs/CAPACITY.md and docs/PERFORMANCE.md that need file systems of their own.
// `make bench-capacity` runs it; there is nothing in it that passes or fails but the server.
package figures

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"lunar/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Run(m)) }

// sustained is random overwrite of a thick LUN that fills so much of the pool.
type sustained struct {
	Use           int     `json:"use_percent"` // of what was free
	LUNBytes      int64   `json:"lun_bytes"`
	Seconds       float64 `json:"seconds"`
	Rate          float64 `json:"writes_per_second"`
	Amplification float64 `json:"write_amplification"` // bytes sent to the disk, index included, for each byte written
	Median        float64 `json:"median_ms"`
	P99           float64 `json:"p99_ms"`
	Slowest       float64 `json:"slowest_ms"`
}

// step is one part of the way of an area to its limit.
type step struct {
	Fill   float64 `json:"fill_percent"` // of the limit, in the middle of the step
	Rate   float64 `json:"writes_per_second"`
	Median float64 `json:"median_ms"`
	P99    float64 `json:"p99_ms"`
}

// disk is the pool's account beside what the file system says.
type disk struct {
	When   string `json:"when"`
	Ledger int64  `json:"ledger_bytes"`
	Disk   int64  `json:"disk_bytes"`
}

type figures struct {
	Machine   string            `json:"machine"`
	Time      time.Time         `json:"time"`
	Sustained []sustained       `json:"sustained"`
	Areas     map[string][]step `json:"areas"` // by policy
	Refused   float64           `json:"freeze_refused_at_percent"`
	Disk      []disk            `json:"disk"`
}

// TestCapacityFigures writes capacity.json, .md and .svg to the folder LUNAR_FIGURES.
func TestCapacityFigures(t *testing.T) {
	out := os.Getenv("LUNAR_FIGURES")
	if out == "" {
		t.Skip("figures are taken by `make bench-capacity`")
	}
	f := &figures{Areas: map[string][]step{}}
	if old, err := os.ReadFile(filepath.Join(out, "capacity.json")); err == nil { // what -run leaves out stays
		if err := json.Unmarshal(old, f); err != nil {
			t.Fatal(err)
		}
	}
	f.Machine, f.Time = machine(), time.Now().UTC()
	for _, use := range []int{50, 75, 90} {
		t.Run(fmt.Sprintf("use%d", use), func(t *testing.T) {
			f.Sustained = slices.DeleteFunc(f.Sustained, func(s sustained) bool { return s.Use == use })
			f.Sustained = append(f.Sustained, f.sustain(t, use))
		})
	}
	for _, policy := range []string{"recycle", "freeze"} {
		t.Run(policy, func(t *testing.T) { f.Areas[policy] = f.area(t, policy) })
	}
	t.Run("disk", f.ledger)
	if t.Failed() {
		return
	}
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{"json": string(text) + "\n", "md": f.markdown(), "svg": f.svg()} {
		if err := os.WriteFile(filepath.Join(out, "capacity."+name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Log("\n" + f.markdown())
}

// sustain overwrites until as much as the LUN's size was written, and measures then.
func (f *figures) sustain(t *testing.T, use int) sustained {
	_, s := newSmall(t)
	size := s.Pool().FreeBytes / 100 * int64(use) &^ (mib - 1)
	s.Lunar("lun", "create", "d", fmt.Sprint(size), "--thick", "--reserve", "0")
	c := s.Dial("d")
	fillLUN(t, c, size)
	l := &load{conn: c, blocks: size / block}
	l.start(16)
	for began := time.Now(); l.next.Load() < l.blocks && time.Since(began) < 90*time.Second; {
		time.Sleep(100 * time.Millisecond)
	}
	l.take()
	before, began := deviceBytes(t, s.Pid), time.Now()
	time.Sleep(25 * time.Second)
	answers, err := l.take()
	took, sent := time.Since(began).Seconds(), deviceBytes(t, s.Pid)-before
	if err := errors.Join(err, l.end()); err != nil {
		t.Fatalf("%v\n%s", err, s.Log())
	}
	r := sustained{Use: use, LUNBytes: size, Seconds: took, Rate: float64(len(answers)) / took,
		Amplification: float64(sent) / float64(len(answers)*block),
		Median:        ms(percentile(answers, 0.5)), P99: ms(percentile(answers, 0.99)), Slowest: ms(percentile(answers, 1))}
	t.Logf("%+v", r)
	return r
}

// area overwrites blocks that snapshots hold, each once, and follows the area to its limit. With recycle, sixteen snapshots
// share what the area holds, so that the oldest can go.
func (f *figures) area(t *testing.T, policy string) []step {
	const size, limit = 512 * mib, 256 * mib
	_, s := newSmall(t)
	s.Lunar("lun", "create", "d", fmt.Sprint(size), "--limit", fmt.Sprint(limit), "--on-full", policy)
	c := s.Dial("d")
	fillLUN(t, c, size)
	random := rand.New(rand.NewPCG(3, 3))
	order := make([]int32, size/block)
	for i := range order {
		order[i] = int32(i)
	}
	random.Shuffle(len(order), func(i, k int) { order[i], order[k] = order[k], order[i] })
	l := &load{conn: c, blocks: size / block, order: order}
	s.Lunar("snapshot", "create", "d@s0")
	l.start(16)
	steps := map[int]*gathered{}
	last, taken, from := int64(0), 1, time.Now()
	for began := time.Now(); l.next.Load() < int64(len(order)) && time.Since(began) < 60*time.Second; {
		time.Sleep(40 * time.Millisecond)
		answers, err := l.take()
		now := time.Now()
		took := now.Sub(from)
		from = now
		used := s.LUN("d").Area.UsedBytes
		fill := float64(used+last) / 2 / limit * 100
		last = used
		if err != nil {
			if policy != "freeze" || !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("%v\n%s", err, s.Log())
			}
			f.Refused = float64(used) / limit * 100
			break
		}
		at := bucket(fill)
		if steps[at] == nil {
			steps[at] = &gathered{}
		}
		steps[at].add(fill, took, answers)
		if due := int(l.next.Load() * 32 / int64(len(order))); due >= taken { // one for each 16 MiB
			// A frozen area that is full refuses a snapshot, too; the writes meet it next.
			if r := s.Run("snapshot", "create", fmt.Sprintf("d@s%d", taken)); r.Status != 0 && policy != "freeze" {
				t.Fatal(r.Stderr)
			}
			taken++
		}
	}
	if err := l.end(); err != nil && policy != "freeze" {
		t.Fatal(err)
	}
	var list []step
	for at := range 200 {
		if g := steps[at]; g != nil && len(g.answers) > 50 {
			list = append(list, g.step())
		}
	}
	return list
}

// bucket puts fills of five percent together, and of one percent near the limit.
func bucket(fill float64) int {
	if fill < 85 {
		return int(fill/5) * 5
	}
	return int(fill)
}

type gathered struct {
	fill    float64
	windows int
	took    time.Duration
	answers []time.Duration
}

func (g *gathered) add(fill float64, took time.Duration, answers []time.Duration) {
	g.fill += fill
	g.windows++
	g.took += took
	g.answers = append(g.answers, answers...)
}

func (g *gathered) step() step {
	return step{Fill: g.fill / float64(g.windows), Rate: float64(len(g.answers)) / g.took.Seconds(),
		Median: ms(percentile(g.answers, 0.5)), P99: ms(percentile(g.answers, 0.99))}
}

// ledger compares the account with the disk through a LUN's life.
func (f *figures) ledger(t *testing.T) {
	const size = 384 * mib
	_, s := newSmall(t)
	f.Disk = nil
	look := func(when string, clean bool) {
		if clean {
			s.Lunar("pool", "clean")
			when += ", after pool clean"
		}
		p := s.Pool()
		f.Disk = append(f.Disk, disk{When: when, Ledger: p.UsedBytes + p.IndexBytes, Disk: s.DiskBytes()})
		t.Logf("%+v %+v", f.Disk[len(f.Disk)-1], p)
	}
	s.Lunar("lun", "create", "d", fmt.Sprint(size))
	c := s.Dial("d")
	fillLUN(t, c, size)
	look("384 MiB written", false)
	overwrite := func(part int64) {
		l := &load{conn: c, blocks: size / block, order: make([]int32, size/block/part)}
		for i := range l.order {
			l.order[i] = int32(rand.IntN(size / block))
		}
		l.start(16)
		l.workers.Wait()
		if err := l.end(); err != nil {
			t.Fatal(err)
		}
	}
	overwrite(1)
	look("overwritten once at random", false)
	look("overwritten once at random", true)
	for i := range 8 {
		s.Lunar("snapshot", "create", fmt.Sprintf("d@s%d", i))
		overwrite(4)
	}
	look("8 snapshots, a quarter overwritten after each", false)
	look("8 snapshots, a quarter overwritten after each", true)
	for i := range 4 {
		s.Lunar("snapshot", "delete", fmt.Sprintf("d@s%d", i*2), "--wait")
	}
	look("every other snapshot deleted", true)
	if err := c.Trim(0, size/2, false); err != nil {
		t.Fatal(err)
	}
	look("half of the LUN trimmed", true)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
