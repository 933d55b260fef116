package lun

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// shards is how many independent read sides the gate and the grace have. A
// volume handle uses one of them, so that connections share no cache line.
const shards = 32

// gate is the pool's write gate. A write holds the read side of one shard while
// it takes its sequence number and maps its blocks; a structural change holds
// all of them, so that log order and map order agree and a snapshot has all of
// a write or nothing. Nothing waits or does I/O inside.
type gate struct {
	shard [shards]struct {
		sync.RWMutex
		_ [40]byte
	}
}

func (g *gate) enter(shard uint32) { g.shard[shard%shards].RLock() }
func (g *gate) leave(shard uint32) { g.shard[shard%shards].RUnlock() }

func (g *gate) lock() {
	for i := range g.shard {
		g.shard[i].Lock()
	}
}

func (g *gate) unlock() {
	for i := range g.shard {
		g.shard[i].Unlock()
	}
}

// grace lets the owner of a segment wait until no reader holds an address that
// it took before: readers enter and leave without a lock, wait returns when
// every reader that had entered before the call has left.
type grace struct {
	mu    sync.Mutex // one waiter at a time
	phase atomic.Uint32
	count [2][shards]struct {
		n atomic.Int64
		_ [56]byte
	}
}

// enter returns the phase to hand to leave.
func (g *grace) enter(shard uint32) uint32 {
	for {
		ph := g.phase.Load() & 1
		g.count[ph][shard%shards].n.Add(1)
		if g.phase.Load()&1 == ph {
			return ph
		}
		g.count[ph][shard%shards].n.Add(-1)
	}
}

func (g *grace) leave(shard, phase uint32) { g.count[phase][shard%shards].n.Add(-1) }

func (g *grace) wait() {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.phase.Add(1) - 1
	for spins := 0; ; spins++ {
		var n int64
		for s := range shards {
			n += g.count[old&1][s].n.Load()
		}
		if n == 0 {
			return
		}
		if spins < 100 {
			runtime.Gosched()
		} else {
			time.Sleep(100 * time.Microsecond)
		}
	}
}
