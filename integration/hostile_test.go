package integration

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lunar/integration/checker"
	"lunar/integration/client"
	"lunar/integration/harness"
)

// patience is the longest that a well-behaved client may wait for anything while others misbehave. Its usual wait is
// below a millisecond; a machine that is busy with other things is not to fail the test.
const patience = 30 * time.Second

// arena is a server with a well-behaved client that writes and verifies all along, while a test does its worst on other
// connections. LUN `good` is the well-behaved client's, which keeps to its first 8 MiB; the hostile ones use the rest of
// it, and all of `evil`, thin, 1 TiB, with a snapshot `evil@s`.
type arena struct {
	t       *testing.T
	s       *harness.Server
	pprof   string
	witness *witness
	before  health
}

func newArena(t *testing.T, args ...string) *arena {
	t.Helper()
	a := &arena{t: t, pprof: fmt.Sprintf("127.0.0.1:%d", harness.FreePort(t))}
	a.s = harness.Start(t, append([]string{"--capacity", "8G", "--listen", "tcp://127.0.0.1:0", "--log-level", "warn", "--index-cache", "16M", "--pprof", a.pprof}, args...)...)
	a.s.Lunar("lun", "create", "good", "64M")
	a.s.Lunar("lun", "create", "evil", "1T")
	c := a.s.Dial("evil")
	p := make([]byte, mib)
	fill(p, 3)
	if err := c.Write(p, 0, false); err != nil {
		t.Fatal(err)
	}
	c.Disconnect()
	a.s.Lunar("snapshot", "create", "evil@s")
	return a
}

// begin notes what the server has and sets the well-behaved client going.
func (a *arena) begin(t *testing.T, warm ...func(*testing.T)) {
	t.Helper()
	// What a server takes once, it has taken: most of the log's buffers, and what warm does.
	for _, w := range warm {
		w(t)
	}
	a.stall(4)()
	a.before = a.settled(func(health) bool { return false }, 500*time.Millisecond)
	a.witness = watch(a.s.Dial("good"))
}

// run runs one kind of misbehaviour: the well-behaved client must get on meanwhile, as quickly as ever.
func (a *arena) run(name string, test func(t *testing.T)) {
	a.t.Run(name, func(t *testing.T) {
		began, cycles := time.Now(), a.witness.cycles.Load()
		a.witness.slowest.Store(0)
		test(t)
		a.witness.proceeds(t, cycles)
		if !a.s.Running() {
			t.Fatalf("the server is dead\n%s", a.s.Log())
		}
		t.Logf("%v; the well-behaved client did %d cycles, the slowest in %v", time.Since(began).Round(time.Millisecond),
			a.witness.cycles.Load()-cycles, time.Duration(a.witness.slowest.Load()).Round(100*time.Microsecond))
	})
}

// finish ends the well-behaved client and holds what the server has against what it had before.
func (a *arena) finish() {
	a.t.Helper()
	a.witness.end(a.t)
	now := a.settled(func(h health) bool { return h.back(a.before) }, 60*time.Second)
	if !now.back(a.before) {
		a.t.Errorf("15 s after the last client the server has %v, before it had %v\n%s\n%s", now, a.before, a.profile("goroutine?debug=1"), a.profile("heap?debug=1"))
	}
	a.t.Logf("before: %v; after: %v", a.before, now)
	if log := a.s.FullLog(); strings.Contains(log, "panic") {
		a.t.Errorf("a panic in the log:\n%s", log)
	}
}

// health is what a server holds.
type health struct {
	goroutines, sockets, files int   // files: other than the pool's own
	heap, rss                  int64 // bytes
	objects                    int64 // of the heap
}

func (h health) String() string {
	return fmt.Sprintf("%d goroutines, %d sockets, %d files, heap %.1f MiB in %d objects, RSS %.1f MiB",
		h.goroutines, h.sockets, h.files, float64(h.heap)/mib, h.objects, float64(h.rss)/mib)
}

// What may be more than before although nothing is left of the clients: the log's unused buffers (64 MiB at most, about
// half of them there before), the map's cache (16 MiB here), the index' memtables, which grow with use (31 MiB); memory that Go
// has not given back to the kernel yet. The suite has some 25 000 connections, 240 000 in its long form: what each leaves
// behind shows as objects.
const (
	heapSlack   = 96 * mib
	rssSlack    = 192 * mib
	objectSlack = 15000
)

