package integration

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lunar/integration/checker"
	"lunar/integration/harness"
)

// TestCheckpointFull: another program fills the file system to the last block while checkpoints run, again and again, under
// load. The pool goes on when the space is back, and nothing that was acknowledged is lost; nor when the server is killed
// in that state, and started in it.
func TestCheckpointFull(t *testing.T) {
	onSmall(t, func(t *testing.T, fs *harness.SmallFS) {
		rounds := 4
		if harness.Long() {
			rounds = 40
		}
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		f := &filler{t: t, fs: fs, random: rand.New(rand.NewPCG(seed, 1)), model: checker.New(crashBlocks)}
		f.server = fs.Serve()
		f.server.Lunar("lun", "create", "d", fmt.Sprint(crashBlocks*checker.BlockSize))
		for round := range rounds {
			f.round(round%2 == 1)
		}
		requests, _ := f.model.Counts()
		t.Logf("%d requests; %d checkpoints failed for want of space, %d were done; %d starts on a full file system, %d refused",
			requests, f.failed, f.done, f.starts, f.refused)
		if f.failed == 0 || requests < uint64(rounds)*50 {
			t.Errorf("the file system was never full when it mattered, or there was no load")
		}
	})
}

type filler struct {
	t      *testing.T
	fs     *harness.SmallFS
	random *rand.Rand
	server *harness.Server
	model  *checker.Model

	failed, done, starts, refused int
}

// round fills the file system some times under load, and ends with the space back or with a kill on the full file system.
func (f *filler) round(kill bool) {
	f.t.Helper()
	load := &checker.Load{Model: f.model, Depth: 4, Seed: f.random.Uint64(), FlushEvery: 32}
	for range 2 {
		load.Devices = append(load.Devices, f.server.Dial("d"))
	}
	load.Start()
	for range 3 {
		f.checkpointWhileFilling()
		f.fs.TakeBack()
	}
	before := load.Requests.Load()
	f.checkpointWhileFilling()
	if kill {
		f.server.Kill()
		load.Wait()
		f.startFull()
	}
	f.fs.TakeBack()
	if !kill {
		if r := f.server.Run("pool", "clean"); r.Status != 0 {
			f.t.Fatalf("pool clean with space again: %s\n%s", r.Stderr, f.server.Log())
		}
		for deadline := time.Now().Add(5 * time.Second); load.Requests.Load() < before+20 && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		if n := load.Requests.Load() - before; n < 20 {
			f.t.Errorf("%d requests were answered since the file system was full for the last time", n)
		}
		if err := load.Stop(); err != nil {
			f.t.Fatalf("requests failed: %v\n%s", err, f.server.Log())
		}
	}
	verify(f.t, f.server, f.model, fmt.Sprintf("after a full file system (killed %v)", kill), kill)
}

// checkpointWhileFilling runs `pool clean`, which checkpoints, while another program takes the last block.
func (f *filler) checkpointWhileFilling() {
	f.t.Helper()
	ended := make(chan harness.Result, 1)
	go func() { ended <- f.server.Run("pool", "clean") }()
	time.Sleep(time.Duration(f.random.IntN(80)) * time.Millisecond)
	f.fs.Eat(smallSize)
	select {
	case r := <-ended:
		f.count(r)
	case <-time.After(300 * time.Millisecond):
		f.fs.TakeBack() // it may wait for that
		f.count(<-ended)
	}
	if !f.server.Running() {
		f.t.Fatalf("the server is gone\n%s", f.server.Log())
	}
	if p := f.server.Pool(); p.State != "ok" {
		f.t.Fatalf("the pool is %s (%s): a full file system passes", p.State, *p.Reason)
	}
}

func (f *filler) count(r harness.Result) {
	f.t.Helper()
	if r.Status == 0 {
		f.done++
		return
	}
	f.failed++
	r.MustRefuse(f.t, "free")
}

// startFull starts the server while there is no space at all. It may refuse, if it says why.
func (f *filler) startFull() {
	f.t.Helper()
	f.starts++
	err := f.server.TryStart()
	if err == nil {
		return
	}
	f.refused++
	if log := strings.ToLower(f.server.Log()); !strings.Contains(log, "no space") && !strings.Contains(log, "free") {
		f.t.Errorf("a start on a full file system: %v\n%s", err, f.server.Log())
	}
	f.fs.TakeBack()
	f.server.Start()
}

// TestReadsBesideWaitingWrites: a WRITE that waits for space holds up nothing that its own connection sends behind it.
func TestReadsBesideWaitingWrites(t *testing.T) {
	t.Parallel()
	fs := harness.Small(t, "ext4", 512*mib)
	s := fs.Serve()
	s.Lunar("lun", "create", "d", "256M", "--thick", "--reserve", "0")
	c := s.Dial("d")
	fillUp(t, c, 0, 16*mib, 1)
	fs.Eat(smallSize)
	const writers = 8
	var written atomic.Int64
	results := make(chan error, writers)
	for w := range int64(writers) {
		go func() {
			p := make([]byte, 64<<10)
			var err error
			for i := int64(0); i < 256 && err == nil; i++ { // 16 MiB each
				fill(p, uint64(w*256+i))
				if err = c.Write(p, 32*mib+(w*256+i)*int64(len(p)), false); err == nil {
					written.Add(1)
				}
			}
			results <- err
		}()
	}
	for before := int64(-1); written.Load() != before; time.Sleep(500 * time.Millisecond) {
		before = written.Load()
	}
	stuck := written.Load()
	if stuck == writers*256 {
		t.Fatal("all was written on a file system without space")
	}
	began := time.Now()
	checkFilled(t, c, 0, 16*mib, 1)
	if took := time.Since(began); took > harness.Within(2*time.Second) {
		t.Errorf("reading 16 MiB beside writes that wait took %v", took)
	}
	fs.TakeBack()
	for range writers {
		if err := <-results; err != nil {
			t.Errorf("a write that waited: %v\n%s", err, s.Log())
		}
	}
	t.Logf("%d of %d writes were done on a full file system, the others once there was space", stuck, writers*256)
}
