package checker

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// Device is a connection that can be written to; *client.Conn is one.
type Device interface {
	Reader
	Write(p []byte, off int64, fua bool) error
	Flush() error
	Trim(off int64, n int, fua bool) error
	Zero(off int64, n int, noHole, fua bool) error
}

// Load writes to a LUN through several connections, each with several requests in flight, and tells the model.
type Load struct {
	Model   *Model
	Devices []Device
	Depth   int // requests in flight on each connection
	Seed    uint64
	// FlushEvery is how many requests of one worker lie between its FLUSHes, on average.
	FlushEvery int

	Requests atomic.Int64
	Flushes  atomic.Int64

	stop    atomic.Bool
	workers sync.WaitGroup
	mu      sync.Mutex
	errs    []error
}

const (
	chunkBlocks = 64 // workers own chunks, so that no two requests to one block are in flight together
	writeBlocks = 24 // blocks of the largest ordinary write
)

// Start begins the load. It ends with Stop or when the connections die.
func (l *Load) Start() {
	if l.FlushEvery == 0 {
		l.FlushEvery = 16
	}
	workers := len(l.Devices) * l.Depth
	for i := range workers {
		l.workers.Add(1)
		go l.run(i, workers)
	}
}

// Stop ends the load after the requests in flight and returns what went wrong on the way.
func (l *Load) Stop() error {
	l.stop.Store(true)
	return l.Wait()
}

// Wait waits until every worker has ended.
func (l *Load) Wait() error {
	l.workers.Wait()
	return errors.Join(l.errs...)
}

func (l *Load) run(worker, workers int) {
	defer l.workers.Done()
	conn := worker % len(l.Devices)
	device := l.Devices[conn]
	random := rand.New(rand.NewPCG(l.Seed, uint64(worker)))
	buffer := make([]byte, chunkBlocks*BlockSize)
	chunks := l.Model.Blocks() / chunkBlocks
	if chunks < workers {
		l.fail(fmt.Errorf("%d chunks of %d blocks are too few for %d workers", chunks, chunkBlocks, workers))
		return
	}
	for !l.stop.Load() {
		if random.IntN(l.FlushEvery) == 0 {
			began := l.Model.Now()
			if err := device.Flush(); err != nil {
				l.fail(err)
				return
			}
			l.Model.Flushed(began)
			l.Flushes.Add(1)
			continue
		}
		chunk := worker + workers*random.IntN((chunks-worker-1)/workers+1)
		if err := l.request(device, uint32(conn), random, chunk, buffer); err != nil {
			l.fail(err)
			return
		}
		l.Requests.Add(1)
	}
}

// request sends one write, trim or zero within a chunk.
func (l *Load) request(device Device, conn uint32, random *rand.Rand, chunk int, buffer []byte) error {
	count := 1
	switch random.IntN(16) {
	case 0:
		count = chunkBlocks
	case 1, 2, 3, 4, 5:
		count = 1 + random.IntN(writeBlocks)
	}
	first := chunk*chunkBlocks + random.IntN(chunkBlocks-count+1)
	off, n := int64(first)*BlockSize, count*BlockSize
	fua := random.IntN(32) == 0
	kind := random.IntN(16)
	request := l.Model.Begin(first, count, kind < 2, fua)
	var err error
	switch kind {
	case 0:
		err = device.Trim(off, n, fua)
	case 1:
		err = device.Zero(off, n, random.IntN(2) == 0, fua)
	default:
		for i := range count {
			Stamp(buffer[i*BlockSize:(i+1)*BlockSize], uint64(first+i), request.Gen, conn)
		}
		err = device.Write(buffer[:n], off, fua)
	}
	if err == nil {
		request.Acked()
	}
	return err
}

func (l *Load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errs = append(l.errs, err)
}
