package integration

import (
	"fmt"
	"testing"
	"time"

	"lunar/integration/harness"
)

// TestThickForever: a thick LUN of nine tenths of what the pool offered is overwritten at random without end. Its
// blocks die all over the segments, and there is hardly any slack: the cleaner must keep up, and no write may fail.
func TestThickForever(t *testing.T) {
	t.Parallel()
	disk, length, times := int64(768*mib), 15*time.Second, int64(1)
	if harness.Long() {
		disk, length, times = smallSize, 10*time.Minute, 4
	}
	fs := harness.Small(t, "ext4", disk)
	s := fs.Serve()
	offered := s.Pool().FreeBytes
	size := offered / 10 * 9 &^ (mib - 1)
	s.Lunar("lun", "create", "d", fmt.Sprint(size), "--thick", "--reserve", "0")
	c := s.Dial("d")
	if written := fillUp(t, c, 0, size, 1); written != size {
		t.Fatalf("a thick LUN of %d bytes took %d: %s", size, written, s.Log())
	}
	load := &overwriter{conn: c, blocks: size / 4096, seed: 7}
	load.start(8)
	began := time.Now()
	for load.alive() && (time.Since(began) < length || load.written.Load() < times*size && time.Since(began) < 8*length) {
		time.Sleep(100 * time.Millisecond)
	}
	if err := load.end(); err != nil {
		t.Fatalf("after %d MiB of random overwrite: %v\n%s", load.written.Load()/mib, err, s.Log())
	}
	took := time.Since(began)
	used, free := fs.Usage()
	t.Logf("LUN of %d MiB of %d MiB that were free: %d MiB overwritten at random in %v (%.1f times, %.0f MiB/s), slowest answer %v; file system: %d MiB used, %d free",
		size/mib, offered/mib, load.written.Load()/mib, took.Round(time.Second), float64(load.written.Load())/float64(size),
		float64(load.written.Load())/mib/took.Seconds(), time.Duration(load.slowest.Load()).Round(time.Millisecond), used/mib, free/mib)
	if load.written.Load() < times*size {
		t.Errorf("no more than that in %v", took)
	}
	if damage := events(t, s, "cannot be cleaned"); len(damage) > 0 {
		t.Errorf("the cleaner found damage: %q", damage)
	}
	checkDisk(t, s, "a thick LUN overwritten at random")
}
