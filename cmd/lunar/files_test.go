package main

import "testing"

func TestShareFiles(t *testing.T) {
	if _, err := shareFiles(255, 1); err == nil {
		t.Error("255 files are enough")
	}
	for _, c := range []struct{ limit, listeners, pool, clients int }{
		{256, 1, 64, 96}, {1024, 2, 256, 240}, {65536, 2, 512, 16368}, {1 << 30, 1, 512, 1<<29 - 32},
	} {
		f, err := shareFiles(c.limit, c.listeners)
		if err != nil || f.pool != c.pool || f.listeners != c.clients {
			t.Errorf("%d files, %d listeners: %+v, %v", c.limit, c.listeners, f, err)
		}
		if f.listeners*c.listeners+2*f.pool > c.limit {
			t.Errorf("%d files, %d listeners: more than there are: %+v", c.limit, c.listeners, f)
		}
		if f.connections(0) != f.listeners || f.connections(5) != 5 || f.connections(1<<40) != f.listeners {
			t.Errorf("connections of %+v", f)
		}
	}
}
