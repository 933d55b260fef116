package reservation

import (
	"math"
	"testing"
)

func TestHistory(t *testing.T) {
	same := func(what string, got []float64, want ...float64) {
		t.Helper()
		if len(got) != len(want) {
			t.Errorf("%s: rates %v, want %v", what, got, want)
			return
		}
		for i := range got {
			if math.Abs(got[i]-want[i]) > 0.01*math.Abs(want[i])+1e-9 {
				t.Errorf("%s: rates %v, want %v", what, got, want)
			}
		}
	}
	var h History
	same("nothing known", h.Rates(0, 5))
	at, used := int64(1000), int64(0)
	run := func(seconds, perDay int64) {
		for end := at + seconds; at < end; at += 10 {
			h.Note(at, used+(at-end+seconds)*perDay/day)
		}
		used += seconds * perDay / day
	}
	run(4*minute, 86400)
	same("four minutes are too few", h.Rates(at, used))
	run(26*minute, 86400)
	same("half an hour at a block a second", h.Rates(at, used), 86400)
	run(90*minute, 86400)
	same("two hours", h.Rates(at, used), 86400, 86400)
	run(10*hour, 0)
	same("it rests for ten hours", h.Rates(at, used), 0, 86400/6)
	run(30*hour, 864000)
	same("ten times as fast for more than a day", h.Rates(at, used), 864000, 864000)
	same("all was dropped", h.Rates(at, 0), -float64(used-36000)*24, -float64(used-864000))
	if n := len(h.hour) + len(h.day); n > 61+97 {
		t.Errorf("%d samples are kept", n)
	}
	if days, ok := FullIn(h.Rates(at, used), used, used+432000); !ok || math.Abs(days-0.5) > 0.01 {
		t.Errorf("full in %v days (%v), want half a day", days, ok)
	}
}
