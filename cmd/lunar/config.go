package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/viper"

	"lunar/lun"
	"lunar/nbd"
)

// config is what `lunar serve` runs with, checked. It comes from the file, over
// it the environment, over it the flags.
type config struct {
	Data         string          // absolute
	Listen       []listenAddress // none: the default, see listeners
	Capacity     int64
	Preallocate  bool
	WriteBehind  bool
	Defragment   bool
	SegmentBytes int64
	IndexCache   int64
	Area         lun.AreaDefaults
	PerLUN       int
	ListSnaps    int
	LogLevel     string
	LogFormat    string
	ScrubEvery   time.Duration // negative: never
	ScrubPace    int64         // bytes a second
	BackUpEvery  time.Duration // negative: never
	MemoryLimit  int64         // 0: Go's own
	GCPercent    int           // 0: Go's own

	Passed []net.Listener // by systemd; not part of the configuration

	TLSMode        nbd.TLSMode // of tcp listeners that have none of their own
	TLSDir         string      // absolute; "": none
	TLSClientCerts bool        // a client must show one
	NBD            nbd.Options // its limits
	PerListener    int         // connections; 0: no limit
	PerAddress     int

	values []configValue
}

// configValue is one key with the value in force and where it comes from.
type configValue struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

// configKey is one row of the table of keys. set checks a value that is not
// empty and stores it; def is what holds without one, and may be empty.
type configKey struct {
	name, flag, def, help string
	set                   func(c *config, value string) error
}

var configKeys = []configKey{
	{"data", "data", "", "data `DIR` of the pool, made if missing", setData},
	{"listen", "listen", "", "serve NBD on `ADDR`: tcp://HOST:PORT or unix:///PATH; may be repeated", setListen},
	{"tls.mode", "tls", "off", "TLS on tcp listeners, as `off|allowed|required`", setTLSMode},
	{"tls.dir", "tls-dir", "", "folder `DIR` with ca-cert.pem, server-cert.pem and server-key.pem", setTLSDir},
	{"tls.client_certs", "tls-client-certs", "optional", "certificates of clients, `optional|required`", oneOf(func(c *config, s string) { c.TLSClientCerts = s == "required" }, "optional", "required")},
	{"nbd.connections", "", "1024", "", count(0, 1<<20, func(c *config, n int) { c.PerListener = n })},
	{"nbd.connections_per_address", "", "256", "", count(0, 1<<20, func(c *config, n int) { c.PerAddress = n })},
	{"nbd.handshake_timeout", "", "10s", "", setHandshakeTimeout},
	{"nbd.memory", "", "512M", "", size(1<<20, 1<<50, func(c *config, n int64) { c.NBD.MemoryTotal = n })},
	{"nbd.memory_per_connection", "", "64M", "", size(1<<20, 1<<50, func(c *config, n int64) { c.NBD.MemoryPerConnection = n })},
	{"capacity", "capacity", "", "capacity of the pool as `SIZE`; given again it resizes", size(minCapacity, math.MaxInt64, func(c *config, n int64) { c.Capacity = n })},
	{"preallocate", "preallocate", "false", "take the capacity from the file system at once", truth(func(c *config, on bool) { c.Preallocate = on })},
	{"write_behind", "write-behind", "true", "hold answered writes in memory for up to 3 ms", truth(func(c *config, on bool) { c.WriteBehind = on })},
	{"segment.size", "", "", "", setSegmentSize},
	{"cleaner.defragment", "", "true", "", truth(func(c *config, on bool) { c.Defragment = on })},
	{"index.cache", "index-cache", "256M", "memory for maps of blocks as `SIZE`", size(1<<20, 1<<50, func(c *config, n int64) { c.IndexCache = n })},
	{"index.backup_every", "", "10m", "", every(time.Minute, func(c *config, d time.Duration) { c.BackUpEvery = d })},
	{"scrub.every", "", "30d", "", every(time.Hour, func(c *config, d time.Duration) { c.ScrubEvery = d })},
	{"scrub.pace", "", "100M", "", size(1<<20, 1<<50, func(c *config, n int64) { c.ScrubPace = n })},
	{"area.reserve", "", "", "", amount(false, func(c *config, a *lun.Amount) { c.Area.Reserve = a })},
	{"area.limit", "", "none", "", amount(true, func(c *config, a *lun.Amount) { c.Area.Limit = a })},
	{"area.on_full", "", lun.OnFullRecycle, "", setOnFull},
	{"snapshots.per_lun", "", "256", "", count(1, 1<<20, func(c *config, n int) { c.PerLUN = n })},
	{"list_snapshots", "", "256", "", count(1, 1<<20, func(c *config, n int) { c.ListSnaps = n })},
	{"log.level", "log-level", "info", "least `LEVEL` to log: debug, info, warn or error", oneOf(func(c *config, s string) { c.LogLevel = s }, "debug", "info", "warn", "error")},
	{"log.format", "log-format", "text", "`FORMAT` of the log: text or json", oneOf(func(c *config, s string) { c.LogFormat = s }, "text", "json")},
	{"memory.limit", "", "", "", size(64<<20, 1<<50, func(c *config, n int64) { c.MemoryLimit = n })},
	{"memory.gc_percent", "", "", "", count(10, 10000, func(c *config, n int) { c.GCPercent = n })},
}

