package figures

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lunar/integration/client"
	"lunar/integration/harness"
)

const (
	mib   = 1 << 20
	block = 4096
)

// load writes single blocks through one connection, several at a time, and keeps each answer's time in windows.
type load struct {
	conn   *client.Conn
	blocks int64
	order  []int32 // if set, every block once in this order; else at random for ever
	next   atomic.Int64

	stop    atomic.Bool
	workers sync.WaitGroup
	mu      sync.Mutex
	window  []time.Duration
	err     error
}

// start begins the load with so many writes in flight.
func (l *load) start(depth int) {
	for i := range depth {
		l.workers.Go(func() {
			random := rand.New(rand.NewPCG(7, uint64(i)))
			p := make([]byte, block)
			for !l.stop.Load() {
				at := random.Int64N(l.blocks)
				if n := l.next.Add(1) - 1; l.order != nil {
					if n >= int64(len(l.order)) {
						return
					}
					at = int64(l.order[n])
				}
				for k := 0; k < len(p); k += 8 {
					p[k], p[k+1], p[k+7] = byte(random.Uint64()), byte(k), byte(i)
				}
				began := time.Now()
				err := l.conn.Write(p, at*block, false)
				took := time.Since(began)
				l.mu.Lock()
				l.window = append(l.window, took)
				l.err = errors.Join(l.err, err)
				failed := l.err != nil
				l.mu.Unlock()
				if failed {
					return
				}
			}
		})
	}
}

// take returns the answers since the last call.
func (l *load) take() (answers []time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	answers, l.window = l.window, nil
	return answers, l.err
}

// end stops the load and returns its error.
func (l *load) end() error {
	l.stop.Store(true)
	l.workers.Wait()
	return l.err
}

func percentile(list []time.Duration, p float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[min(int(float64(len(list))*p), len(list)-1)]
}

// fillLUN writes a LUN once from end to end.
func fillLUN(t *testing.T, c *client.Conn, size int64) {
	t.Helper()
	p := make([]byte, mib)
	random := rand.NewChaCha8([32]byte{1})
	for off := int64(0); off < size; off += mib {
		random.Read(p)
		if err := c.Write(p[:min(mib, size-off)], off, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// deviceBytes is what the process has sent towards the disk: data, log and index.
func deviceBytes(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		if value, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no write_bytes in /proc/%d/io", pid)
	return 0
}

func newSmall(t *testing.T) (*harness.SmallFS, *harness.Server) {
	t.Helper()
	fs := harness.Small(t, "ext4", 2<<30)
	return fs, fs.Serve()
}
