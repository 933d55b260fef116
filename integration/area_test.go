package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lunar/integration/client"
	"lunar/integration/harness"
)

// overwriter writes single blocks at random, several at a time, until it is stopped. It keeps the slowest answer.
type overwriter struct {
	conn    *client.Conn
	blocks  int64
	seed    uint64
	written atomic.Int64
	slowest atomic.Int64 // nanoseconds

	stop    atomic.Bool
	running atomic.Int64
	workers sync.WaitGroup
	mu      sync.Mutex
	errs    []error
}

func (o *overwriter) start(depth int) {
	for i := range depth {
		o.running.Add(1)
		o.workers.Go(func() {
			defer o.running.Add(-1)
			random := rand.New(rand.NewPCG(o.seed, uint64(i)))
			p := make([]byte, 4096)
			for !o.stop.Load() {
				fill(p, random.Uint64())
				began := time.Now()
				err := o.conn.Write(p, random.Int64N(o.blocks)*4096, false)
				o.slowest.Store(max(o.slowest.Load(), int64(time.Since(began))))
				if err != nil {
					o.mu.Lock()
					o.errs = append(o.errs, err)
					o.mu.Unlock()
					return
				}
				o.written.Add(4096)
			}
		})
	}
}

func (o *overwriter) end() error {
	o.stop.Store(true)
	o.workers.Wait()
	return errors.Join(o.errs...)
}

// alive says that no worker was refused yet.
func (o *overwriter) alive() bool { return o.running.Load() > 0 }

// failed waits until every worker was refused, at most so long, and returns why.
func (o *overwriter) failed(patience time.Duration) error {
	timer := time.AfterFunc(patience, func() { o.stop.Store(true) })
	defer timer.Stop()
	o.workers.Wait()
	return errors.Join(o.errs...)
}

// Reservation is `reservation show`.
type reservation struct {
	LUN            string       `json:"lun"`
	SizeBytes      int64        `json:"size_bytes"`
	UsedBytes      int64        `json:"used_bytes"`
	Area           harness.Area `json:"area"`
	OldestSnapshot *string      `json:"oldest_snapshot"`
}

// watchArea samples a LUN's area ten times a second until done is closed, and returns how often and the largest.
func watchArea(t *testing.T, s *harness.Server, lun string, done <-chan struct{}) (samples int, largest int64, over []int64) {
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		select {
		case <-done:
			tick.Stop()
			return samples, largest, over
		case <-tick.C:
		}
		r := s.Run("reservation", "show", lun, "-o", "json")
		var is reservation
		if err := json.Unmarshal([]byte(r.Stdout), &is); r.Status != 0 || err != nil {
			t.Errorf("reservation show %s: status %d, %v\n%s%s", lun, r.Status, err, r.Stdout, r.Stderr)
			return samples, largest, over
		}
		samples++
		largest = max(largest, is.Area.UsedBytes)
		if limit := is.Area.LimitBytes; limit != nil && is.Area.UsedBytes > *limit {
			over = append(over, is.Area.UsedBytes)
		}
	}
}

// TestAreaRecycle: a LUN is overwritten at random without pause while snapshots are taken, with an area far too small for
// them. No write fails, the area is never above its limit, the oldest snapshots go first, and a protected one stays with its
// content.
func TestAreaRecycle(t *testing.T) {
	onSmall(t, func(t *testing.T, fs *harness.SmallFS) {
		// The protected snapshot comes to hold the whole LUN; what is left of the limit is for the others.
		const size, limit = 192 * mib, 288 * mib
		length := time.Minute
		if harness.Long() {
			length = 10 * time.Minute
		}
		s := fs.Serve()
		s.Lunar("lun", "create", "d", fmt.Sprint(size), "--limit", fmt.Sprint(limit), "--on-full", "recycle")
		c := s.Dial("d")
		if written := fillUp(t, c, 0, size, 1); written != size {
			t.Fatalf("%d bytes written", written)
		}
		s.Lunar("snapshot", "create", "d@kept", "--protect")
		load := &overwriter{conn: c, blocks: size / 4096, seed: 3}
		began := time.Now()
		load.start(8)
		done := make(chan struct{})
		var samples int
		var largest int64
		var over []int64
		var watch sync.WaitGroup
		watch.Go(func() { samples, largest, over = watchArea(t, s, "d", done) })
		pressed := func() bool { return load.written.Load() >= 2*limit || !load.alive() }
		taken := snapshotsUnderLoad(t, s, length, pressed)
		took := time.Since(began)
		err := load.end()
		close(done)
		watch.Wait()
		if err != nil {
			t.Errorf("writes failed beside an area that is recycled: %v\n%s", err, s.Log())
		}
		left := len(s.Snapshots("d"))
		t.Logf("%d MiB written in %v, slowest answer %v; %d snapshots taken, %d left; area at most %d of %d MiB in %d samples",
			load.written.Load()/mib, took.Round(time.Second), time.Duration(load.slowest.Load()).Round(time.Millisecond), taken, left, largest/mib, limit/mib, samples)
		if len(over) > 0 {
			t.Errorf("the area was above its limit of %d bytes in %d of %d samples: %v", limit, len(over), samples, over)
		}
		if samples < 20 || largest < limit/2 || load.written.Load() < 2*limit || left > taken {
			t.Errorf("the area was not under pressure, or not watched")
		}
		checkSnapshot(t, s, "d@kept", 0, size, 1)
		checkDisk(t, s, "after recycling")
	})
}

