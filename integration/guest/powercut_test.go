package guest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lunar/integration/checker"
	"lunar/integration/client"
	"lunar/integration/harness"
)

const (
	nbdPort   = 10809
	lunBlocks = 2048 // 8 MiB: software emulation reads some 10 MiB a second
)

// TestPowerCut: lunar runs inside the guest on a disk with ext4 or xfs and is written to by four connections from here;
// qemu is killed at a random moment, the next boot starts lunar again, and the model says what must be there.
//
// What this simulates: the guest's memory and page cache are gone, so that whatever lunar did not fsync is lost unless
// the kernel happened to write it back, in any order. What it does not: a disk that loses or reorders writes which it
// has completed; what the guest's kernel has written stays, flushed or not.
func TestPowerCut(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs.name, func(t *testing.T) {
			t.Parallel()
			rounds := 3
			if harness.Long() {
				rounds = 30
			}
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			c := &cutter{t: t, fs: fs, disk: makeDisk(t, fs), model: checker.New(lunBlocks), random: rand.New(rand.NewPCG(seed, 1)), sums: map[string]checker.View{}}
			c.boot()
			for range rounds {
				c.writeAndCut()
				c.round++
				c.boot()
				c.verify()
			}
			requests, _ := c.model.Counts()
			if requests < uint64(rounds*20) {
				t.Errorf("only %d requests in %d rounds: the load was not a load", requests, rounds)
			}
			t.Logf("%d rounds, %d requests, %d snapshots; the last boot took %v", rounds, requests, len(c.sums), c.guest.BootTime)
		})
	}
}

// cutter is one disk that goes through power cuts.
type cutter struct {
	t      *testing.T
	fs     fileSystem
	disk   string
	model  *checker.Model
	random *rand.Rand
	round  int
	guest  *Guest

	pending []snapshot              // reported in the last round, not checked yet
	sums    map[string]checker.View // checked once, must stay as they were
}

type snapshot struct {
	name            string
	began, reported checker.Tick
}

func makeDisk(t *testing.T, fs fileSystem) string {
	t.Helper()
	path := filepath.Join(harness.TempDir(t), "disk.img")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 4<<30); err != nil {
		t.Fatal(err)
	}
	tool := map[string][]string{"ext4": {"mkfs.ext4", "-q", "-F", path}, "xfs": {"mkfs.xfs", "-q", "-f", path}}[fs.name]
	harness.Tool(t, tool[0], tool[1:]...)
	return path
}

// boot starts a guest and lunar in it.
func (c *cutter) boot() {
	c.t.Helper()
	c.guest = Boot(c.t, Options{Files: map[string]string{"bin/lunar": harness.Binary(c.t)}, Disks: []string{c.disk}, Forward: []int{nbdPort}})
	c.guest.Run(c.fs.load + fmt.Sprintf(`; mount -t %s /dev/vda /pool
lunar serve --data /pool/data --capacity 2G --listen tcp://10.0.2.15:%d >/run/ready 2>/dev/console &
i=0; until grep -q ^ready /run/ready; do i=$((i+1)); [ $i -lt 300 ]; sleep 0.1; done`, c.fs.name, nbdPort))
	if c.round == 0 {
		c.lunar(fmt.Sprintf("lun create d %d", lunBlocks*checker.BlockSize))
	}
}

func (c *cutter) lunar(args string) string {
	c.t.Helper()
	return c.guest.Run("LUNAR_DATA=/pool/data lunar " + args)
}

func (c *cutter) dial(export string) *client.Conn {
	c.t.Helper()
	conn, err := client.Dial("tcp", c.guest.Address(nbdPort), export)
	if err != nil {
		c.t.Fatalf("round %d: attach %s: %v", c.round, export, err)
	}
	return conn
}

// verify checks the LUN and its snapshots after a cut, and the pool itself.
func (c *cutter) verify() {
	c.t.Helper()
	for _, s := range c.pending {
		conn := c.dial("d@" + s.name)
		view, err := c.model.Frozen(conn, s.began, s.reported)
		if err != nil {
			c.t.Fatalf("round %d: snapshot %s, reported before the cut: %v", c.round, s.name, err)
		}
		c.sums[s.name] = view
		conn.Close()
	}
	c.pending = nil
	conn := c.dial("d")
	defer conn.Close()
	view, err := c.model.Crashed(conn)
	if err != nil {
		c.t.Fatalf("round %d: after the power cut: %v", c.round, err)
	}
	_, unsettled := c.model.Counts()
	c.model.Settle(view)
	c.t.Logf("round %d: %d versions since the last cut; %d blocks hold more than they must, %d lost what they may", c.round, unsettled, view.Newer, view.Lost)
	checked := 0
	for name, was := range c.sums { // in no order: two of them each time
		if checked++; checked > 2 {
			break
		}
		conn := c.dial("d@" + name)
		if is, err := checker.Sum(conn, lunBlocks); err != nil || is != was.Sum {
			c.t.Fatalf("round %d: snapshot %s has changed (%v)", c.round, name, err)
		}
		conn.Close()
	}
	c.lunar("pool check")
}

// writeAndCut writes, takes a snapshot meanwhile, and cuts the power at a random moment.
func (c *cutter) writeAndCut() {
	c.t.Helper()
	load := &checker.Load{Model: c.model, Depth: 2, Seed: c.random.Uint64(), FlushEvery: 40}
	for range 4 {
		load.Devices = append(load.Devices, c.dial("d"))
	}
	load.Start()
	time.Sleep(time.Duration(c.random.IntN(700)) * time.Millisecond)
	s := snapshot{name: fmt.Sprintf("r%d", c.round), began: c.model.Now()}
	c.lunar("snapshot create d@" + s.name)
	s.reported = c.model.Now()
	c.pending = append(c.pending, s)
	time.Sleep(time.Duration(c.random.IntN(1500)) * time.Millisecond)
	c.guest.PowerCut()
	if err := load.Wait(); err == nil {
		c.t.Fatalf("round %d: the load ended by itself", c.round)
	}
}
