package integration

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"lunar/integration/checker"
	"lunar/integration/client"
	"lunar/integration/harness"
)

// TestSnapshotTiming: creating a snapshot of a quiet LUN does not depend on what is mapped. The server's own time is in
// its event (it includes the fdatasync that makes the snapshot durable); the command's is measured beside it.
func TestSnapshotTiming(t *testing.T) {
	small, large := int64(64*mib), int64(gib)
	if harness.Long() {
		small, large = 256*mib, 8*gib
	}
	s := harness.Start(t, "--capacity", "24G")
	medians := map[int64]time.Duration{}
	for _, size := range []int64{small, large} {
		name := fmt.Sprintf("l%d", size/mib)
		s.Lunar("lun", "create", name, fmt.Sprint(size))
		mapAll(t, s.Dial(name), size)
		waitQuiet(t, s)
		var command, show []time.Duration
		for range 20 {
			command = append(command, s.Run("snapshot", "create", name).Took)
			show = append(show, s.Run("lun", "show", name).Took)
		}
		if n := len(s.Snapshots(name)); n != 20 {
			t.Fatalf("%d snapshots of 20", n)
		}
		server := createTimes(t, s, name)
		if len(server) != 20 {
			t.Fatalf("the events tell the time of %d snapshots of 20", len(server))
		}
		medians[size] = median(server)
		t.Logf("%d MiB mapped, median of 20: %v in the server; the command takes %v, `lun show` %v", size/mib, median(server), median(command), median(show))
		if median(server) > harness.Within(20*time.Millisecond) {
			t.Errorf("%d MiB mapped: %v, more than 20 ms", size/mib, median(server))
		}
	}
	if medians[large] > 4*medians[small]+harness.Within(5*time.Millisecond) {
		t.Errorf("the time grows with what is mapped: %v at %d MiB, %v at %d MiB", medians[small], small/mib, medians[large], large/mib)
	}
}

// createTimes reads from the events how long the server took for each snapshot of a LUN.
func createTimes(t *testing.T, s *harness.Server, lun string) []time.Duration {
	t.Helper()
	var times []time.Duration
	taken := regexp.MustCompile(`taken in ([0-9.]+[a-zµ]+)`)
	for _, line := range strings.Split(strings.TrimSpace(s.Lunar("events", "-o", "json")), "\n") {
		var event struct {
			Type, Message string
			LUN           *string
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatalf("events: %v in %q", err, line)
		}
		if m := taken.FindStringSubmatch(event.Message); m != nil && event.LUN != nil && *event.LUN == lun {
			took, err := time.ParseDuration(m[1])
			if err != nil {
				t.Fatal(err)
			}
			times = append(times, took)
		}
	}
	return times
}

// waitQuiet waits until the server does no more work of its own.
func waitQuiet(t *testing.T, s *harness.Server) {
	t.Helper()
	for range 100 {
		before := harness.CPUTime(t, s.Pid)
		time.Sleep(200 * time.Millisecond)
		if harness.CPUTime(t, s.Pid)-before <= 10*time.Millisecond {
			return
		}
	}
	t.Error("the server is still busy after 20 s without a client")
}