// configFiles are looked for, in this order, when --config names none.
var configFiles = []string{"lunar.yaml", "/etc/lunar/lunar.yaml"}

// minCapacity is the least capacity of a pool.
const minCapacity = 1 << 20

const envPrefix = "LUNAR"

// addConfigFlags gives cmd the flags of the keys, and --config. --data is global.
func addConfigFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.String("config", "", "configuration `FILE` (default ./lunar.yaml, then /etc/lunar/lunar.yaml)")
	for _, k := range configKeys {
		switch {
		case k.flag == "" || k.flag == "data":
		case k.name == "listen":
			flags.StringArray(k.flag, nil, k.help)
		case k.def == "false":
			flags.Bool(k.flag, false, k.help)
		default:
			flags.String(k.flag, "", k.help)
		}
	}
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
}

// loadConfig reads file, environment and the flags of cmd, and checks them all.
func loadConfig(cmd *cobra.Command) (*config, error) {
	named, _ := cmd.Flags().GetString("config")
	file, err := findConfigFile(named)
	if err != nil {
		return nil, err
	}
	v, err := readConfigFile(file)
	if err != nil {
		return nil, err
	}
	v.SetEnvPrefix(envPrefix)
	v.SetEnvKeyReplacer(strings.NewReplacer(".", "_"))
	for _, k := range configKeys {
		must(v.BindEnv(k.name))
		if flag := cmd.Flags().Lookup(k.flag); flag != nil {
			must(v.BindPFlag(k.name, flag))
		}
	}
	source := func(k configKey) string {
		switch flag := cmd.Flags().Lookup(k.flag); {
		case flag != nil && flag.Changed:
			return "--" + k.flag
		case os.Getenv(envName(k.name)) != "":
			return envName(k.name)
		case v.InConfig(k.name):
			return file
		}
		return "default"
	}
	return buildConfig(v, source)
}

// checkConfigFile checks one file by itself.
func checkConfigFile(file string) error {
	v, err := readConfigFile(file)
	if err != nil {
		return err
	}
	_, err = buildConfig(v, func(configKey) string { return file })
	return err
}

func findConfigFile(named string) (string, error) {
	if named != "" {
		return named, nil
	}
	for _, file := range configFiles {
		switch _, err := os.Stat(file); {
		case err == nil:
			return file, nil
		case !errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("configuration %s: cannot be looked at: %w; make it readable or name another with --config", file, err)
		}
	}
	return "", nil
}

// readConfigFile reads a file ("" is none) and refuses keys that are not in the
// table: a misspelt key would silently be its default.
func readConfigFile(file string) (*viper.Viper, error) {
	v := viper.New()
	if file == "" {
		return v, nil
	}
	v.SetConfigFile(file)
	v.SetConfigType("yaml")
	if err := v.ReadInConfig(); err != nil {
		var parse viper.ConfigParseError
		if errors.As(err, &parse) {
			return nil, usagef("configuration %s: not YAML with keys and values: %v", file, parse.Unwrap())
		}
		return nil, fmt.Errorf("configuration %s: cannot be read: %w", file, err)
	}
	known := func(key string) bool {
		return slices.ContainsFunc(configKeys, func(k configKey) bool {
			// A section whose keys are all commented out is a key without a value.
			return k.name == key || v.Get(key) == nil && strings.HasPrefix(k.name, key+".")
		})
	}
	keys := v.AllKeys()
	slices.Sort(keys)
	for _, key := range keys {
		if !known(key) {
			return nil, fmt.Errorf("configuration %s: unknown key %q; want %s", file, key, strings.Join(configNames(), ", "))
		}
	}
	return v, nil
}

