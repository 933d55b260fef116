package soak

import (
	"crypto/sha256"
	"fmt"
	"time"

	"lunar/integration/checker"
)

const branchBlocks = 4096 // 16 MiB

// branches is a LUN that goes through all that makes versions: a step a second, each checked by the hash of all it holds.
type branches struct {
	s     *soak
	steps int
	gen   uint64
	now   [sha256.Size]byte            // the LUN, as of the last look
	held  map[string][sha256.Size]byte // snapshots
	names []string                     // of them, oldest first
}

func newBranches(s *soak) *branches {
	s.server.Lunar("lun", "create", "tree", fmt.Sprint(branchBlocks*checker.BlockSize))
	b := &branches{s: s, held: map[string][sha256.Size]byte{}}
	b.now = b.sum("tree")
	return b
}

func (b *branches) sum(export string) [sha256.Size]byte {
	b.s.t.Helper()
	conn := b.s.server.Dial(export)
	defer conn.Disconnect()
	sum, err := checker.Sum(conn, branchBlocks)
	if err != nil {
		b.s.t.Fatalf("reading %s: %v\n%s", export, err, b.s.server.Log())
	}
	return sum
}

func (b *branches) step() {
	b.s.t.Helper()
	b.steps++
	switch b.steps % 4 {
	case 0:
		b.write("tree", 150)
	case 1:
		b.now = b.sum("tree")
		name := fmt.Sprintf("b%d", b.steps)
		b.s.server.Lunar("snapshot", "create", "tree@"+name)
		b.held[name], b.names = b.now, append(b.names, name)
	case 2:
		b.clone()
	case 3:
		b.rollback()
	}
	for len(b.names) > 6 {
		b.drop(b.s.random.IntN(len(b.names)))
	}
}

// write overwrites and trims at random, and flushes.
func (b *branches) write(lun string, n int) {
	b.s.t.Helper()
	conn := b.s.server.Dial(lun)
	defer conn.Disconnect()
	p := make([]byte, checker.BlockSize)
	for range n {
		block := b.s.random.IntN(branchBlocks - 8)
		b.gen++
		checker.Stamp(p, uint64(block), b.gen, 0)
		err := conn.Write(p, int64(block)*checker.BlockSize, false)
		if err == nil && b.s.random.IntN(8) == 0 {
			err = conn.Trim(int64(block)*checker.BlockSize, 8*checker.BlockSize, false)
		}
		if err != nil {
			b.s.t.Fatalf("write to %s: %v\n%s", lun, err, b.s.server.Log())
		}
	}
	if err := conn.Flush(); err != nil {
		b.s.t.Fatal(err)
	}
}

func (b *branches) any() string { return b.names[b.s.random.IntN(len(b.names))] }

// clone writes to a clone of some snapshot, which stays as it was, and deletes the clone.
func (b *branches) clone() {
	b.s.t.Helper()
	name := b.any()
	b.s.server.Lunar("clone", "tree@"+name, "leaf")
	b.s.clones++
	if b.sum("leaf") != b.held[name] {
		b.s.t.Errorf("a clone of tree@%s is not what the snapshot was", name)
	}
	b.write("leaf", 100)
	if b.sum("tree@"+name) != b.held[name] {
		b.s.t.Errorf("tree@%s has changed as its clone was written to", name)
	}
	b.s.server.Lunar("lun", "delete", "leaf", "--force")
}

// rollback goes back to some snapshot.
func (b *branches) rollback() {
	b.s.t.Helper()
	name := b.any()
	b.detach()
	b.s.server.Lunar("rollback", "tree@"+name, "--discard")
	b.s.rollbacks++
	if b.now = b.sum("tree"); b.now != b.held[name] {
		b.s.t.Errorf("tree is not tree@%s after a rollback to it", name)
	}
}

func (b *branches) drop(i int) {
	b.s.t.Helper()
	name := b.names[i]
	b.detach()
	b.s.server.Lunar("snapshot", "delete", "tree@"+name)
	b.names = append(b.names[:i], b.names[i+1:]...)
	delete(b.held, name)
}

// detach waits until the server has noticed that nobody uses the LUN or its snapshots.
func (b *branches) detach() {
	b.s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		clients := b.s.server.LUN("tree").Clients
		for _, snap := range b.s.server.Snapshots("tree") {
			clients += snap.Clients
		}
		if clients == 0 {
			return
		}
		if time.Now().After(deadline) {
			b.s.t.Fatalf("tree still has %d clients 30 s after they disconnected", clients)
		}
	}
}

// check reads every snapshot.
func (b *branches) check() {
	b.s.t.Helper()
	for _, name := range b.names {
		if b.sum("tree@"+name) != b.held[name] {
			b.s.t.Errorf("tree@%s has changed", name)
		}
	}
}
