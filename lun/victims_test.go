package lun

import (
	"testing"
	"time"
)

func numbers(vs []victim) (out []uint64) {
	for _, v := range vs {
		out = append(out, v.number)
	}
	return out
}

func TestVictims(t *testing.T) {
	young := func(n uint64, live int64) victim { return victim{number: n, live: live, blocks: 100, age: 10} }
	old := func(n uint64, live int64) victim { return victim{number: n, live: live, blocks: 100, age: 1000} }
	for _, c := range []struct {
		name     string
		all      []victim
		pressure float64
		most     int
		want     []uint64
	}{
		{"nothing to gain", []victim{young(1, 100), old(2, 99)}, 1, 9, nil},
		{"in quiet times much must be dead", []victim{young(1, 61), young(2, 59)}, 0, 9, []uint64{2}},
		{"under pressure less", []victim{young(1, 97), young(2, 59)}, 1, 9, []uint64{2, 1}},
		{"the emptier one goes first", []victim{young(1, 50), young(2, 40)}, 0.1, 9, []uint64{2, 1}},
		{"an old one before an emptier young one", []victim{young(1, 20), old(2, 55)}, 0.1, 9, []uint64{2, 1}},
		{"under pressure the gain alone counts", []victim{young(1, 20), old(2, 55)}, 0.6, 9, []uint64{1, 2}},
		{"no more than asked for", []victim{young(1, 10), young(2, 20), young(3, 5)}, 0.6, 2, []uint64{3, 1}},
		{"equal ones by number", []victim{young(2, 10), young(1, 10)}, 0.1, 9, []uint64{1, 2}},
	} {
		got := numbers(pickVictims(c.all, c.pressure, c.most))
		if len(got) != len(c.want) {
			t.Errorf("%s: chose %v, want %v", c.name, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: chose %v, want %v", c.name, got, c.want)
				break
			}
		}
	}
}

func TestPressure(t *testing.T) {
	for _, c := range []struct {
		available int
		want      float64
	}{{20, 0}, {13, 0}, {8, 0.5}, {3, 1}, {0, 1}} {
		if got := pressureAt(c.available, 3, 13); got != c.want {
			t.Errorf("%d segments available: pressure %v, want %v", c.available, got, c.want)
		}
	}
}

// The rate falls smoothly with the pressure, and all writers share it.
func TestPace(t *testing.T) {
	var c pace
	now := time.Unix(1000, 0)
	if d := c.delay(1000, 1, 0, now); d != 0 {
		t.Errorf("a write waits %s before anything was measured", d)
	}
	c.ran(10000, time.Second) // 10,000 blocks a second
	if d := c.delay(1000, 0, 0, now); d != 0 {
		t.Errorf("without pressure a write waits %s", d)
	}
	last := 1e18
	for i := 1; i <= 100; i++ {
		r := c.rate(float64(i)/100, 0)
		if r > last || last < 1e18 && last-r > 201 {
			t.Errorf("at a pressure of %d %% the rate goes from %v to %v", i, last, r)
		}
		last = r
	}
	if r := c.rate(0.5, 0); r != 10000 {
		t.Errorf("at half the pressure writers get %v blocks a second, want what cleaning gives", r)
	}
	// Ten writes of 100 blocks at 10,000 a second take a tenth of a second, whoever makes them.
	var d time.Duration
	for range 11 {
		d = c.delay(100, 0.5, 0, now)
	}
	if want := 100*time.Millisecond - time.Duration(paceBurst); d != want {
		t.Errorf("the eleventh write waits %s, want %s", d, want)
	}
	if d = c.delay(1<<20, 1, 0, now); d > paceMost {
		t.Errorf("a write waits %s", d)
	}
	// What was not written in quiet times gives no right to a burst afterwards.
	later := now.Add(time.Hour)
	c.delay(100, 0.5, 0, later)
	if d = c.delay(100, 0.5, 0, later); d != 10*time.Millisecond-time.Duration(paceBurst) {
		t.Errorf("after an hour of quiet a second write waits %s", d)
	}
}

// Where others fill the file system and nothing is there to clean, the rate falls with what is left.
func TestPaceOfWhatIsLeft(t *testing.T) {
	c := &pace{}
	before := c.rate(0.01, 64<<10)
	for left := int64(32 << 10); left > 0; left /= 2 {
		now := c.rate(1-float64(left)/(64<<10), left)
		if now > before || now < paceLeast || now == before && now > paceLeast {
			t.Errorf("%d blocks left: %.0f blocks a second, %.0f with twice as many", left, now, before)
		}
		before = now
	}
	if r := c.rate(0.5, 0); r != 0 {
		t.Errorf("%.0f blocks a second where nobody fills the file system and nothing was cleaned yet, want no bound", r)
	}
}
