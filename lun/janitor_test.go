package lun

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestStir: the first change after a checkpoint wakes the loops of a pool at rest, and no later one does.
func TestStir(t *testing.T) {
	p := openT(t, vfs.NewMem(), Options{Manual: true})
	j := p.janitor
	woken := func(want int, what string) {
		t.Helper()
		for name, ch := range map[string]chan struct{}{"checkpoints": j.wake, "cleaner": j.clean, "chores": j.chore} {
			if len(ch) != want {
				t.Errorf("%s: %d words to the %s, want %d", what, len(ch), name, want)
			}
			for range len(ch) {
				<-ch
			}
		}
	}
	must(t, p.Checkpoint())
	woken(0, "open")
	newLUNT(t, p, CreateLUN{Name: "a", SizeBytes: 1 << 20})
	woken(1, "the LUN")
	v := vol(t, p, "a")
	defer v.Close()
	must(t, v.WriteAt(pat(1, 1), 0, false))
	woken(0, "a write after it")
	for range 2 {
		must(t, p.Checkpoint())
		must(t, v.WriteAt(pat(1, 1), 0, false))
		woken(1, "the write after a checkpoint")
	}
}

// TestBeat: at rest a loop looks around ever less often, and at once as before when there is something to do.
func TestBeat(t *testing.T) {
	b := newBeat()
	defer b.timer.Stop()
	for i, step := range []struct {
		busy bool
		want time.Duration
	}{{true, beatBusy}, {false, 2 * beatBusy}, {false, 4 * beatBusy}, {false, 8 * beatBusy}, {false, beatRest}, {false, beatRest}, {true, beatBusy}} {
		if b.next(step.busy); b.gap != step.want {
			t.Errorf("beat %d: %v, want %v", i, b.gap, step.want)
		}
	}
}
