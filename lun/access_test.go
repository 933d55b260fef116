package lun_test

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"lunar/lun"
)

func TestParseAllow(t *testing.T) {
	got, err := lun.ParseAllow([]string{"10.0.0.0/8", " 192.168.1.5", "::1", "::ffff:10.1.2.3", "fd00::/8", "cn=backup host", "unix", "unix", "10.0.0.0/8"})
	want := lun.Allow{"10.0.0.0/8", "192.168.1.5/32", "::1/128", "10.1.2.3/32", "fd00::/8", "cn=backup host", "unix"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if again, err := lun.ParseAllow(got); err != nil || !reflect.DeepEqual(again, want) {
		t.Errorf("what is stored is not accepted again: %v, %v", again, err)
	}
	for _, bad := range []string{"", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "host.example", "cn=", "cn=a,b", "cn=a\nb", "CN=a", "fe80::1%eth0", "cn=" + strings.Repeat("x", 65), "Unix", "::ffff:10.0.0.0/104"} {
		if _, err := lun.ParseAllow([]string{bad}); !errors.Is(err, lun.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := lun.ParseAllow(make([]string, 65)); !errors.Is(err, lun.ErrInvalid) {
		t.Errorf("65 entries: %v", err)
	}
}

func TestAllowMatch(t *testing.T) {
	for _, c := range []struct {
		allow    string
		ip, name string
		want     bool
	}{
		{"", "1.2.3.4", "", true},
		{"", "", "", true},
		{"10.0.0.1", "10.0.0.1", "", true},
		{"10.0.0.1", "10.0.0.10", "", false}, // CVE-2013-6410: a prefix of the text is not a match
		{"10.0.0.1", "::ffff:10.0.0.1", "", true},
		{"10.0.0.0/8", "11.0.0.0", "", false},
		{"fe80::/10", "fe80::1%eth0", "", true},
		{"0.0.0.0/0", "::1", "", false},
		{"0.0.0.0/0", "", "", false}, // a unix socket has no address
		{"unix", "", "", true},
		{"unix", "127.0.0.1", "", false},
		{"unix", "127.0.0.1", "unix", false},
		{"cn=backup", "1.2.3.4", "backup", true},
		{"cn=backup", "", "backup", true},
		{"cn=backup", "1.2.3.4", "backup2", false},
		{"cn=backup", "1.2.3.4", "Backup", false},
		{"cn=backup", "1.2.3.4", "", false},
		{"10.0.0.0/8,cn=backup", "10.1.1.1", "", true},
		{"10.0.0.0/8,cn=backup", "1.2.3.4", "other", false},
	} {
		var allow lun.Allow
		if c.allow != "" {
			var err error
			if allow, err = lun.ParseAllow(strings.Split(c.allow, ",")); err != nil {
				t.Fatal(err)
			}
		}
		ip, _ := netip.ParseAddr(c.ip)
		if got := allow.Match(ip, c.name); got != c.want {
			t.Errorf("%q lets %q %q in: %v", c.allow, c.ip, c.name, got)
		}
	}
}

// Who may attach, and how fast, is kept like every setting of a LUN: over a
// restart, and a bad value changes nothing.
func TestAccessSettings(t *testing.T) {
	ctx, dir := context.Background(), filepath.Join(t.TempDir(), "pool")
	open := func() *lun.Pool {
		p, err := lun.Open(ctx, lun.Options{Dir: dir, Capacity: 1 << 30, SegmentBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := open()
	info, err := p.CreateLUN(ctx, lun.CreateLUN{Name: "a", SizeBytes: 1 << 20, Allow: lun.Allow{"10.0.0.0/8"}, QoS: lun.QoS{IOPS: 100}})
	if err != nil || info.QoS == nil || info.QoS.IOPS != 100 || !reflect.DeepEqual(info.Allow, lun.Allow{"10.0.0.0/8"}) {
		t.Fatalf("%+v, %v", info, err)
	}
	if info, err = p.CreateLUN(ctx, lun.CreateLUN{Name: "b", SizeBytes: 1 << 20}); err != nil || info.QoS != nil || info.Allow == nil || len(info.Allow) != 0 {
		t.Errorf("without settings: %+v, %v", info, err)
	}
	n := func(n int64) *int64 { return &n }
	for _, bad := range []lun.SetLUN{
		{Allow: &lun.Allow{"10.0.0.1/8"}}, {QoSIOPS: n(-1)}, {QoSBytesPerSecond: n(1)}, {QoSBurstMS: n(1)}, {QoSBurstMS: n(61000)},
		{QoSIOPS: n(0), QoSBurstMS: n(1000)},
	} {
		if _, err := p.SetLUN(ctx, "a", bad); !errors.Is(err, lun.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := p.SetLUN(ctx, "a", lun.SetLUN{Allow: &lun.Allow{"cn=x", "unix"}, QoSBytesPerSecond: n(1 << 20), QoSBurstMS: n(500)}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateSnapshots(ctx, []lun.SnapshotRequest{{LUN: "a", Name: "s"}}, lun.SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	if info, err := p.Clone(ctx, "a", "s", "copy", false); err != nil || !reflect.DeepEqual(info.Allow, lun.Allow{"cn=x", "unix"}) || info.QoS != nil {
		t.Errorf("a clone of a guarded LUN: %+v, %v", info, err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = open()
	defer p.Close()
	want := lun.QoS{IOPS: 100, BytesPerSecond: 1 << 20, BurstMS: 500}
	a, ok := p.Access("a")
	if !ok || !reflect.DeepEqual(a.Allow, lun.Allow{"cn=x", "unix"}) || a.QoS != want || a.LUN != "a" || a.UUID == "" || !a.Online {
		t.Errorf("after a restart: %+v", a)
	}
	if _, ok := p.Access("nobody"); ok {
		t.Error("a LUN that is not there has an access")
	}
	if info, err := p.SetLUN(ctx, "a", lun.SetLUN{QoSIOPS: n(0), QoSBytesPerSecond: n(0)}); err != nil || info.QoS != nil {
		t.Errorf("limits taken away: %+v, %v", info.QoS, err)
	}
	list := p.Exports(func(a lun.Access) bool { return len(a.Allow) == 0 })
	if len(list) != 1 || list[0].Name != "b" {
		t.Errorf("exports of a client that may see b only: %v", list)
	}
}

// The snapshots of LUNs that a client may not see do not use up its list.
func TestExportsBoundCountsVisibleOnly(t *testing.T) {
	ctx := context.Background()
	p, err := lun.Open(ctx, lun.Options{Dir: filepath.Join(t.TempDir(), "pool"), Capacity: 1 << 30, SegmentBytes: 1 << 20, ListSnapshots: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, name := range []string{"a", "b"} {
		if _, err := p.CreateLUN(ctx, lun.CreateLUN{Name: name, SizeBytes: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"1", "2", "3"} {
			if _, err := p.CreateSnapshots(ctx, []lun.SnapshotRequest{{LUN: name, Name: s}}, lun.SnapshotOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	var names []string
	for _, e := range p.Exports(func(a lun.Access) bool { return a.LUN == "b" }) {
		names = append(names, e.Name)
	}
	if got := strings.Join(names, " "); got != "b b@1 b@2" {
		t.Errorf("%s", got)
	}
}
