package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lunar/lun"
	"lunar/nbd"
)

// configOf runs `config show` and returns value and source of each key.
func configOf(t *testing.T, args ...string) map[string]configValue {
	t.Helper()
	r := runAlone(t, append([]string{"config", "show", "-o", "json"}, args...)...)
	if r.status != 0 {
		t.Fatal(r.stderr)
	}
	var list []configValue
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		t.Fatal(err)
	}
	values := map[string]configValue{}
	for _, v := range list {
		values[v.Key] = v
	}
	return values
}

// runAlone runs a command line that needs no server.
func runAlone(t *testing.T, args ...string) result {
	t.Helper()
	var stdout, stderr strings.Builder
	status := run(t.Context(), newApp(), args, strings.NewReader(""), &stdout, &stderr)
	return result{status, stdout.String(), stderr.String()}
}

func TestConfigDefaults(t *testing.T) {
	isolate(t)
	values := configOf(t)
	if len(values) != len(configKeys) {
		t.Errorf("%d of %d keys are shown", len(values), len(configKeys))
	}
	for _, key := range configKeys {
		v := values[key.name]
		if v.Source != "default" || v.Value == "" && key.name != "data" {
			t.Errorf("%+v", v)
		}
	}
	for key, want := range map[string]string{"snapshots.per_lun": "256", "list_snapshots": "256", "area.on_full": "recycle", "area.limit": "none", "log.level": "info"} {
		if values[key].Value != want {
			t.Errorf("%s is %q by default, not %q", key, values[key].Value, want)
		}
	}
}

// Flags are over the environment, which is over the file.
func TestConfigOrder(t *testing.T) {
	isolate(t)
	writeFileT(t, "lunar.yaml", []byte(`
data: /from/file
listen: [tcp://127.0.0.1:1, "unix:///tmp/a b"]
capacity: 1073741824
preallocate: yes_is_not_a_bool
index:
  cache: 1G
area: {reserve: 10%, limit: 20G, on_full: freeze}
log:
  # level: debug
`))
	r := runAlone(t, "config", "show")
	r.wantFailure(t, exitUnparsable, "preallocate", "lunar.yaml", "true or false")

	t.Setenv("LUNAR_PREALLOCATE", "true")
	t.Setenv("LUNAR_INDEX_CACHE", "2G")
	t.Setenv("LUNAR_LOG_LEVEL", "warn")
	t.Setenv("LUNAR_AREA_ON_FULL", "") // empty is unset
	values := configOf(t, "--log-level", "debug", "--listen", "unix:///x", "--listen", "tcp://[::1]:0")
	want := map[string][2]string{
		"data":         {"/from/file", "lunar.yaml"},
		"listen":       {"unix:///x tcp://[::1]:0", "--listen"},
		"capacity":     {"1073741824", "lunar.yaml"},
		"preallocate":  {"true", "LUNAR_PREALLOCATE"},
		"index.cache":  {"2G", "LUNAR_INDEX_CACHE"},
		"area.reserve": {"10%", "lunar.yaml"},
		"area.limit":   {"20G", "lunar.yaml"},
		"area.on_full": {"freeze", "lunar.yaml"},
		"log.level":    {"debug", "--log-level"},
		"log.format":   {"text", "default"},
	}
	for key, w := range want {
		if v := values[key]; v.Value != w[0] || v.Source != w[1] {
			t.Errorf("%s is %q from %s, want %q from %s", key, v.Value, v.Source, w[0], w[1])
		}
	}
	if v := configOf(t, "--data", "rel")["data"]; v.Source != "--data" {
		t.Errorf("%+v", v)
	}
}

func TestConfigFileThatIsNamed(t *testing.T) {
	isolate(t)
	writeFileT(t, "lunar.yaml", []byte("capacity: 1G\n"))
	writeFileT(t, "other.yaml", []byte("log.level: error\n"))
	values := configOf(t, "--config", "other.yaml")
	if values["capacity"].Source != "default" || values["log.level"].Value != "error" {
		t.Errorf("%+v", values)
	}
}

