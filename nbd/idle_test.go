package nbd_test

import (
	"runtime"
	"testing"
	"time"

	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

// TestIdleConnections: a connection that has been busy and is idle holds no
// buffer: a thousand of them, the client's side included, are cheap.
func TestIdleConnections(t *testing.T) {
	const conns, most = 1000, 40 << 10 // bytes for each
	_, addr := nbdtest.Serve(t, nbd.Options{Backend: nbdtest.NewBackend(nbdtest.NewMemory("mem", 1<<20))}, nbd.ListenerOptions{})
	used := func() int64 {
		runtime.GC()
		runtime.GC() // buffers in pools survive the first one
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	before := used()
	list := make([]*nbdtest.Client, conns)
	for i := range list {
		list[i] = nbdtest.Attach(t, addr, "mem", true)
		list[i].Write(0, make([]byte, 100))
		list[i].Read(0, 100<<10)
	}
	time.Sleep(50 * time.Millisecond) // the last reader goes to sleep
	each := (used() - before) / conns
	t.Logf("%d bytes for each idle connection", each)
	if each > most {
		t.Errorf("an idle connection holds %d bytes", each)
	}
	for _, c := range list {
		c.Disc()
	}
}

// TestIdleTLS: over TLS an idle connection holds no buffer of ours either.
func TestIdleTLS(t *testing.T) {
	certs := makeCerts(t)
	_, _, dial := serveTLS(t, certs, false, nbd.TLSRequired)
	const conns, most = 50, 100 << 10 // crypto/tls on both sides keeps what the largest record took
	var list []*nbdtest.Client
	var m runtime.MemStats
	used := func() int64 {
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	before := used()
	for range conns {
		c := dial()
		if err := upgrade(c, certs.config()); err != nil {
			t.Fatal(err)
		}
		c.Go("mem")
		c.Write(0, make([]byte, 100))
		list = append(list, c)
	}
	time.Sleep(50 * time.Millisecond)
	each := (used() - before) / conns
	t.Logf("%d bytes for each idle connection", each)
	if each > most {
		t.Errorf("an idle connection holds %d bytes", each)
	}
	for _, c := range list {
		c.Disc()
	}
}
