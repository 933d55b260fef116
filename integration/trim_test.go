package integration

import (
	"sync"
	"testing"
	"time"

	"lunar/integration/client"
	"lunar/integration/harness"
)

// TestTrimHuge gives back a whole LUN of 16 TiB in requests of 2 GiB. It has 4,096 mapped runs spread over all of it, and a
// snapshot that holds them: the LUN reads as zeroes, the snapshot as before, and the space comes back with the snapshot. In the
// long form the runs are of 1 MiB, 4 GiB in all.
func TestTrimHuge(t *testing.T) {
	const size, runs, request = 16 << 40, 4096, 2 << 30
	run := int64(32 << 10)
	if harness.Long() {
		run = 1 << 20
	}
	s := harness.Start(t, "--capacity", "16G")
	s.Lunar("lun", "create", "d", "16T", "--limit", "none")
	c := s.Dial("d")
	data := make([]byte, run)
	each := func(what string, n int64, fn func(i int64) error) {
		t.Helper()
		began := time.Now()
		var calls sync.WaitGroup
		for first := range int64(16) {
			calls.Go(func() {
				for i := first; i < n; i += 16 {
					if err := fn(i); err != nil {
						t.Errorf("%s %d: %v", what, i, err)
						return
					}
				}
			})
		}
		calls.Wait()
		t.Logf("%d %s took %v", n, what, time.Since(began).Round(time.Millisecond))
	}
	place := func(i int64) int64 { return i*(size/runs) + i*run%(size/runs-run) }
	fill(data, 7)
	each("writes", runs, func(i int64) error { return c.Write(data, place(i), false) })
	s.Lunar("snapshot", "create", "d@s")
	before := s.Pool().UsedBytes

	each("requests of 2 GiB", size/request, func(i int64) error { return c.Trim(i*request, request, false) })
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	trimmed(t, c, s.Dial("d@s"), runs, place, data)
	if l := s.LUN("d"); l.ReferencedBytes != 0 || l.Area.UsedBytes != runs*run {
		t.Errorf("after it the LUN references %d bytes, and its area holds %d, want 0 and %d", l.ReferencedBytes, l.Area.UsedBytes, int64(runs)*run)
	}
	s.Restart()
	c = s.Dial("d")
	snap := s.Dial("d@s")
	trimmed(t, c, snap, runs, place, data)
	if err := snap.Disconnect(); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if s.Run("snapshot", "delete", "d@s", "--wait").Status == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond) // until it knows that its client is gone
	}
	if used := s.Pool().UsedBytes; used > before-runs*run {
		t.Errorf("without the snapshot %d bytes are used, with it %d, and it held %d", used, before, int64(runs)*run)
	}
	s.Lunar("pool", "check")
}

// trimmed compares every 64th run of the LUN with zeroes, and of the snapshot with what was written.
func trimmed(t *testing.T, c, snap *client.Conn, runs int64, place func(int64) int64, data []byte) {
	t.Helper()
	p := make([]byte, len(data))
	for i := int64(0); i < runs; i += 64 {
		if err := c.Read(p, place(i)); err != nil || !zero(p) {
			t.Fatalf("run %d of the LUN is not zero: %v", i, err)
		}
		if err := snap.Read(p, place(i)); err != nil || string(p) != string(data) {
			t.Fatalf("run %d of the snapshot is not what was written: %v", i, err)
		}
	}
}

func zero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