func configNames() []string {
	names := make([]string, len(configKeys))
	for i, k := range configKeys {
		names[i] = k.name
	}
	return names
}

func envName(key string) string {
	return envPrefix + "_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// buildConfig checks every value and keeps where it came from.
func buildConfig(v *viper.Viper, source func(configKey) string) (*config, error) {
	c := &config{}
	for _, k := range configKeys {
		text, err := configText(k.name, v.Get(k.name))
		from := "default"
		if err == nil && text != "" {
			from = source(k)
			err = k.set(c, text)
		} else if err == nil && k.def != "" {
			text = k.def
			err = k.set(c, text)
		}
		if err != nil {
			return nil, fmt.Errorf("%s (from %s): %w", k.name, source(k), err)
		}
		c.values = append(c.values, configValue{k.name, text, from})
	}
	c.showDefaults()
	if key, err := c.checkTLS(); err != nil {
		return nil, fmt.Errorf("%s (from %s): %w", key, source(configKeyNamed(key)), err)
	}
	return c, nil
}

func configKeyNamed(name string) configKey {
	return configKeys[slices.IndexFunc(configKeys, func(k configKey) bool { return k.name == name })]
}

// checkTLS refuses listeners that want TLS where there are no certificates; key
// is the one that wants it.
func (c *config) checkTLS() (key string, err error) {
	for _, a := range c.listeners() {
		if mode := a.mode(c.TLSMode); mode != nbd.TLSOff && c.TLSDir == "" {
			if a.tls != "" {
				return "listen", noCertificates(a, mode)
			}
			return "tls.mode", noCertificates(a, mode)
		}
	}
	return "", nil
}

func noCertificates(a listenAddress, mode nbd.TLSMode) error {
	return fmt.Errorf("TLS is %s on %s, but tls.dir names no folder of certificates; \"lunar tls init DIR\" makes one", mode, a.address)
}

// listeners are where NBD is to be served.
func (c *config) listeners() []listenAddress {
	if len(c.Listen) > 0 {
		return c.Listen
	}
	return defaultListen(c.Data)
}

// showDefaults says in words what holds where the table has no value.
func (c *config) showDefaults() {
	words := map[string]string{
		"capacity":          "stored in the pool; when it is made: free space less 5%",
		"segment.size":      "stored in the pool; when it is made: 4M to 64M, a 256th of the capacity",
		"area.reserve":      "20% for thick LUNs, 0 for thin ones",
		"memory.limit":      "none",
		"memory.gc_percent": "100",
		"tls.dir":           "none",
	}
	if c.Data != "" {
		words["listen"] = joinAddresses(c.listeners())
	} else {
		words["listen"] = "tcp://127.0.0.1:10809 unix://DIR/nbd.sock"
	}
	for i, v := range c.values {
		if v.Value == "" {
			c.values[i].Value = words[v.Key]
		}
	}
}

// configText turns what YAML, the environment or a flag holds into the one text
// form that set understands.
func configText(key string, value any) (string, error) {
	switch v := value.(type) {
	case nil:
		return "", nil
	case string:
		return strings.TrimSpace(v), nil
	case bool, int, int64, uint64:
		return fmt.Sprint(v), nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	case []string:
		return strings.Join(v, " "), nil
	case []any:
		if key == "listen" {
			parts := make([]string, len(v))
			for i, part := range v {
				parts[i] = fmt.Sprint(part)
			}
			return strings.Join(parts, " "), nil
		}
	}
	return "", usagef("want one value, not a list or a section")
}

func setData(c *config, s string) error {
	dir, err := filepath.Abs(s)
	c.Data = dir
	return err
}

func defaultListen(data string) []listenAddress {
	return []listenAddress{{address: address{"tcp", "127.0.0.1:10809"}}, {address: address{"unix", filepath.Join(data, "nbd.sock")}}}
}

// splitAddresses cuts a list at the blanks or commas before a scheme: paths may
// have both in them.
func splitAddresses(s string) []string {
	var parts []string
	start := 0
	for i := 1; i < len(s); i++ {
		scheme := strings.HasPrefix(s[i:], "tcp://") || strings.HasPrefix(s[i:], "unix://")
		if scheme && strings.IndexByte(" ,\n\t", s[i-1]) >= 0 {
			parts = append(parts, strings.Trim(s[start:i], " ,\n\t"))
			start = i
		}
	}
	return append(parts, strings.Trim(s[start:], " ,\n\t"))
}

// setListen takes one address or a list of them.
func setListen(c *config, s string) error {
	for _, part := range splitAddresses(s) {
		a, err := parseListenAddress(part)
		if err == nil && a.network == "unix" {
			err = checkUnixPath(a.addr)
		}
		if err != nil {
			return err
		}
		if a.network == "unix" && slices.ContainsFunc(c.Listen, func(b listenAddress) bool { return a.address == b.address }) {
			return usagef("address %s is there twice", a)
		}
		c.Listen = append(c.Listen, a)
	}
	return nil
}

func setTLSMode(c *config, s string) (err error) {
	if c.TLSMode, err = nbd.ParseTLSMode(s); err != nil {
		return usagef("%q: want off, allowed or required", s)
	}
	return nil
}

func setTLSDir(c *config, s string) (err error) {
	c.TLSDir, err = filepath.Abs(s)
	return err
}

func setHandshakeTimeout(c *config, s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Second || d > time.Hour {
		return usagef("%q: want a time from 1s to 1h", s)
	}
	c.NBD.HandshakeTimeout = d
	return nil
}

// every is a span of time, at least so long, or off.
func every(least time.Duration, set func(*config, time.Duration)) func(*config, string) error {
	return func(c *config, s string) error {
		if s == "off" {
			set(c, -1)
			return nil
		}
		d, err := parseSpan("time", s)
		if err != nil || d < least {
			return usagef("%q: want off, or a time of at least %s with s, m, h, d or w, as 10m", s, least)
		}
		set(c, d)
		return nil
	}
}

func truth(set func(*config, bool)) func(*config, string) error {
	return func(c *config, s string) error {
		on, err := strconv.ParseBool(s)
		if err != nil {
			return usagef("%q: want true or false", s)
		}
		set(c, on)
		return nil
	}
}

func setSegmentSize(c *config, s string) error {
	n, err := lun.ParseSize(s)
	if err != nil {
		return asUsage(err)
	}
	if n < 64<<10 || n > 1<<30 || n%(4<<10) != 0 {
		return usagef("size %q: want a multiple of 4K from 64K to 1G", s)
	}
	c.SegmentBytes = n
	return nil
}

func setOnFull(c *config, s string) error {
	c.Area.OnFull = s
	return asUsage(checkOnFull(s))
}

func size(least, most int64, store func(*config, int64)) func(*config, string) error {
	return func(c *config, s string) error {
		n, err := lun.ParseSize(s)
		if err != nil {
			return asUsage(err)
		}
		if n < least || n > most {
			return usagef("size %q: want from %s to %s", s, humanSize(least), humanSize(most))
		}
		store(c, n)
		return nil
	}
}

func amount(noneToo bool, store func(*config, *lun.Amount)) func(*config, string) error {
	return func(c *config, s string) error {
		a, err := parseAmount(s, noneToo)
		store(c, &a)
		return asUsage(err)
	}
}

func count(least, most int, store func(*config, int)) func(*config, string) error {
	return func(c *config, s string) error {
		n, err := parseCount("number", s, least, most)
		store(c, n)
		return asUsage(err)
	}
}

func oneOf(store func(*config, string), allowed ...string) func(*config, string) error {
	return func(c *config, s string) error {
		if !slices.Contains(allowed, s) {
			return usagef("%q: want %s", s, strings.Join(allowed, ", "))
		}
		store(c, s)
		return nil
	}
}