func mapAll(t *testing.T, c *client.Conn, size int64) {
	t.Helper()
	p := make([]byte, 4*mib)
	for off := int64(0); off < size; off += int64(len(p)) {
		fill(p, uint64(off)+3)
		if err := c.Write(p, off, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

func median(list []time.Duration) time.Duration {
	sorted := slices.Clone(list)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}

// TestSnapshots256: 256 snapshots of one LUN, each followed by 64 random writes, are there and read back right, also
// after a restart.
func TestSnapshots256(t *testing.T) {
	const blocks, count, writes = 4096, 256, 64
	s := harness.Start(t, "--capacity", "8G")
	s.Lunar("lun", "create", "d", fmt.Sprint(blocks*checker.BlockSize), "--limit", "none")
	c := s.Dial("d")
	random := rand.New(rand.NewPCG(1, 1))
	now := make([]uint64, blocks) // the generation that each block holds; 0 is zeroes
	p := make([]byte, checker.BlockSize)
	write := func(gen uint64) {
		for range writes {
			block := random.IntN(blocks)
			checker.Stamp(p, uint64(block), gen, 0)
			if err := c.Write(p, int64(block)*checker.BlockSize, false); err != nil {
				t.Fatal(err)
			}
			now[block] = gen
		}
	}
	write(1000)
	var states [][]uint64
	for i := range count {
		s.Lunar("snapshot", "create", fmt.Sprintf("d@s%03d", i))
		states = append(states, slices.Clone(now))
		write(uint64(i) + 1)
	}
	if n := len(s.Snapshots("d")); n != count {
		t.Fatalf("%d snapshots of %d", n, count)
	}
	verify := func(export string, state []uint64) {
		t.Helper()
		conn := s.Dial(export)
		defer conn.Disconnect()
		all := make([]byte, blocks*checker.BlockSize)
		if err := conn.Read(all, 0); err != nil {
			t.Fatal(err)
		}
		for block, gen := range state {
			clear(p)
			if gen != 0 {
				checker.Stamp(p, uint64(block), gen, 0)
			}
			if string(p) != string(all[block*checker.BlockSize:(block+1)*checker.BlockSize]) {
				t.Fatalf("%s: block %d does not hold generation %d", export, block, gen)
			}
		}
	}
	for _, i := range []int{0, 1, 100, 200, 255} {
		verify(fmt.Sprintf("d@s%03d", i), states[i])
	}
	s.Restart()
	for i := range count {
		if i%5 == 0 || i == count-1 {
			verify(fmt.Sprintf("d@s%03d", i), states[i])
		}
	}
	verify("d", now)

	// Dropping from the middle and the oldest changes none of the others.
	drop := []string{"snapshot", "delete"}
	for i := range count {
		if i%3 == 0 {
			drop = append(drop, fmt.Sprintf("d@s%03d", i))
		}
	}
	s.Lunar(drop...)
	s.Lunar("pool", "clean")
	for i := range count {
		if i%3 != 0 && i%4 == 1 {
			verify(fmt.Sprintf("d@s%03d", i), states[i])
		}
	}
	verify("d", now)
	conn := s.Dial("d@s001")
	if err := conn.Write(p, 0, false); err == nil {
		t.Error("a snapshot was written to")
	}
	if conn.Flags&client.FlagReadOnly == 0 {
		t.Error("a snapshot is not exported read-only")
	}
}

// TestSnapshotGroup: one command takes several LUNs at one instant. A writer writes to the first LUN and only then to
// the second: no group may hold the second write without the first.
func TestSnapshotGroup(t *testing.T) {
	s := harness.Start(t, "--capacity", "4G")
	s.Lunar("lun", "create", "first", "1M")
	s.Lunar("lun", "create", "second", "1M")
	first, second := s.Dial("first"), s.Dial("second")
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		p := make([]byte, checker.BlockSize)
		for gen := uint64(1); ; gen++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			for _, c := range []*client.Conn{first, second} {
				checker.Stamp(p, 0, gen, 0)
				if err := c.Write(p, 0, false); err != nil {
					done <- err
					return
				}
			}
		}
	}()
	generation := func(export string) uint64 {
		t.Helper()
		conn := s.Dial(export)
		defer conn.Disconnect()
		gen, err := checker.Generation(conn, 0)
		if err != nil {
			t.Fatalf("%s: %v", export, err)
		}
		return gen
	}
	for i := range 40 {
		s.Lunar("snapshot", "create", fmt.Sprintf("first@g%d", i), fmt.Sprintf("second@g%d", i))
		a, b := generation(fmt.Sprintf("first@g%d", i)), generation(fmt.Sprintf("second@g%d", i))
		if b > a || a > b+1 {
			t.Errorf("group %d: first holds write %d, second %d: not one instant", i, a, b)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
