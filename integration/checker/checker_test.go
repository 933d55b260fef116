package checker

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

// disk is a device in memory which can forget what was not flushed.
type disk struct {
	mu      sync.Mutex
	data    []byte
	flushed []byte
	dead    bool
}

var errDead = errors.New("dead")

func newDisk(blocks int) *disk {
	return &disk{data: make([]byte, blocks*BlockSize), flushed: make([]byte, blocks*BlockSize)}
}

func (d *disk) change(fua bool, fn func(p []byte)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errDead
	}
	fn(d.data)
	if fua {
		copy(d.flushed, d.data)
	}
	return nil
}

func (d *disk) Read(p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:])
	return nil
}

func (d *disk) Write(p []byte, off int64, fua bool) error {
	return d.change(fua, func(data []byte) { copy(data[off:], p) })
}

func (d *disk) Flush() error { return d.change(true, func([]byte) {}) }

func (d *disk) Trim(off int64, n int, fua bool) error { return d.Zero(off, n, false, fua) }

func (d *disk) Zero(off int64, n int, _, fua bool) error {
	return d.change(fua, func(data []byte) { clear(data[off : off+int64(n)]) })
}

func (d *disk) setDead(dead bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = dead
}

func run(t *testing.T, m *Model, d *disk, seed uint64) {
	t.Helper()
	load := Load{Model: m, Devices: []Device{d, d, d}, Depth: 2, Seed: seed}
	load.Start()
	time.Sleep(30 * time.Millisecond)
	d.setDead(true)
	if err := load.Wait(); !errors.Is(err, errDead) {
		t.Fatalf("load ended with %v", err)
	}
	d.setDead(false)
}

func TestHonestDiskPasses(t *testing.T) {
	d, m := newDisk(2048), New(2048)
	for round := range uint64(5) {
		run(t, m, d, round)
		if round%2 == 0 {
			copy(d.data, d.flushed) // loses all that is not flushed: a legal crash
		}
		view, err := m.Crashed(d)
		if err != nil {
			t.Fatal(err)
		}
		m.Settle(view)
		if _, err := m.Current(d); err != nil {
			t.Fatal(err)
		}
	}
	if requests, _ := m.Counts(); requests < 100 {
		t.Fatalf("only %d requests", requests)
	}
}

// Each row breaks the disk in one way, which the check must find.
func TestBrokenDiskIsCaught(t *testing.T) {
	write := func(t *testing.T, m *Model, d *disk, first, count int, fua bool) {
		t.Helper()
		r := m.Begin(first, count, false, fua)
		p := make([]byte, count*BlockSize)
		for i := range count {
			Stamp(p[i*BlockSize:(i+1)*BlockSize], uint64(first+i), r.Gen, 1)
		}
		if err := d.Write(p, int64(first)*BlockSize, fua); err != nil {
			t.Fatal(err)
		}
		r.Acked()
	}
	flush := func(m *Model, d *disk) { began := m.Now(); d.Flush(); m.Flushed(began) }
	tests := []struct {
		name, want string
		do         func(t *testing.T, m *Model, d *disk)
	}{
		{"flush lost", "must hold", func(t *testing.T, m *Model, d *disk) {
			write(t, m, d, 1, 1, false)
			flush(m, d)
			clear(d.data)
		}},
		{"fua lost", "must hold", func(t *testing.T, m *Model, d *disk) { write(t, m, d, 1, 1, true); clear(d.data) }},
		{"older version", "lost", func(t *testing.T, m *Model, d *disk) {
			write(t, m, d, 1, 1, false)
			old := append([]byte(nil), d.data...)
			write(t, m, d, 1, 1, false)
			flush(m, d)
			copy(d.data, old)
		}},
		{"torn", "torn", func(t *testing.T, m *Model, d *disk) {
			write(t, m, d, 1, 1, false)
			old := append([]byte(nil), d.data...)
			write(t, m, d, 1, 1, false)
			copy(d.data[BlockSize+2048:2*BlockSize], old[BlockSize+2048:])
		}},
		{"misplaced", "misplaced", func(t *testing.T, m *Model, d *disk) {
			write(t, m, d, 1, 2, false)
			copy(d.data[BlockSize:2*BlockSize], d.data[2*BlockSize:])
		}},
		{"not a prefix", "not a prefix", func(t *testing.T, m *Model, d *disk) {
			write(t, m, d, 1, 1, false)
			write(t, m, d, 2, 1, false)
			clear(d.data[BlockSize : 2*BlockSize])
		}},
		{"lost comes back", "came back", func(t *testing.T, m *Model, d *disk) {
			write(t, m, d, 1, 1, false)
			old := append([]byte(nil), d.data...)
			clear(d.data)
			view, err := m.Crashed(d)
			if err != nil {
				t.Fatal(err)
			}
			m.Settle(view)
			copy(d.data, old)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d, m := newDisk(64), New(64)
			test.do(t, m, d)
			_, err := m.Crashed(d)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("want an error with %q, got %v", test.want, err)
			}
		})
	}
	t.Run("split snapshot", func(t *testing.T) {
		d, m := newDisk(64), New(64)
		began := m.Now()
		write(t, m, d, 1, 2, false)
		clear(d.data[BlockSize : 2*BlockSize])
		if _, err := m.Frozen(d, began, m.Now()); err == nil || !strings.Contains(err.Error(), "split") {
			t.Fatalf("want a split request, got %v", err)
		}
	})
	t.Run("snapshot from the future", func(t *testing.T) {
		d, m := newDisk(64), New(64)
		began := m.Now()
		reported := m.Now()
		write(t, m, d, 1, 1, false)
		if _, err := m.Frozen(d, began, reported); err == nil || !strings.Contains(err.Error(), "afterwards") {
			t.Fatalf("want a later generation, got %v", err)
		}
	})
}
