package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"lunar/lun"
)

func TestParseSize(t *testing.T) {
	good := map[string]int64{
		"0": 0, "1": 1, "512": 512, "10K": 10 << 10, "10KiB": 10 << 10, "10M": 10 << 20, "3G": 3 << 30, "64TiB": 64 << 40,
		"007": 7, "9223372036854775807": 1<<63 - 1, "8388607T": 8388607 << 40,
	}
	for s, want := range good {
		if n, err := lun.ParseSize(s); err != nil || n != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", s, n, err, want)
		}
	}
	bad := []string{
		"", " ", "K", "iB", "KiB", "10iB", "10k", "10KB", "10B", "10GB", "10Gi", "1.5G", "1,5G", "-1", "+1", "0x10", "1_000", "1e3",
		"10 G", "10G ", "10P", "9223372036854775808", "8388608T", "١٢",
	}
	for _, s := range bad {
		if n, err := lun.ParseSize(s); !errors.Is(err, lun.ErrInvalid) {
			t.Errorf("ParseSize(%q) = %d, %v; want a refusal", s, n, err)
		}
	}
}

func TestParseLUNSize(t *testing.T) {
	for _, s := range []string{"4K", "4096", "4608", "1G", "64T", "70368744177664"} {
		if _, err := parseLUNSize(s); err != nil {
			t.Errorf("parseLUNSize(%q): %v", s, err)
		}
	}
	for _, s := range []string{"0", "512", "3584", "4095", "4097", "5000", "70368744178176", "65T"} {
		var usage *usageError
		if _, err := parseLUNSize(s); !errors.As(err, &usage) {
			t.Errorf("parseLUNSize(%q): %v; want a usage error", s, err)
		}
	}
}

func TestParseAmount(t *testing.T) {
	good := map[string]lun.Amount{
		"20%": {Percent: 20}, "0%": {}, "0": {}, "1000%": {Percent: 1000}, "10G": {Bytes: 10 << 30}, "none": {None: true},
	}
	for s, want := range good {
		if a, err := lun.ParseAmount(s); err != nil || a != want {
			t.Errorf("ParseAmount(%q) = %+v, %v; want %+v", s, a, err, want)
		}
		// The text form says the same again.
		text, _ := want.MarshalText()
		var again lun.Amount
		if err := again.UnmarshalText(text); err != nil || again != want {
			t.Errorf("%+v as text is %q, which is %+v, %v", want, text, again, err)
		}
	}
	for _, s := range []string{"", "%", "-1%", "+1%", "1.5%", "1001%", "20 %", "20%%", "None", "nothing", "10Q", "0x5%"} {
		if a, err := lun.ParseAmount(s); err == nil {
			t.Errorf("ParseAmount(%q) = %+v; want a refusal", s, a)
		}
	}
	if n, ok := (lun.Amount{Percent: 1000}).Of(lun.MaxLUNSize); !ok || n != 10*lun.MaxLUNSize {
		t.Errorf("1000%% of 64 TiB is %d, %v", n, ok)
	}
	if _, ok := (lun.Amount{None: true}).Of(4096); ok {
		t.Error("none is an amount")
	}
}

func TestCheckName(t *testing.T) {
	for _, s := range []string{"a", "0", "A.b_c-d", strings.Repeat("x", 63), "20261122T013000Z"} {
		if err := lun.CheckName("LUN", s); err != nil {
			t.Errorf("CheckName(%q): %v", s, err)
		}
	}
	for _, s := range []string{"", ".", "..", "-a", "_a", ".a", "a b", "a/b", "a@b", "ä", "a\x00", "a\n", strings.Repeat("x", 64)} {
		if err := lun.CheckName("LUN", s); !errors.Is(err, lun.ErrInvalid) {
			t.Errorf("CheckName(%q): %v; want a refusal", s, err)
		}
	}
}