// snapshotsUnderLoad takes snapshots of d for a while and until there was enough of it (three minutes more at most), and checks that those that are gone are always the oldest, but the
// protected one. It returns how many were taken.
func snapshotsUnderLoad(t *testing.T, s *harness.Server, length time.Duration, enough func() bool) (taken int) {
	t.Helper()
	gone := 0
	began := time.Now()
	goesOn := func() bool {
		took := time.Since(began)
		return !t.Failed() && (took < length || !enough() && took < length+3*time.Minute)
	}
	for ; goesOn(); time.Sleep(400 * time.Millisecond) {
		s.Lunar("snapshot", "create", fmt.Sprintf("d@s%06d", taken))
		taken++
		var names []string
		for _, snap := range s.Snapshots("d") {
			names = append(names, snap.Name)
		}
		if len(names) < 1 || names[0] != "kept" {
			t.Fatalf("the protected snapshot is gone: %v", names)
		}
		// What is left is the newest ones without a gap.
		for i, name := range names[1:] {
			if want := fmt.Sprintf("s%06d", taken-len(names)+1+i); name != want {
				t.Fatalf("%s is there where %s was expected: not the oldest went first, of %v", name, want, names)
			}
		}
		if now := taken - len(names) + 1; now < gone {
			t.Fatalf("snapshots came back: %v", names)
		} else {
			gone = now
		}
	}
	return taken
}

// TestAreaFreeze: at the limit of an area that is frozen, overwriting a block that a snapshot holds is ENOSPC, no new
// snapshot is made, and every snapshot is byte for byte what it was. What needs no room in the area goes on.
func TestAreaFreeze(t *testing.T) {
	onSmall(t, func(t *testing.T, fs *harness.SmallFS) {
		const size, limit = 128 * mib, 48 * mib
		s := fs.Serve()
		s.Lunar("lun", "create", "d", fmt.Sprint(size), "--thick", "--reserve", fmt.Sprint(limit/2), "--limit", fmt.Sprint(limit), "--on-full", "freeze")
		c := s.Dial("d")
		fillUp(t, c, 0, size/2, 1)
		sums := map[string]string{}
		for i := range 3 { // 16 MiB each, so that the third one fills the area
			name := fmt.Sprintf("d@s%d", i)
			s.Lunar("snapshot", "create", name)
			sums[name] = checksum(t, s, name)
			fillUp(t, c, int64(i)*16*mib, 16*mib-int64(i)*4096, uint64(i)+2)
		}
		load := &overwriter{conn: c, blocks: size / 2 / 4096, seed: 5}
		load.start(4)
		err := load.failed(time.Minute)
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("overwriting under an area that is frozen: %v, want ENOSPC\n%s", err, s.Log())
		}
		var is reservation
		s.JSON(&is, "reservation", "show", "d")
		if is.Area.UsedBytes > limit || is.Area.UsedBytes < limit-mib {
			t.Errorf("ENOSPC with %d of %d bytes in the area", is.Area.UsedBytes, limit)
		}
		fillUp(t, c, size/2, size/2, 9)         // promised, and nothing that a snapshot holds
		fillUp(t, c, size/2+size/4, size/4, 10) // its own blocks again
		s.Refused([]string{"area", "limit"}, "snapshot", "create", "d@more")
		for name, sum := range sums {
			if now := checksum(t, s, name); now != sum {
				t.Errorf("%s has changed", name)
			}
		}
		if n := len(s.Snapshots("d")); n != 3 {
			t.Errorf("%d snapshots, want 3", n)
		}
		s.Lunar("reservation", "set", "d", "--limit", fmt.Sprint(limit+8*mib))
		if written := fillUp(t, c, 0, size/2, 11); written < 8*mib/2 {
			t.Errorf("%d bytes could be written after the limit was raised by 8 MiB", written)
		}
		s.Restart()
		for name, sum := range sums {
			if now := checksum(t, s, name); now != sum {
				t.Errorf("%s has changed after a restart", name)
			}
		}
	})
}

// checksum is the hash of all that an export holds.
func checksum(t *testing.T, s *harness.Server, export string) string {
	t.Helper()
	c := s.Dial(export)
	defer c.Disconnect()
	h := sha256.New()
	p := make([]byte, 4*mib)
	for off := int64(0); off < c.Size; off += int64(len(p)) {
		p = p[:min(int64(len(p)), c.Size-off)]
		if err := c.Read(p, off); err != nil {
			t.Fatalf("reading %s at %d: %v", export, off, err)
		}
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))
}