func TestConfigRefusals(t *testing.T) {
	isolate(t)
	long := "/" + strings.Repeat("x", 107)
	for _, c := range []struct {
		name, text string
		parts      []string
	}{
		{"unknown key", "capcity: 10G\n", []string{`unknown key "capcity"`, "capacity"}},
		{"unknown nested key", "index: {cash: 1G}\n", []string{`unknown key "index.cash"`}},
		{"key below a value", "capacity: {max: 1G}\n", []string{`unknown key "capacity.max"`}},
		{"section as a value", "index: 5\n", []string{`unknown key "index"`}},
		{"not YAML", "a: [\n", []string{"not YAML"}},
		{"not a map", "- a\n- b\n", []string{"not YAML"}},
		{"twice", "capacity: 1G\ncapacity: 2G\n", []string{"capacity"}},
		{"bad size", "capacity: 10X\n", []string{"capacity", `"10X"`}},
		{"fraction", "capacity: 1.5\n", []string{"capacity", `"1.5"`}},
		{"list for a value", "capacity: [1G, 2G]\n", []string{"capacity", "list"}},
		{"too small", "index.cache: 1K\n", []string{"index.cache"}},
		{"bad percentage", "area: {reserve: 2000%}\n", []string{"area.reserve", "2000%"}},
		{"reserve none", "area: {reserve: none}\n", []string{"area.reserve", "none"}},
		{"bad policy", "area: {on_full: maybe}\n", []string{"area.on_full", "recycle"}},
		{"bad level", "log: {level: loud}\n", []string{"log.level", "debug"}},
		{"bad count", "snapshots: {per_lun: 0}\n", []string{"snapshots.per_lun", "1"}},
		{"bad segment", "segment: {size: 5000}\n", []string{"segment.size"}},
		{"bad address", "listen: nowhere\n", []string{"listen", "nowhere"}},
		{"long path", "listen: unix://" + long + "\n", []string{"listen", long, "107"}},
		{"path twice", "listen: [unix:///a, unix:///a]\n", []string{"unix:///a", "twice"}},
		{"bad timeout", "nbd: {handshake_timeout: 10}\n", []string{"nbd.handshake_timeout", "1s"}},
		{"too many", "nbd: {connections: -1}\n", []string{"nbd.connections", "0"}},
		{"TLS without certificates", "tls: {mode: required}\n", []string{"tls.dir"}},
		{"the same path with TLS", "listen: [unix:///a, 'unix:///a?tls=off']\n", []string{"unix:///a", "twice"}},
		{"bad memory", "memory: {gc_percent: -1}\n", []string{"memory.gc_percent"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			writeFileT(t, "bad.yaml", []byte(c.text))
			runAlone(t, "config", "check", "bad.yaml").wantFailure(t, exitFailed, append(c.parts, "bad.yaml")...)
			r := runAlone(t, "serve", "--data", "new", "--config", "bad.yaml")
			r.wantFailure(t, r.status, append(c.parts, "bad.yaml")...)
			if _, err := os.Stat("new"); err == nil || r.status == 0 {
				t.Error("serve made the folder all the same")
			}
		})
	}
	writeFileT(t, "good.yaml", []byte("# nothing but a comment\nlog:\n"))
	if r := runAlone(t, "config", "check", "good.yaml"); r.status != 0 || r.stdout != "good.yaml: ok\n" {
		t.Errorf("%+v", r)
	}
	must(os.Mkdir("dir.yaml", 0o755))
	runAlone(t, "config", "check", "dir.yaml").wantFailure(t, exitFailed, "dir.yaml")
	t.Setenv("LUNAR_CAPACITY", "much")
	runAlone(t, "config", "show").wantFailure(t, exitUnparsable, "LUNAR_CAPACITY", "much")
}

func TestConfigReachesThePool(t *testing.T) {
	isolate(t)
	writeFileT(t, "c.yaml", []byte("data: d\ncapacity: 1G\nsegment: {size: 1M}\nindex: {cache: 2M}\narea: {reserve: 5%, limit: 6G, on_full: freeze}\n"+
		"snapshots: {per_lun: 7}\nlist_snapshots: 8\npreallocate: true\ncleaner: {defragment: false}\nmemory: {limit: 1G, gc_percent: 50}\n"))
	v, err := readConfigFile("c.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := buildConfig(v, func(configKey) string { return "c.yaml" })
	if err != nil {
		t.Fatal(err)
	}
	o := lunOptions(poolOptions{Config: c})
	dir, _ := filepath.Abs("d")
	if o.Dir != dir || o.Capacity != 1<<30 || o.SegmentBytes != 1<<20 || o.IndexCache != 2<<20 || o.SnapshotsPerLUN != 7 || o.ListSnapshots != 8 || !o.Preallocate || !o.NoDefragment {
		t.Errorf("%+v", o)
	}
	if *o.Defaults.Reserve != (lun.Amount{Percent: 5}) || *o.Defaults.Limit != (lun.Amount{Bytes: 6 << 30}) || o.Defaults.OnFull != "freeze" {
		t.Errorf("%+v", o.Defaults)
	}
	if c.MemoryLimit != 1<<30 || c.GCPercent != 50 {
		t.Errorf("%+v", c)
	}
}

func TestConfigReachesTheNBDServer(t *testing.T) {
	isolate(t)
	writeFileT(t, "c.yaml", []byte("data: d\nnbd: {connections: 5, connections_per_address: 0, handshake_timeout: 3s, memory: 100M, memory_per_connection: 10M}\n"+
		"listen: ['tcp://127.0.0.1:0?tls=off', 'unix:///tmp/x']\ntls: {mode: allowed, dir: certs, client_certs: required}\n"))
	v, err := readConfigFile("c.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := buildConfig(v, func(configKey) string { return "c.yaml" })
	if err != nil {
		t.Fatal(err)
	}
	if n := c.NBD; n.HandshakeTimeout != 3*time.Second || n.MemoryTotal != 100<<20 || n.MemoryPerConnection != 10<<20 || c.PerListener != 5 || noLimit(c.PerAddress) != -1 {
		t.Errorf("%+v", c)
	}
	dir, _ := filepath.Abs("certs")
	if !c.TLSClientCerts || c.TLSDir != dir || c.TLSMode != nbd.TLSAllowed {
		t.Errorf("%+v", c)
	}
	for i, want := range []nbd.TLSMode{nbd.TLSOff, nbd.TLSOff} {
		if l := planListeners(c)[i]; l.mode != want {
			t.Errorf("%s: %v", l.listenAddress, l.mode)
		}
	}
	c.Listen[0].tls, c.Listen[1].tls = "", "required"
	for i, want := range []nbd.TLSMode{nbd.TLSAllowed, nbd.TLSRequired} {
		if l := planListeners(c)[i]; l.mode != want {
			t.Errorf("%s: %v", l.listenAddress, l.mode)
		}
	}
}
