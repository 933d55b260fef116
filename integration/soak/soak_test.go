// Package soak runs the release binary for a long time under a small, steady load of everything it can do, and watches
// whether anything grows. It is a package of its own, so that it runs beside the other integration tests.
package soak

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lunar/integration/harness"
)

const mib = 1 << 20

func TestMain(m *testing.M) { os.Exit(harness.Run(m)) }

// TestSoak: fio writes and verifies two LUNs without pause while snapshots of them are taken and recycled; a third LUN is
// written, snapshotted, cloned and rolled back; everything is scrubbed; the server is restarted and killed now and then, and
// what fio wrote is verified again. SOAK is how long (default 2 minutes, `make soak` says 1h). No answer may be wrong or an error,
// and heap, goroutines, open files, segments and disk use must be flat.
func TestSoak(t *testing.T) {
	harness.Need(t, "fio")
	length := 2 * time.Minute
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("SOAK=%s: %v", text, err)
		}
	}
	s := newSoak(t, length)
	for cycle := 0; time.Since(s.began) < length || cycle < enough; cycle++ {
		s.cycle(cycle)
		if t.Failed() {
			break
		}
	}
	s.server.Lunar("pool", "check")
	s.log.judge(t)
	t.Logf("%v: %d cycles, %d MiB written and verified by fio, %d snapshots taken, %d recycled, %d rollbacks, %d clones, %d scrubs, %d stops, %d kills\n%s",
		time.Since(s.began).Round(time.Second), s.cycles, s.written/mib, s.snapshots, s.recycled(), s.rollbacks, s.clones, s.scrubs, s.stops, s.kills, s.log.summary())
}

// soak is one run.
type soak struct {
	t      *testing.T
	server *harness.Server
	began  time.Time
	life   int   // cycles between two restarts
	size   int64 // of fio's LUNs
	area   int64 // limit of theirs
	pprof  string
	random *rand.Rand
	log    log
	branch *branches

	cycles, snapshots, rollbacks, clones, scrubs, stops, kills int
	written                                                    int64
}

const (
	rate   = 4 * mib // of each fio, bytes a second
	enough = 8       // cycles to judge by, on however slow a machine
)

func newSoak(t *testing.T, length time.Duration) *soak {
	port := harness.FreePort(t)
	s := &soak{t: t, began: time.Now(), pprof: fmt.Sprintf("127.0.0.1:%d", port), random: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 4)), life: 3, size: 32 * mib, area: 40 * mib}
	if length > 10*time.Minute {
		s.life, s.size, s.area = 12, 64*mib, 80*mib
	}
	top := harness.TempDir(t)
	s.server = harness.New(t, filepath.Join(top, "pool"), filepath.Join(top, "nbd.sock"), "--capacity", "1536M", "--index-cache", "32M", "--pprof", s.pprof)
	s.server.Start()
	s.server.Lunar("lun", "create", "thin", fmt.Sprint(s.size), "--limit", fmt.Sprint(s.area))
	s.server.Lunar("lun", "create", "thick", fmt.Sprint(s.size), "--thick", "--reserve", fmt.Sprint(s.area/2), "--limit", fmt.Sprint(s.area))
	s.branch = newBranches(s)
	return s
}

// cycle is one pass of fio over both LUNs with everything else beside it, what must be true afterwards, and a sample.
func (s *soak) cycle(n int) {
	s.cycles++
	seed := s.random.Int32()
	done := make(chan error, 2)
	for _, lun := range []string{"thin", "thick"} {
		go func() { done <- s.fio(lun, seed, fmt.Sprintf("--rate=,%d", rate), "--do_verify=1", "--end_fsync=1") }()
	}
	for running := 2; running > 0; {
		select {
		case err := <-done:
			if running--; err != nil {
				s.t.Errorf("cycle %d: %v\n%s", n, err, s.server.Log())
			}
		case <-time.After(time.Second):
			s.snapshot()
			s.branch.step()
			if n%3 == 1 && s.scrubs <= n/3 {
				s.scrub()
			}
		}
	}
	s.written += 2 * s.size
	if s.t.Failed() {
		return
	}
	if n%s.life == s.life-1 {
		s.restart(n/s.life%2 == 1)
		for _, lun := range []string{"thin", "thick"} {
			if err := s.fio(lun, seed, "--verify_only=1"); err != nil {
				s.t.Errorf("cycle %d: after a restart: %v\n%s", n, err, s.server.Log())
			}
		}
		s.branch.check()
	}
	s.log.take(s, n)
}

// fio writes a LUN once all over, or verifies what a pass with the same seed has written.
func (s *soak) fio(lun string, seed int32, more ...string) error {
	args := append([]string{"--name=" + lun, "--ioengine=nbd", "--uri=" + s.server.URI(lun), "--rw=randwrite", "--bs=16k", "--iodepth=8",
		fmt.Sprintf("--size=%d", s.size), "--verify=crc32c", "--verify_fatal=1", fmt.Sprintf("--randseed=%d", seed), "--output-format=terse",
		"--aux-path=" + filepath.Dir(s.server.Dir)}, more...)
	_, err := harness.Try("fio", args...)
	return err
}

// snapshot takes one of both LUNs at one instant. Areas are far too small for all of them.
func (s *soak) snapshot() {
	name := fmt.Sprintf("s%d", s.snapshots)
	s.server.Lunar("snapshot", "create", "thin@"+name, "thick@"+name)
	s.snapshots++
	for _, lun := range []string{"thin", "thick"} {
		var is struct {
			Area harness.Area `json:"area"`
		}
		s.server.JSON(&is, "reservation", "show", lun)
		if is.Area.UsedBytes > s.area {
			s.t.Errorf("the area of %s holds %d bytes, its limit is %d", lun, is.Area.UsedBytes, s.area)
		}
	}
}

// recycled is how many snapshots of fio's LUNs are gone: nobody but the server deletes them.
func (s *soak) recycled() int {
	return 2*s.snapshots - len(s.server.Snapshots("thin")) - len(s.server.Snapshots("thick"))
}

func (s *soak) scrub() {
	s.server.Lunar("pool", "scrub")
	s.scrubs++
}

// restart stops the server cleanly or kills it; fio's writes were flushed.
func (s *soak) restart(kill bool) {
	s.branch.detach()
	if kill {
		s.kills++
		s.server.Kill()
	} else {
		s.stops++
		s.server.Stop()
	}
	began := time.Now()
	s.server.Start()
	s.log.start(time.Since(began))
}
