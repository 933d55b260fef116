package integration

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"lunar/integration/harness"
)

// TestQuotaChanges: reserves, limits, sizes of an area and the pool's capacity change up and down while a thick and a thin LUN
// are overwritten and snapshots taken. No write fails; an area above a limit that was lowered does not grow; a promise that does not
// fit is refused and changes nothing.
func TestQuotaChanges(t *testing.T) {
	onSmall(t, func(t *testing.T, fs *harness.SmallFS) {
		length := 6 * time.Second
		if harness.Long() {
			length = 5 * time.Minute
		}
		s := fs.Serve("--capacity", "1400M")
		s.Lunar("lun", "create", "thin", "192M", "--limit", "160M")
		s.Lunar("lun", "create", "thick", "192M", "--thick", "--reserve", "10%", "--limit", "80%")
		q := &quotas{t: t, s: s, random: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 3)), last: map[string]reservation{}}
		var loads []*overwriter
		for i, name := range []string{"thin", "thick"} {
			c := s.Dial(name)
			if written := fillUp(t, c, 0, 192*mib, 1); written != 192*mib {
				t.Fatalf("%s took %d bytes", name, written)
			}
			load := &overwriter{conn: c, blocks: 192 * mib / 4096, seed: uint64(i)}
			load.start(4)
			loads = append(loads, load)
		}
		q.changeFor(length)
		for i, load := range loads {
			if err := load.end(); err != nil {
				t.Errorf("LUN %d: %v\n%s", i, err, s.Log())
			}
			t.Logf("LUN %d: %d MiB written, slowest answer %v", i, load.written.Load()/mib, time.Duration(load.slowest.Load()).Round(time.Millisecond))
		}
		t.Logf("%d changes made, %d refused, %d snapshots taken", q.made, q.refused, q.taken)
		if q.made < 10 || q.refused == 0 {
			t.Errorf("hardly anything was changed, or nothing was refused")
		}
		// An area that is above a lowered limit comes down to it.
		s.Lunar("reservation", "set", "thin", "--reserve", "0", "--limit", "16M")
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			var is reservation
			s.JSON(&is, "reservation", "show", "thin")
			if is.Area.UsedBytes <= 16*mib {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("the area holds %d bytes 20 s after its limit went to 16 MiB", is.Area.UsedBytes)
				break
			}
		}
	})
}

type quotas struct {
	t      *testing.T
	s      *harness.Server
	random *rand.Rand
	last   map[string]reservation // at the last look

	made, refused, taken int
}

func (q *quotas) changeFor(length time.Duration) {
	q.t.Helper()
	for ends := time.Now().Add(length); time.Now().Before(ends) && !q.t.Failed(); {
		name := []string{"thin", "thick"}[q.random.IntN(2)]
		switch q.random.IntN(10) {
		case 0:
			q.set("reservation", "set", name, "--reserve", q.amount(0, 60))
		case 1, 2:
			q.set("reservation", "set", name, "--limit", q.amount(60, 160))
		case 3:
			q.set("reservation", "set", name, "--reserve", "900M", "--limit", "none") // cannot fit
		case 4:
			q.set("reservation", "set", name, "--reserve", fmt.Sprintf("%d%%", q.random.IntN(30)), "--limit", "none")
		case 5, 6:
			q.resize()
		default:
			q.taken++
			q.s.Lunar("snapshot", "create", fmt.Sprintf("%s@q%d", name, q.taken))
		}
		q.look()
	}
}

// resize makes the pool larger or smaller, now and then smaller than what was promised.
func (q *quotas) resize() {
	q.t.Helper()
	before := q.s.Pool().CapacityBytes
	mebibytes := int64(300 + q.random.IntN(1200))
	r := q.s.Run("pool", "resize", fmt.Sprintf("%dM", mebibytes))
	now := q.s.Pool().CapacityBytes
	if r.Status == 0 {
		q.made++
		if now != mebibytes*mib {
			q.t.Errorf("resized to %d MiB, the pool says %d bytes", mebibytes, now)
		}
		return
	}
	q.refused++
	r.MustRefuse(q.t)
	if now != before {
		q.t.Errorf("a refused resize changed the capacity from %d to %d bytes", before, now)
	}
}

// amount is so many of the LUN's 192 MiB, in percent or bytes.
func (q *quotas) amount(least, most int) string {
	n := least + q.random.IntN(most-least)
	if q.random.IntN(2) == 0 {
		return fmt.Sprintf("%d%%", n)
	}
	return fmt.Sprintf("%dM", n*192/100)
}

// set changes something; a refusal must change nothing.
func (q *quotas) set(args ...string) {
	q.t.Helper()
	var before, after reservation
	q.s.JSON(&before, "reservation", "show", args[2])
	r := q.s.Run(args...)
	if r.Status == 0 {
		q.made++
		return
	}
	q.refused++
	r.MustRefuse(q.t)
	q.s.JSON(&after, "reservation", "show", args[2])
	if before.Area.ReserveBytes != after.Area.ReserveBytes || limitOf(before) != limitOf(after) {
		q.t.Errorf("%v was refused and changed the area from %+v to %+v", args, before.Area, after.Area)
	}
}

func limitOf(r reservation) int64 {
	if r.Area.LimitBytes == nil {
		return -1
	}
	return *r.Area.LimitBytes
}

// look checks that no area grows while it is above its limit.
func (q *quotas) look() {
	q.t.Helper()
	for _, name := range []string{"thin", "thick"} {
		var is reservation
		q.s.JSON(&is, "reservation", "show", name)
		was, seen := q.last[name]
		if limit := limitOf(is); seen && limit >= 0 && limit == limitOf(was) && is.Area.UsedBytes > max(limit, was.Area.UsedBytes) {
			q.t.Errorf("%s: the area grew from %d to %d bytes with a limit of %d", name, was.Area.UsedBytes, is.Area.UsedBytes, limit)
		}
		q.last[name] = is
	}
}
