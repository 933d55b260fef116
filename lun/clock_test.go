package lun

import (
	"errors"
	"testing"
	"time"
)

// Time that passes is no jump, however much. A clock that is set forward by more than an hour is not followed for an hour; set
// right in that time, it leaves no trace.
func TestWallClock(t *testing.T) {
	const day = 24 * time.Hour
	begin := time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name  string
		looks [][3]time.Duration // since the first one: passed, shown, the time for lives
		jumps int
	}{
		{"time passes", [][3]time.Duration{{1, 1, 1}, {100 * day, 100 * day, 100 * day}}, 0},
		{"set forward a little", [][3]time.Duration{{time.Minute, 50 * time.Minute, 50 * time.Minute}}, 0},
		{"set back", [][3]time.Duration{{time.Minute, -day, -day}, {2 * time.Minute, time.Minute - day, time.Minute - day}}, 0},
		{"set forward", [][3]time.Duration{
			{time.Second, time.Second + 3*day, time.Second}, {time.Hour, time.Hour + 3*day, time.Hour}, {time.Hour + time.Second, time.Hour + time.Second + 3*day, time.Hour + time.Second + 3*day},
		}, 1},
		{"forward and back", [][3]time.Duration{{time.Second, time.Second + 3*day, time.Second}, {time.Minute, time.Minute, time.Minute}, {time.Hour, time.Hour, time.Hour}}, 1},
		{"forward twice", [][3]time.Duration{{time.Second, time.Second + day, time.Second}, {time.Minute, time.Minute + 2*day, time.Minute}, {2 * time.Hour, 2*time.Hour + 2*day, 2*time.Hour + 2*day}}, 2},
		{"back and forward", [][3]time.Duration{{time.Second, -day, -day}, {time.Minute, time.Minute, time.Minute - day - time.Second}}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			var w wallClock
			w.look(begin, 0)
			jumps := 0
			for _, l := range c.looks {
				got, jumped := w.look(begin.Add(l[1]), l[0])
				if jumped > 0 {
					jumps++
				}
				if want := begin.Add(l[2]); !got.Equal(want) {
					t.Errorf("after %v the clock shows %v: %v, want %v", l[0], l[1], got, want)
				}
			}
			if jumps != c.jumps {
				t.Errorf("%d jumps, want %d", jumps, c.jumps)
			}
		})
	}
}

// jump sets the pool's clock: so much more is shown than has passed.
func (m *model) jump(at *time.Time, by time.Duration) {
	*at = at.Add(by)
	m.p.clock.mu.Lock()
	m.p.clock.at += by // its times have no monotonic reading: all that they show has passed
	m.p.clock.mu.Unlock()
}

// A snapshot's life and protection end by the time that passes, not by a clock that was set a short while ago.
func TestClockSetForward(t *testing.T) {
	m, at := clocked(t)
	for name, o := range map[string]SnapshotOptions{"day": {TTL: 24 * time.Hour}, "hour": {TTL: time.Minute}, "kept": {ProtectFor: 24 * time.Hour}} {
		_, err := m.p.CreateSnapshots(bg, []SnapshotRequest{{LUN: "a", Name: name}}, o)
		m.check(err, "snapshot")
	}
	left := func(want string) {
		t.Helper()
		m.p.expire()
		got := ""
		for _, name := range []string{"day", "hour", "kept"} {
			if _, err := m.p.Snapshot("a", name); err == nil {
				got += name + " "
			}
		}
		if got != want {
			t.Errorf("at %v these are left: %q, want %q", *at, got, want)
		}
	}
	m.jump(at, 72*time.Hour)
	left("day hour kept ")
	if !hasEvent(m.p, "clock", "set forward by 72h") {
		t.Errorf("no event tells: %v", m.p.Events())
	}
	if err := deleteSnap(m.p, "a", "kept"); !errors.Is(err, ErrRefused) {
		t.Errorf("a protected snapshot was deleted as the clock was set forward: %v", err)
	}
	*at = at.Add(2 * time.Minute) // a life that ends meanwhile does end
	left("day kept ")
	*at = at.Add(clockHold)
	left("kept ")
	m.check(deleteSnap(m.p, "a", "kept"), "delete after its protection")
}

// A clock that was ahead and is set right does not put off what is due some time after what it wrote down.
func TestClockSetBack(t *testing.T) {
	m, at := clocked(t)
	right := *at
	*at = at.Add(365 * 24 * time.Hour)
	_, err := m.p.Scrub(bg, ScrubOptions{}, nil)
	m.check(err, "scrub")
	m.backUp(2)
	m.put("a", 0, 8)
	m.checkpoint()
	*at = right.Add(time.Hour)
	if !m.p.scrubDue() {
		t.Error("no scrub is due")
	}
	if !m.p.backupDue() {
		t.Error("no copy of the index is due")
	}
	_, err = m.p.Scrub(bg, ScrubOptions{}, nil)
	m.check(err, "scrub")
	m.check(m.p.BackUp(), "backup") // the newer of the two by what it holds, the older by the clock
	if have := m.p.Backups(); have[0].Position <= have[1].Position || !have[0].Created.Before(have[1].Created) {
		t.Errorf("the copies: %+v", have)
	}
	newest := m.p.Backups()[0].Position
	m.put("a", 8, 8)
	m.checkpoint()
	m.check(m.p.BackUp(), "backup")
	if have := m.p.Backups(); have[1].Position != newest {
		t.Errorf("the newer copy was made anew: %+v", have)
	}
	if m.p.scrubDue() {
		t.Error("a scrub is due again")
	}
}

// clocked is a pool with LUN a whose clock is set by hand.
func clocked(t *testing.T) (m *model, at *time.Time) {
	m = scripted(t)
	m.check(m.p.Close(), "close")
	now := time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)
	m.o.Now, m.o.ScrubEvery = func() time.Time { return now }, 30*24*time.Hour
	m.open()
	return m, &now
}