func TestParseSpan(t *testing.T) {
	good := map[string]time.Duration{
		"30s": 30 * time.Second, "5m": 5 * time.Minute, "12h": 12 * time.Hour, "3d": 72 * time.Hour, "2w": 14 * 24 * time.Hour,
	}
	for s, want := range good {
		if d, err := parseSpan("time to live", s); err != nil || d != want {
			t.Errorf("parseSpan(%q) = %v, %v; want %v", s, d, err, want)
		}
	}
	for _, s := range []string{"", "h", "12", "0h", "-1h", "1.5h", "1h30m", "12H", "1y", "4294967296s", "36501d", "99999999999999999999d"} {
		if d, err := parseSpan("time to live", s); err == nil {
			t.Errorf("parseSpan(%q) = %v; want a refusal", s, d)
		}
	}
}

func TestParseAddress(t *testing.T) {
	good := map[string]address{
		"tcp://127.0.0.1:10809": {"tcp", "127.0.0.1:10809"}, "tcp://:0": {"tcp", ":0"}, "tcp://[::1]:65535": {"tcp", "[::1]:65535"},
		"tcp://localhost:1": {"tcp", "localhost:1"}, "unix:///a b,c": {"unix", "/a b,c"},
	}
	for s, want := range good {
		if a, err := parseAddress(s); err != nil || a != want {
			t.Errorf("parseAddress(%q) = %v, %v; want %v", s, a, err, want)
		}
		if got := want.String(); got != s {
			t.Errorf("%v prints as %q, not as %q", want, got, s)
		}
	}
	bad := []string{
		"", "127.0.0.1:10809", "tcp:127.0.0.1:1", "tcp://127.0.0.1", "tcp://127.0.0.1:65536", "tcp://127.0.0.1:-1", "tcp://127.0.0.1:nbd",
		"tcp://a/b:1", "tcp://::1:1", "unix://a", "unix://", "unix:/a", "unix:///", "unix:///a/", "nbd://a:1",
	}
	for _, s := range bad {
		var usage *usageError
		if a, err := parseAddress(s); !errors.As(err, &usage) {
			t.Errorf("parseAddress(%q) = %v, %v; want a usage error", s, a, err)
		}
	}
	if err := checkUnixPath("/" + strings.Repeat("x", maxUnixPath-1)); err != nil {
		t.Error(err)
	}
	long := "/" + strings.Repeat("x", maxUnixPath)
	if err := checkUnixPath(long); err == nil || !strings.Contains(err.Error(), long) {
		t.Errorf("a path of 108 bytes: %v; want a refusal that names it", err)
	}
}

func TestSplitAddresses(t *testing.T) {
	got := splitAddresses("tcp://a:1, unix:///a b,c/d  tcp://b:2\nunix:///e")
	want := []string{"tcp://a:1", "unix:///a b,c/d", "tcp://b:2", "unix:///e"}
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHuman(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1 << 10: "1.0 KiB", 10 << 30: "10 GiB", 64 << 40: "64 TiB", -(1 << 20): "-1.0 MiB"} {
		if got := humanSize(n); got != want {
			t.Errorf("humanSize(%d) = %q, want %q", n, got, want)
		}
	}
	if got := bar(150, 4) + bar(-1, 4) + bar(50, 4); got != "[####][----][##--]" {
		t.Errorf("bars %q", got)
	}
	if got := percentOf(1<<62, 1<<62) + percentOf(1, 0) + percentOf(-1, 100); got != 99 {
		t.Errorf("percents sum to %d", got)
	}
}

func TestWrap(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{
		{"", 5, ""}, {"one two three", 7, "one two|three"}, {"abcdefgh", 3, "abc|def|gh"}, {"a bcdefg h", 4, "a|bcde|fg h"}, {"äöü äöü", 3, "äöü|äöü"},
	} {
		if got := strings.Join(wrap(c.in, c.n), "|"); got != c.want {
			t.Errorf("wrap(%q, %d) = %q, want %q", c.in, c.n, got, c.want)
		}
	}
}

// What people wrote into descriptions must not drive the terminal of who lists it.
func TestTableTakesOutControlCharacters(t *testing.T) {
	var b strings.Builder
	f := &fields{}
	f.add("description", "a\x1b[31m\u009b2Jb\r\nc")
	if err := f.write(&b); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != "description  a [31m 2Jb c\n" {
		t.Errorf("%q", got)
	}
}
