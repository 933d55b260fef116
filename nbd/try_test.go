package nbd_test

import (
	"sync/atomic"
	"testing"

	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

// full is a device without space: writes wait until it is released.
type full struct {
	*nbdtest.Memory
	release chan struct{}
	waiting atomic.Int32
}

func (d *full) TryWrite(p []byte, off int64, owned bool) (bool, error) {
	select {
	case <-d.release:
	default:
		return false, nil
	}
	if owned {
		return true, d.Memory.WriteOwned(p, off, false)
	}
	return true, d.Memory.WriteAt(p, off, false)
}

func (d *full) wait() {
	d.waiting.Add(1)
	<-d.release
}

func (d *full) WriteAt(p []byte, off int64, fua bool) error {
	d.wait()
	return d.Memory.WriteAt(p, off, fua)
}

func (d *full) WriteOwned(p []byte, off int64, fua bool) error {
	d.wait()
	return d.Memory.WriteOwned(p, off, fua)
}

func (d *full) Trim(off, n int64, fua bool) error {
	d.wait()
	return d.Memory.Trim(off, n, fua)
}

// TestWaitingWrites: writes that wait for space, small, large, unaligned and more than there are workers, and a TRIM hold
// up no READ that comes behind them on the same connection, and all of them are carried out.
func TestWaitingWrites(t *testing.T) {
	d := &full{Memory: nbdtest.NewMemory("mem", 8<<20), release: make(chan struct{})}
	_, addr := nbdtest.Serve(t, nbd.Options{Backend: one{d}, Workers: 4}, nbd.ListenerOptions{})
	c := nbdtest.Attach(t, addr, "mem", false)
	sizes := []int{4096, 1 << 20, 100, 300 << 10, 70000, 4096, 4096, 4096}
	for i, n := range sizes {
		p := make([]byte, n)
		for k := range p {
			p[k] = byte(i + 1)
		}
		c.Send(append(c.Request(0, nbdtest.CmdWrite, uint64(100+i), uint64(i)<<20, uint64(n)), p...))
	}
	c.Send(c.Request(0, nbdtest.CmdTrim, 200, 7<<20+8192, 4096))
	for cookie := range uint64(3) {
		c.Send(c.Request(0, nbdtest.CmdRead, cookie, 0, 10))
		if r := c.Receive(10); r.Cookie != cookie || r.Errno != 0 {
			t.Fatalf("reply %+v to READ %d", r, cookie)
		}
	}
	eventually(t, "all wait", func() bool { return int(d.waiting.Load()) == len(sizes)+1 })
	close(d.release)
	seen := map[uint64]bool{}
	for range len(sizes) + 1 {
		r := c.Receive(0)
		if seen[r.Cookie] || r.Errno != 0 {
			t.Errorf("reply %+v", r)
		}
		seen[r.Cookie] = true
	}
	for i, n := range sizes[:7] {
		if p := c.Read(uint64(i)<<20, n); p[0] != byte(i+1) || p[n-1] != byte(i+1) {
			t.Errorf("write %d reads back as %d … %d", i, p[0], p[n-1])
		}
	}
	c.Write(0, []byte{9}) // one that need not wait
	if p := c.Read(0, 1); p[0] != 9 {
		t.Errorf("%d", p[0])
	}
	c.Disc()
}
