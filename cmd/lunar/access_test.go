package main

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"lunar/lun"
	"lunar/nbd"
)

// guarded is a pool with an open LUN, one for a network and one for a name.
func guarded(t *testing.T) (*fakePool, *backend) {
	p := newFakePool()
	for name, allow := range map[string]lun.Allow{"open": nil, "net": {"10.0.0.0/8"}, "name": {"cn=backup"}} {
		if _, err := p.CreateLUN(t.Context(), lun.CreateLUN{Name: name, SizeBytes: 1 << 20, Allow: allow}); err != nil {
			t.Fatal(err)
		}
		if _, err := p.CreateSnapshots(t.Context(), []lun.SnapshotRequest{{LUN: name, Name: "s"}}, lun.SnapshotOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return p, &backend{pool: p}
}

func TestBackendAdmits(t *testing.T) {
	p, b := guarded(t)
	inside, outside := nbd.Client{IP: netip.MustParseAddr("10.1.1.1")}, nbd.Client{IP: netip.MustParseAddr("11.1.1.1")}
	named := nbd.Client{IP: outside.IP, TLS: true, CommonName: "backup"}
	for name, who := range map[string]struct {
		client nbd.Client
		sees   string
	}{
		"inside": {inside, "net open"}, "outside": {outside, "open"}, "unix": {nbd.Client{}, "open"}, "named": {named, "name open"},
	} {
		infos, err := b.Exports(t.Context(), who.client)
		if err != nil {
			t.Fatal(err)
		}
		for _, lunName := range []string{"open", "net", "name"} {
			want := strings.Contains(" "+who.sees+" ", " "+lunName+" ")
			listed := false
			for _, i := range infos {
				listed = listed || i.Name == lunName
			}
			if listed != want {
				t.Errorf("%s: LIST names %s: %v", name, lunName, listed)
			}
			for _, export := range []string{lunName, lunName + "@s"} {
				d, err := b.Open(t.Context(), export, who.client)
				if want != (err == nil) {
					t.Errorf("%s: opening %s: %v", name, export, err)
				}
				if err == nil {
					must(d.Close())
				} else if err != nbd.ErrUnknownExport {
					t.Errorf("%s: %s is refused with a reason of its own: %v", name, export, err)
				}
			}
		}
	}
	// Off line, it is no different for those who may not see it.
	if _, err := p.SetOnline(t.Context(), "net", false); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open(t.Context(), "net", outside); err != nbd.ErrUnknownExport {
		t.Errorf("off line, from outside: %v", err)
	}
	// Two LUNs are one to whom only one is shown: LIST says the same.
	if _, err := b.Open(t.Context(), "", inside); err == nil {
		t.Error("one of two is the default")
	}
	d, err := b.Open(t.Context(), "", outside)
	if err != nil {
		t.Fatal(err)
	}
	if n := d.(nbd.Namer).Name(); n != "open" {
		t.Errorf("the default is %s", n)
	}
	must(d.Close())
	if len(b.limiters.of) != 0 {
		t.Errorf("limiters are left: %v", b.limiters.of)
	}
}

// A client that may no longer be attached is disconnected, from snapshots too,
// and nobody else is.
func TestAllowHoldsForAttached(t *testing.T) {
	p, b := guarded(t)
	inside, outside := netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("11.1.1.1")
	stub := &stubNBD{clients: []nbd.Client{
		{ID: 1, Export: "open", IP: inside}, {ID: 2, Export: "open", IP: outside}, {ID: 3, Export: "open@s", IP: outside}, {ID: 4, Export: "open2", IP: outside}, {ID: 5, Export: "name", IP: outside, CommonName: "backup"},
	}}
	// One has come before the LUN had its present name.
	d, err := b.Open(t.Context(), "open@s", nbd.Client{ID: 6, IP: outside})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	stub.clients = append(stub.clients, nbd.Client{ID: 6, Export: "former@s", IP: outside})
	if _, err := p.SetLUN(t.Context(), "open", lun.SetLUN{Allow: &lun.Allow{"10.0.0.0/8"}}); err != nil {
		t.Fatal(err)
	}
	b.changed("open", stub)
	b.changed("gone", stub)
	var left []uint64
	for _, c := range stub.clients {
		left = append(left, c.ID)
	}
	if len(left) != 3 || left[0] != 1 || left[1] != 4 || left[2] != 5 {
		t.Errorf("left are %v", left)
	}
}

func TestLimiter(t *testing.T) {
	m := &limiter{}
	if m.set(lun.QoS{}); !m.Admit(32 << 20) {
		t.Error("without limits a request has to wait")
	}
	m.set(lun.QoS{IOPS: 100, BurstMS: 100}) // 10 at once, then one each 10 ms
	start := time.Now()
	for range 30 {
		if !m.Admit(1 << 20) {
			m.Wait(t.Context(), 1<<20)
		}
	}
	if took := time.Since(start); took < 190*time.Millisecond || took > 30*time.Second {
		t.Errorf("30 requests at 100 a second took %v", took)
	}
	m.set(lun.QoS{BytesPerSecond: 10 << 20, BurstMS: 100}) // 1 MiB at once
	start = time.Now()
	if m.Admit(3 << 20) {
		t.Error("three times the burst is admitted at once")
	}
	m.Wait(t.Context(), 3<<20)
	if took := time.Since(start); took < 190*time.Millisecond || took > 30*time.Second {
		t.Errorf("3 MiB at 10 MiB/s took %v", took)
	}
	if !m.Admit(0) {
		t.Error("a request without data waits for bytes")
	}
}

// A request that is refused leaves nothing taken of either limit.
func TestLimiterTakesAllOrNothing(t *testing.T) {
	m := &limiter{}
	m.set(lun.QoS{IOPS: 1, BytesPerSecond: 1 << 20, BurstMS: 1000})
	if m.Admit(2 << 20) {
		t.Error("more than the burst is admitted")
	}
	if !m.Admit(1 << 20) {
		t.Error("the refused request has taken from the limits")
	}
	if m.Admit(0) {
		t.Error("a second request in the first second")
	}
}

// Changes hold for requests that wait; those of closing connections stop.
func TestLimiterChanges(t *testing.T) {
	m := &limiter{}
	m.set(lun.QoS{BytesPerSecond: 64 << 10})
	done := make(chan struct{})
	go func() {
		m.Wait(t.Context(), 32<<20) // eight minutes
		close(done)
	}()
	time.Sleep(20 * time.Millisecond)
	m.set(lun.QoS{BytesPerSecond: 1 << 30})
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		t.Fatal("a request waits for limits that do not hold any more")
	}
	m.set(lun.QoS{IOPS: 1})
	m.Admit(0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	start := time.Now()
	for range 100 {
		m.Wait(ctx, 0)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("waiting went on for %v after its end", took)
	}
	// What was given up was given back: the next in line waits for its own share.
	start = time.Now()
	m.Wait(t.Context(), 0)
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("the next request waited %v", took)
	}
}

// The limits are those of the LUN when the last change was made, and go with
// the last connection.
func TestLimiters(t *testing.T) {
	var l limiters
	a := lun.Access{UUID: "1", QoS: lun.QoS{IOPS: 5}}
	access := func() lun.Access { return a }
	one, two := l.use(1, access), l.use(2, access)
	l.release(1, l.use(1, access)) // as INFO does
	if one != two || one.rates.Load() == nil {
		t.Error("two connections of a LUN have limits of their own")
	}
	a.QoS = lun.QoS{}
	if got := l.changed(access); len(got) != 2 || !got[1] || !got[2] {
		t.Errorf("attached are %v", got)
	}
	if one.rates.Load() != nil {
		t.Error("the limits are still there")
	}
	l.release(1, one)
	if len(l.of) != 1 {
		t.Error("gone with the first connection")
	}
	l.release(2, two)
	if len(l.of) != 0 {
		t.Error("left behind")
	}
}

func BenchmarkLimiterOff(b *testing.B) {
	m := &limiter{}
	for b.Loop() {
		m.Admit(4096)
	}
}

func BenchmarkLimiterOn(b *testing.B) {
	m := &limiter{}
	m.set(lun.QoS{IOPS: 1e9, BytesPerSecond: 1 << 50})
	b.ReportAllocs()
	for b.Loop() {
		m.Admit(4096)
	}
}
