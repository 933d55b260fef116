package checker

import (
	"math"
	"sync"
)

// A Tick orders what happened at the client: every issue and every acknowledgement takes the next one.
type Tick uint64

const never Tick = math.MaxUint64

// version is one state that a block was given. The first version of a block is what the last check found there.
type version struct {
	gen    uint64 // of the request: all blocks of one request share it
	zero   bool   // trimmed or zeroed
	fua    bool
	issued Tick
	acked  Tick // never, until it is
}

// Model is what a client knows about a LUN. Methods may be called concurrently; two requests to one block must not be
// in flight together, because then nobody knows their order.
type Model struct {
	mu      sync.Mutex
	clock   Tick
	gen     uint64
	durable Tick // everything acknowledged up to here was covered by an acknowledged FLUSH
	blocks  [][]version
}

// New is the model of a LUN that reads as zeroes.
func New(blocks int) *Model {
	m := &Model{blocks: make([][]version, blocks), clock: 1}
	for i := range m.blocks {
		m.blocks[i] = []version{{zero: true}}
	}
	return m
}

// Blocks is the size of the LUN in blocks.
func (m *Model) Blocks() int { return len(m.blocks) }

// Now takes a tick: what was acknowledged before it has a smaller one.
func (m *Model) Now() Tick {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	return m.clock
}

// Request is one write, trim or zero that is in flight.
type Request struct {
	Gen          uint64
	First, Count int
	model        *Model
}

// Begin notes a request before it is sent.
func (m *Model) Begin(first, count int, zero, fua bool) Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	m.gen++
	for b := first; b < first+count; b++ {
		m.blocks[b] = append(m.blocks[b], version{gen: m.gen, zero: zero, fua: fua, issued: m.clock, acked: never})
	}
	return Request{Gen: m.gen, First: first, Count: count, model: m}
}

// Acked notes the server's answer. A request that is never answered may or may not have happened.
func (r Request) Acked() {
	m := r.model
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	for b := r.First; b < r.First+r.Count; b++ {
		versions := m.blocks[b]
		versions[len(versions)-1].acked = m.clock
	}
}

// Flushed notes that a FLUSH which was sent after tick `began` was answered, on whichever connection.
func (m *Model) Flushed(began Tick) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.durable = max(m.durable, began)
}

// Counts says how much the model remembers: requests issued, and versions not yet settled by a check.
func (m *Model) Counts() (requests uint64, versions int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, list := range m.blocks {
		versions += len(list) - 1
	}
	return m.gen, versions
}
