package main

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"lunar/lun"
	"lunar/nbd"
)

func TestBackendOpens(t *testing.T) {
	ctx := t.Context()
	p := newFakePool()
	b := &backend{pool: p}
	if _, err := b.Open(ctx, "", nbd.Client{}); !errors.Is(err, nbd.ErrUnknownExport) {
		t.Errorf("no LUN is the default export: %v", err)
	}
	for _, name := range []string{"disk"} {
		if _, err := p.CreateLUN(ctx, lun.CreateLUN{Name: name, SizeBytes: 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.CreateSnapshots(ctx, []lun.SnapshotRequest{{LUN: "disk", Name: "a"}}, lun.SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		own string
		ro  bool
	}{"": {"disk", false}, "disk": {"disk", false}, "disk@a": {"disk@a", true}} {
		d, err := b.Open(ctx, name, nbd.Client{})
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if got := d.(nbd.Namer).Name(); got != want.own || d.ReadOnly() != want.ro || d.Size() != 1<<20 {
			t.Errorf("%q is %s, read-only %v", name, got, d.ReadOnly())
		}
		must(d.Close())
	}
	for _, name := range []string{"nobody", "disk@", "disk@b", "@a", "@", "disk@a@b", "../disk", strings.Repeat("x", 4096)} {
		if _, err := b.Open(ctx, name, nbd.Client{}); !errors.Is(err, nbd.ErrUnknownExport) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := p.SetOnline(ctx, "disk", false); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"disk", ""} {
		if _, err := b.Open(ctx, name, nbd.Client{}); !errors.Is(err, lun.ErrRefused) || !strings.Contains(err.Error(), "lunar lun online disk") {
			t.Errorf("%q while offline: %v", name, err)
		}
	}
	if d, err := b.Open(ctx, "disk@a", nbd.Client{}); err != nil || d.Close() != nil {
		t.Errorf("a snapshot of an offline LUN: %v", err)
	}
	list, err := b.Exports(ctx, nbd.Client{})
	if err != nil || len(list) != 1 || list[0].Name != "disk" {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := p.CreateLUN(ctx, lun.CreateLUN{Name: "second", SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open(ctx, "", nbd.Client{}); !errors.Is(err, nbd.ErrUnknownExport) {
		t.Errorf("one of two LUNs is the default export: %v", err)
	}
}

// stubNBD is a server whose connections are a list.
type stubNBD struct{ clients []nbd.Client }

func (s *stubNBD) Serve(context.Context, net.Listener, nbd.ListenerOptions) error { return nil }
func (s *stubNBD) Shutdown(context.Context) error                                 { return nil }
func (s *stubNBD) Clients() []nbd.Client                                          { return s.clients }

func (s *stubNBD) drop(gone func(nbd.Client) bool) int {
	var left []nbd.Client
	for _, c := range s.clients {
		if !gone(c) {
			left = append(left, c)
		}
	}
	n := len(s.clients) - len(left)
	s.clients = left
	return n
}

func (s *stubNBD) DisconnectExport(name string) int {
	return s.drop(func(c nbd.Client) bool { return c.Export == name })
}

func (s *stubNBD) Disconnect(match func(nbd.Client) bool) int { return s.drop(match) }

func (s *stubNBD) DisconnectID(id uint64) error {
	if s.drop(func(c nbd.Client) bool { return c.ID == id }) == 0 {
		return nbd.ErrUnknownClient
	}
	return nil
}

func TestClientControl(t *testing.T) {
	east := time.FixedZone("east", 3600)
	stub := &stubNBD{clients: []nbd.Client{
		{ID: 1, Export: "a", Address: "10.0.0.1:5", Since: fakeNow.In(east), TLS: true}, {ID: 2, Export: "a"}, {ID: 3, Export: "a@s"}, {ID: 4, Export: "b"},
	}}
	control := clientControl{stub}
	list := control.Clients()
	want := lun.ClientInfo{ID: 1, Export: "a", Address: "10.0.0.1:5", Since: fakeNow, TLS: true}
	if len(list) != 4 || list[0] != want {
		t.Errorf("%+v", list)
	}
	control.Disconnect("a")
	if list := control.Clients(); len(list) != 2 || list[0].ID != 3 {
		t.Errorf("%+v", list)
	}
	if err := control.DisconnectID(3); err != nil {
		t.Error(err)
	}
	if err := control.DisconnectID(3); !errors.Is(err, lun.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// The verbs of clients, and those that clients are in the way of.
func TestAttachedClients(t *testing.T) {
	e := newEnv(t)
	stub := &stubNBD{}
	e.srv.admin.Handler = e.srv.counted((&admin{pool: e.pool, clients: clientControl{stub}, changed: func(string) {}, warnings: func() []lun.Warning { return nil }, events: e.srv.events, log: e.srv.log}).handler())
	e.pool.SetClients(clientControl{stub})
	e.must("lun", "create", "disk", "1M")
	e.must("snapshot", "create", "disk@a")
	stub.clients = []nbd.Client{{ID: 7, Export: "disk", Address: "10.0.0.1:5000", Since: fakeNow}}
	want := "EXPORT  ID  ADDRESS        SINCE                 TLS\ndisk    7   10.0.0.1:5000  2026-11-22 01:30:00Z  no\n"
	if got := e.must("client", "list"); got != want {
		t.Errorf("%s", got)
	}
	if got := e.must("status"); !strings.Contains(got, "Clients\n"+want) {
		t.Errorf("%s", got)
	}
	e.lunar("rollback", "disk@a").wantFailure(t, exitFailed, "attached", "--force")
	e.lunar("client", "disconnect", "8").wantFailure(t, exitFailed, "client 8")
	if got := e.must("client", "disconnect", "7"); got != "client 7 of disk at 10.0.0.1:5000\n" {
		t.Errorf("%s", got)
	}
	e.must("rollback", "disk@a")
	if got := e.must("client", "list", "-o", "json"); got != "[]\n" {
		t.Errorf("%s", got)
	}
}