// back says whether h is the baseline again. The polling itself has a connection and its goroutines, in both.
func (h health) back(before health) bool {
	objectSlack := int64(objectSlack)
	if harness.Long() {
		objectSlack *= 4
	}
	return h.goroutines <= before.goroutines && h.sockets <= before.sockets && h.files <= before.files &&
		h.heap <= before.heap+heapSlack && h.rss <= before.rss+rssSlack && h.objects <= before.objects+objectSlack
}

// settled waits until done, or for as long as it takes at most, and returns what the server has then.
func (a *arena) settled(done func(health) bool, most time.Duration) health {
	a.t.Helper()
	for deadline := time.Now().Add(most); ; time.Sleep(100 * time.Millisecond) {
		if h := a.health(); done(h) || time.Now().After(deadline) {
			return h
		}
	}
}

var (
	goroutineTotal = regexp.MustCompile(`goroutine profile: total (\d+)`)
	heapInUse      = regexp.MustCompile(`# HeapInuse = (\d+)`)
	heapObjects    = regexp.MustCompile(`# HeapObjects = (\d+)`)
)

func (a *arena) health() health {
	a.t.Helper()
	number := func(text string, pattern *regexp.Regexp) int64 {
		match := pattern.FindStringSubmatch(text)
		if match == nil {
			a.t.Fatalf("no %v in a profile:\n%.300s", pattern, text)
		}
		n, _ := strconv.ParseInt(match[1], 10, 64)
		return n
	}
	// The first collection runs finalizers and empties half of the pools, the second one empties them.
	a.profile("heap?gc=1")
	heap := a.profile("heap?gc=1&debug=1")
	h := health{heap: number(heap, heapInUse), objects: number(heap, heapObjects), goroutines: int(number(a.profile("goroutine?debug=1"), goroutineTotal))}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.s.Pid))
	if err != nil {
		a.t.Fatal(err)
	}
	for _, entry := range entries {
		switch target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", a.s.Pid, entry.Name())); {
		case err != nil, strings.HasPrefix(target, a.s.Dir): // closed meanwhile; its number follows what was written
		case strings.HasPrefix(target, "socket:"):
			h.sockets++
		default:
			h.files++
		}
	}
	if _, h.rss, err = harness.ProcessRSS(a.s.Pid); err != nil {
		a.t.Fatal(err)
	}
	return h
}

