package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lunar/integration/client"
	"lunar/integration/harness"
)

// reach says what a client that comes from an address, or through the unix socket (""), gets of an export: whether LIST
// names it, and the answer to GO, EXPORT_NAME and LIST_META_CONTEXT.
func reach(t *testing.T, s *harness.Server, from, export string) (listed bool, answers [3]string) {
	t.Helper()
	open := func() *client.Script {
		network, address := "tcp", s.TCP()
		if from == "" {
			network, address = "unix", s.Socket
		}
		c, err := client.Connect(network, address, from)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.Greet(3); err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := open()
	if _, err := c.Write(client.Option(client.OptList, nil)); err != nil {
		t.Fatal(err)
	}
	for {
		_, kind, data, err := c.Answer()
		if err != nil {
			t.Fatal(err)
		}
		if kind == client.RepAck {
			break
		}
		if n := int(be.Uint32(data)); string(data[4:4+n]) == export {
			listed = true
		}
	}
	if err := c.Ack(client.OptStructured, nil); err != nil {
		t.Fatal(err)
	}
	for i, ask := range []struct {
		code uint32
		data []byte
	}{{client.OptListMeta, client.MetaData(export)}, {client.OptGo, client.GoData(export, 1, 2, 3)}} {
		kind, text, err := c.Ask(ask.code, ask.data)
		if err != nil {
			t.Fatal(err)
		}
		answers[i] = fmt.Sprintf("%#x %s", kind, text)
	}
	old := open()
	old.Write(append(client.Option(client.OptExportName, []byte(export)), client.Request(false, client.CmdDisc, 0, 1, 0, 0)...))
	came, err := old.Ended(gone)
	if err != nil {
		t.Fatal(err)
	}
	answers[2] = fmt.Sprintf("%d bytes", came)
	return listed, answers
}

// TestAllow: a LUN is there for those who may attach to it, and its snapshots with it; to others it is what an unknown
// name is, in every answer. Addresses are compared as addresses, never as text.
func TestAllow(t *testing.T) {
	s := harness.Start(t, "--listen", "tcp://127.0.0.1:0")
	for name, allow := range map[string]string{
		"any": "any", "one": "127.0.0.1", "ten": "127.0.0.10/32", "net": "127.0.1.0/24", "two": "127.0.0.1/32,127.0.1.128/25", "local": "unix", "cert": "cn=good", "v6": "::/0",
	} {
		s.Lunar("lun", "create", name, "1M", "--allow", allow)
		s.Lunar("snapshot", "create", name+"@s")
	}
	places := []string{"127.0.0.1", "127.0.0.10", "127.0.0.100", "127.0.1.1", "127.0.1.129", "127.0.10.1", ""}
	may := map[string]string{ // in the order of the places
		"any": "yyyyyyy", "one": "ynnnnnn", "ten": "nynnnnn", "net": "nnnyynn", "two": "ynnnynn", "local": "nnnnnny", "cert": "nnnnnnn", "v6": "nnnnnnn",
	}
	for i, from := range places {
		_, unknown := reach(t, s, from, "nosuch")
		for name, row := range may {
			for _, export := range []string{name, name + "@s"} {
				listed, answers := reach(t, s, from, export)
				if row[i] == 'y' && (!listed || !strings.HasPrefix(answers[1], "0x1 ") || answers[2] == "0 bytes") {
					t.Errorf("%s from %q: listed %v, answers %q; want to be served", export, from, listed, answers)
				}
				if row[i] == 'n' && (listed || answers != unknown) {
					t.Errorf("%s from %q: listed %v, answers %q; want those for an unknown name, %q", export, from, listed, answers, unknown)
				}
			}
		}
	}

	// A change holds at once, for those who are attached too.
	c, err := client.Connect("tcp", s.TCP(), "127.0.0.7")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Greet(3); err != nil {
		t.Fatal(err)
	}
	if err := c.Attach("any", client.Terms{}); err != nil {
		t.Fatal(err)
	}
	must(t, c, client.CmdWrite, 0, 0, 512, make([]byte, 512))
	s.Lunar("lun", "set", "any", "--allow", "127.0.0.7,unix")
	must(t, c, client.CmdWrite, 0, 0, 512, make([]byte, 512))
	s.Lunar("lun", "set", "any", "--allow", "127.0.0.70")
	if came, err := c.Ended(gone); err != nil || came != 0 {
		t.Errorf("a client that may not be there any more: %d bytes, %v", came, err)
	}
	s.Restart() // it is kept
	if listed, _ := reach(t, s, "127.0.0.7", "any"); listed {
		t.Error("after a restart the list is forgotten")
	}
	if listed, _ := reach(t, s, "127.0.0.70", "any"); !listed {
		t.Error("after a restart who may attach may not")
	}
	for _, bad := range []string{"127.0.0.1/33", "127.0.0", "cn=", "localhost", "::1/129", "10.0.0.1-10.0.0.9"} {
		s.Refused([]string{bad}, "lun", "set", "any", "--allow", bad)
	}
}

// rate runs requests of one size on an export for a while and returns how many were answered in a second.
func rate(t *testing.T, s *harness.Server, export string, size, depth int, length time.Duration) float64 {
	t.Helper()
	c := s.Dial(export)
	defer c.Disconnect()
	done := make(chan int)
	end := time.Now().Add(length)
	for i := range depth {
		go func() {
			n, p := 0, make([]byte, size)
			for time.Now().Before(end) {
				if err := c.Write(p, int64(i)*mib, false); err != nil {
					t.Error(err)
					break
				}
				n++
			}
			done <- n
		}()
	}
	total := 0
	for range depth {
		total += <-done
	}
	return float64(total) / length.Seconds()
}

// TestQoS: a LUN keeps to its limits, over all its connections, and others do not feel it.
func TestQoS(t *testing.T) {
	s := harness.Start(t, "--capacity", "4G")
	s.Lunar("lun", "create", "free", "64M")
	s.Lunar("lun", "create", "iops", "64M", "--qos-iops", "500", "--qos-burst", "100ms")
	s.Lunar("lun", "create", "bytes", "64M", "--qos-bps", "8M", "--qos-burst", "100ms")
	const length = 2 * time.Second
	type result struct {
		what        string
		rate        float64
		least, most float64
	}
	results := make(chan result)
	run := func(what, export string, size, depth int, least, most float64) {
		go func() { results <- result{what, rate(t, s, export, size, depth, length), least, most} }()
	}
	// Two connections share 500 a second.
	run("500 requests a second, first connection", "iops", 4096, 8, 150, 450)
	run("500 requests a second, second connection", "iops", 4096, 8, 150, 450)
	run("8 MiB a second", "bytes", 64<<10, 8, 100, 160)
	run("no limit", "free", 4096, 1, 1000, 1e9)
	sum := 0.0
	for range 4 {
		r := <-results
		if r.rate < r.least || r.rate > r.most {
			t.Errorf("%s: %.0f requests a second, want %.0f to %.0f", r.what, r.rate, r.least, r.most)
		}
		if strings.HasPrefix(r.what, "500") {
			sum += r.rate
		}
		t.Logf("%s: %.0f requests a second", r.what, r.rate)
	}
	if sum < 400 || sum > 600 {
		t.Errorf("both connections together had %.0f requests a second, want 500", sum)
	}
	// For attached clients at once, and not at all any more.
	s.Lunar("lun", "set", "iops", "--qos-iops", "none")
	if r := rate(t, s, "iops", 4096, 8, time.Second); r < 1000 {
		t.Errorf("without a limit: %.0f requests a second", r)
	}
	// A client that waits for its limit does not hold up the end of the server, and is not cut off with an error.
	s.Lunar("lun", "set", "iops", "--qos-iops", "1")
	c := s.Dial("iops")
	for i := range 50 {
		go c.Write(make([]byte, 4096), int64(i)*4096, false)
	}
	time.Sleep(100 * time.Millisecond)
	if took := s.Stop(); took > harness.Within(3*time.Second) {
		t.Errorf("with a client that waits for its limit SIGTERM took %v", took)
	}
}

// TestConnectionLimits: the limits of the configuration hold, and a refused client harms nobody.
func TestConnectionLimits(t *testing.T) {
	dir := harness.TempDir(t)
	config := filepath.Join(dir, "lunar.yaml")
	if err := os.WriteFile(config, []byte("nbd:\n  connections: 6\n  connections_per_address: 4\n  handshake_timeout: 1s\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := harness.Start(t, "--listen", "tcp://127.0.0.1:0", "--config", config)
	s.Lunar("lun", "create", "d", "1M")
	attach := func(from string) error {
		c, err := client.Connect("tcp", s.TCP(), from)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.Greet(3); err != nil {
			return err
		}
		return c.Attach("d", client.Terms{})
	}
	for i, step := range []struct {
		from string
		ok   bool
	}{{"127.0.0.1", true}, {"127.0.0.1", true}, {"127.0.0.1", true}, {"127.0.0.1", true}, {"127.0.0.1", false}, {"127.0.0.2", true}, {"127.0.0.2", true}, {"127.0.0.3", false}} {
		if err := attach(step.from); (err == nil) != step.ok {
			t.Errorf("connection %d from %s: %v, want to be served: %v", i, step.from, err, step.ok)
		}
	}
	s.Dial("d") // another listener has its own
	silent, err := client.Connect("unix", s.Socket, "")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := silent.Ended(gone); err != nil || time.Since(began) < 500*time.Millisecond {
		t.Errorf("a silent client had %v of a limit of 1 s, %v", time.Since(began), err)
	}
}
