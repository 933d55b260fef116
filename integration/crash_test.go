package integration

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"lunar/integration/checker"
	"lunar/integration/harness"
)

const crashBlocks = 8192 // 32 MiB

// TestCrash: kill -9 at a random moment while four connections write, 10 rounds on one LUN (100 in the long form). Everything flushed is
// there, the rest is a prefix of what was acknowledged, no block is torn, what was lost never comes back, and every
// snapshot that was reported holds what it must and never changes.
func TestCrash(t *testing.T) {
	rounds := 10
	if harness.Long() {
		rounds = 100
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := &crasher{t: t, random: rand.New(rand.NewPCG(seed, 2)), model: checker.New(crashBlocks), sums: map[string]checker.View{}}
	c.server = harness.Start(t, "--capacity", "16G")
	c.server.Lunar("lun", "create", "d", fmt.Sprint(crashBlocks*checker.BlockSize))
	for c.round = range rounds {
		c.writeAndKill()
		began := time.Now()
		c.server.Start()
		c.slowest = max(c.slowest, time.Since(began))
		c.verify()
	}
	requests, _ := c.model.Counts()
	if requests < uint64(rounds*50) {
		t.Errorf("only %d requests in %d rounds: the load was not a load", requests, rounds)
	}
	t.Logf("%d rounds: %d requests, %d flushes, %d snapshots kept; %d blocks held more than they had to; slowest start after kill -9: %v",
		rounds, requests, c.flushes, len(c.sums), c.newer, c.slowest)
	if c.slowest > harness.Within(2*time.Second) {
		t.Errorf("a start took %v, more than 2 s", c.slowest)
	}
}

// crasher is one pool that is killed again and again.
type crasher struct {
	t       *testing.T
	random  *rand.Rand
	server  *harness.Server
	model   *checker.Model
	round   int
	flushes int64
	newer   int
	slowest time.Duration

	pending []reported
	sums    map[string]checker.View
}

// reported is a snapshot that `lunar snapshot create` said was there.
type reported struct {
	name         string
	began, ended checker.Tick
}

func (c *crasher) writeAndKill() {
	c.t.Helper()
	load := &checker.Load{Model: c.model, Depth: 1 + c.random.IntN(4), Seed: c.random.Uint64(), FlushEvery: 4 << c.random.IntN(6)}
	for range 4 {
		load.Devices = append(load.Devices, c.server.Dial("d"))
	}
	load.Start()
	pause := func(most int) { time.Sleep(time.Duration(c.random.IntN(most)) * time.Millisecond) }
	pause(200)
	if c.random.IntN(3) > 0 {
		s := reported{name: fmt.Sprintf("r%d", c.round), began: c.model.Now()}
		c.server.Lunar("snapshot", "create", "d@"+s.name)
		s.ended = c.model.Now()
		c.pending = append(c.pending, s)
	}
	if c.random.IntN(4) == 0 && len(c.sums) > 3 {
		for name := range c.sums {
			c.server.Lunar("snapshot", "delete", "d@"+name)
			delete(c.sums, name)
			break
		}
	}
	pause(300)
	c.server.Kill()
	if err := load.Wait(); err == nil {
		c.t.Fatalf("round %d: the load ended by itself", c.round)
	}
	c.flushes += load.Flushes.Load()
}

func (c *crasher) verify() {
	c.t.Helper()
	for _, s := range c.pending {
		conn := c.server.Dial("d@" + s.name)
		view, err := c.model.Frozen(conn, s.began, s.ended)
		if err != nil {
			c.t.Fatalf("round %d: snapshot %s, reported before the kill: %v", c.round, s.name, err)
		}
		c.sums[s.name] = view
		conn.Disconnect()
	}
	c.pending = nil
	conn := c.server.Dial("d")
	defer conn.Disconnect()
	view, err := c.model.Crashed(conn)
	if err != nil {
		c.t.Fatalf("round %d: after kill -9: %v", c.round, err)
	}
	c.newer += view.Newer
	c.model.Settle(view)
	checked := 0
	for name, was := range c.sums { // in no order: two of them each time
		if checked++; checked > 2 && c.round%10 != 9 {
			break
		}
		conn := c.server.Dial("d@" + name)
		if is, err := checker.Sum(conn, crashBlocks); err != nil || is != was.Sum {
			c.t.Fatalf("round %d: snapshot %s has changed (%v)", c.round, name, err)
		}
		conn.Disconnect()
	}
}

// TestKillLosesNothingAnswered: with write-behind off a write that was answered survives kill -9 without a FLUSH, for
// a guest that reconnects and flushes then believes that all it wrote before is durable.
func TestKillLosesNothingAnswered(t *testing.T) {
	const blocks = 8192
	s := harness.Start(t, "--capacity", "8G", "--write-behind=false")
	s.Lunar("lun", "create", "d", fmt.Sprint(blocks*checker.BlockSize))
	model := checker.New(blocks)
	for round := range 6 {
		load := &checker.Load{Model: model, Depth: 1 + 7*(round%2), Seed: uint64(round), FlushEvery: 1 << 30}
		for range 1 + round%3 {
			load.Devices = append(load.Devices, s.Dial("d"))
		}
		load.Start()
		time.Sleep(100 * time.Millisecond)
		s.Kill()
		if err := load.Wait(); err == nil {
			t.Fatal("the load ended by itself")
		}
		s.Start()
		verify(t, s, model, fmt.Sprintf("round %d: after kill -9", round), false)
	}
	requests, _ := model.Counts()
	if requests < 100 {
		t.Errorf("only %d requests in 6 rounds", requests)
	}
	t.Logf("%d requests in 6 rounds", requests)
}

// TestCrashRollback: a rollback that was reported survives kill -9, byte for byte, and so does the state kept before it.
func TestCrashRollback(t *testing.T) {
	s := harness.Start(t, "--capacity", "8G")
	const blocks = 2048
	s.Lunar("lun", "create", "d", fmt.Sprint(blocks*checker.BlockSize))
	sum := func(export string) [32]byte {
		t.Helper()
		conn := s.Dial(export)
		defer conn.Disconnect()
		is, err := checker.Sum(conn, blocks)
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	fill := func(seed uint64, flush bool) {
		t.Helper()
		conn := s.Dial("d")
		defer conn.Disconnect()
		random := rand.New(rand.NewPCG(seed, 3))
		p := make([]byte, checker.BlockSize)
		for range 300 {
			block := random.IntN(blocks)
			checker.Stamp(p, uint64(block), seed, 0)
			if err := conn.Write(p, int64(block)*checker.BlockSize, false); err != nil {
				t.Fatal(err)
			}
		}
		if flush {
			if err := conn.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill(1, true)
	s.Lunar("snapshot", "create", "d@good")
	good := sum("d")
	for round := uint64(2); round < 6; round++ {
		fill(round, round%2 == 0)
		bad := sum("d")
		var kept struct {
			Kept *string `json:"kept"`
		}
		waitNoClients(t, s, "d")
		s.JSON(&kept, "rollback", "d@good")
		if kept.Kept == nil {
			t.Fatalf("round %d: rollback names no kept snapshot", round)
		}
		s.Kill()
		s.Start()
		if sum("d") != good {
			t.Fatalf("round %d: the LUN is not what its snapshot holds, after rollback and kill -9", round)
		}
		if sum("d@good") != good {
			t.Fatalf("round %d: the snapshot has changed", round)
		}
		if sum(export("d", *kept.Kept)) != bad {
			t.Fatalf("round %d: %s does not hold the state before the rollback", round, *kept.Kept)
		}
	}
}

// export is LUN@NAME, whether the name came with its LUN or without.
func export(lun, snapshot string) string {
	if len(snapshot) > len(lun) && snapshot[:len(lun)+1] == lun+"@" {
		return snapshot
	}
	return lun + "@" + snapshot
}

// waitNoClients waits until the server has noticed that the last client is gone.
func waitNoClients(t *testing.T, s *harness.Server, lun string) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		n := s.LUN(lun).Clients
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s still has %d clients 5 s after they disconnected", lun, n)
		}
	}
}