func (a *arena) profile(path string) string {
	a.t.Helper()
	r, err := http.Get("http://" + a.pprof + "/debug/pprof/" + path)
	if err != nil {
		a.t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(text)
}

// Ways to speak to the server.
var allTerms = []client.Terms{
	{},
	{Structured: true, Contexts: []string{"base:allocation", "lunar:changed:s"}},
	{Extended: true, Contexts: []string{"base:allocation", "lunar:changed:s"}},
}

func termsName(terms client.Terms) string {
	switch {
	case terms.Extended:
		return "extended"
	case terms.Structured:
		return "structured"
	}
	return "simple"
}

// payloadFlag is what a WRITE must carry.
func payloadFlag(terms client.Terms) uint16 {
	if terms.Extended {
		return client.CmdPayloadLen
	}
	return 0
}

// greeted is a connection of which everything is still to come.
func (a *arena) greeted(t *testing.T) *client.Script {
	t.Helper()
	s, err := client.Greeted("tcp", a.s.TCP())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func (a *arena) attach(export string, terms client.Terms) *client.Script {
	a.t.Helper()
	s := a.greeted(a.t)
	if err := s.Attach(export, terms); err != nil {
		a.t.Fatalf("attach %s, %s: %v", export, termsName(terms), err)
	}
	return s
}

// must sends a request that must succeed.
func must(t *testing.T, s *client.Script, command, flags uint16, off, n uint64, payload []byte) client.Reply {
	t.Helper()
	r, err := s.Do(command, flags, off, n, payload)
	if err != nil || r.Errno != 0 {
		t.Fatalf("command %d of %d+%d: error %d %q, %v", command, off, n, r.Errno, r.Text, err)
	}
	return r
}

// witness is a well-behaved client. It owns the first blocks of its LUN.
type witness struct {
	c       *client.Conn
	cycles  atomic.Int64
	slowest atomic.Int64 // nanoseconds of one request
	stop    atomic.Bool
	done    sync.WaitGroup

	mu  sync.Mutex
	err error
}

const witnessBlocks = 2048

func watch(c *client.Conn) *witness {
	w := &witness{c: c}
	w.done.Go(func() {
		err := w.work()
		w.mu.Lock()
		w.err = err
		w.mu.Unlock()
	})
	return w
}

// work writes a few blocks and reads others that it wrote before, for ever.
func (w *witness) work() error {
	random := rand.New(rand.NewPCG(1, 2))
	generations := make([]uint64, witnessBlocks)
	buffer, want := make([]byte, 16*checker.BlockSize), make([]byte, checker.BlockSize)
	for gen := uint64(1); !w.stop.Load(); gen++ {
		count := 1 + random.IntN(16)
		first := random.IntN(witnessBlocks - count + 1)
		p := buffer[:count*checker.BlockSize]
		for i := range count {
			checker.Stamp(p[i*checker.BlockSize:(i+1)*checker.BlockSize], uint64(first+i), gen, 0)
			generations[first+i] = gen
		}
		if err := w.timed(func() error { return w.c.Write(p, int64(first)*checker.BlockSize, gen%64 == 0) }); err != nil {
			return fmt.Errorf("write of blocks %d+%d: %w", first, count, err)
		}
		first = random.IntN(witnessBlocks - count + 1)
		if err := w.timed(func() error { return w.c.Read(p, int64(first)*checker.BlockSize) }); err != nil {
			return fmt.Errorf("read of blocks %d+%d: %w", first, count, err)
		}
		for i := range count {
			clear(want)
			if g := generations[first+i]; g != 0 {
				checker.Stamp(want, uint64(first+i), g, 0)
			}
			if !bytes.Equal(want, p[i*checker.BlockSize:(i+1)*checker.BlockSize]) {
				return fmt.Errorf("block %d is not what was written there (generation %d)", first+i, generations[first+i])
			}
		}
		w.cycles.Add(1)
		time.Sleep(500 * time.Microsecond)
	}
	return nil
}

func (w *witness) timed(request func() error) error {
	began := time.Now()
	err := request()
	w.slowest.Store(max(w.slowest.Load(), int64(time.Since(began))))
	return err
}

// proceeds waits until the client has gone round a few times since `cycles`.
func (w *witness) proceeds(t *testing.T, cycles int64) {
	t.Helper()
	for deadline := time.Now().Add(patience); w.cycles.Load() < cycles+10; time.Sleep(time.Millisecond) {
		w.mu.Lock()
		err := w.err
		w.mu.Unlock()
		if err != nil {
			t.Fatalf("the well-behaved client: %v", err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("the well-behaved client got through %d cycles only", w.cycles.Load()-cycles)
		}
	}
	if slowest := time.Duration(w.slowest.Load()); slowest > patience {
		t.Errorf("the well-behaved client waited %v for one request", slowest)
	}
}

func (w *witness) end(t *testing.T) {
	t.Helper()
	w.stop.Store(true)
	w.done.Wait()
	if w.err != nil {
		t.Errorf("the well-behaved client: %v", w.err)
	}
	w.c.Disconnect()
}

// TestHostile does to the server what has killed others, on the built binary: each case of the table in
// docs/PROTOCOL.md, one after the other, beside a well-behaved client.
func TestHostile(t *testing.T) {
	a := newArena(t)
	a.begin(t, a.requests) // a trillion bytes trimmed and zeroed: the map's cache is full
	a.run("silent", a.silent)
	a.run("option lengths", a.optionLengths)
	a.run("options that lie", a.optionLies)
	a.run("names", a.names)
	a.run("wrong order", a.wrongOrder)
	a.run("requests", a.requests)
	a.run("same cookie", a.sameCookie)
	a.run("leave at each byte", a.leaveAnywhere)
	a.run("leave with replies queued", a.leaveQueued)
	a.run("never reads", a.neverReads)
	a.run("never sends", a.neverSends)
	a.run("mutations", a.mutations)
	a.finish()
}
