package main

import (
	"fmt"
	"slices"
)

func largest(list []float64) float64 { return slices.Max(list) }

// place is one of the ends of a chain of snapshots, or its middle.
type place struct {
	name string
	of   func(n, i int) int // the snapshot that the i-th delete takes out of n
}

var places = []place{
	{"oldest", func(n, i int) int { return i }},
	{"a middle one", func(n, i int) int { return n/2 + i }},
	{"newest", func(n, i int) int { return n - 1 - i }},
}

// deletes times the delete of the oldest, a middle and the newest snapshot: until the answer, and until the space is back.
func (v *versions) deletes() (table, error) {
	const mapped = 4 << 30
	reps := min(v.repeats, 7)
	t := table{
		Title: "Deleting the oldest, a middle and the newest snapshot",
		Notes: fmt.Sprintf("LUN of 4 GiB, all mapped, each snapshot followed by %d random 4K writes; median (largest) of %d deletes of one snapshot, without and with --wait. The oldest snapshot holds the 4 GiB image.",
			snapshotWrites, reps),
		Columns: []string{"snapshots", "deleted", "answer", "space is back after", "bytes freed", "index written"},
	}
	medians := map[string]float64{}
	for _, count := range v.counts[1:] {
		c := &state{size: min(mapped, v.mapped), count: count}
		var err error
		if c.s, c.a, err = v.serve(); err != nil {
			return t, err
		}
		err = v.mapAndGrow(c)
		for _, p := range places {
			if err == nil {
				err = v.deletesAt(&t, c, p, reps, medians)
			}
		}
		c.s.stop()
		if err != nil {
			return t, fmt.Errorf("%v: %w", c, err)
		}
	}
	few, many := v.counts[1], v.counts[len(v.counts)-1]
	for _, p := range places {
		if few != many {
			t.Claims = append(t.Claims, claim{Title: fmt.Sprintf("space back, %s: %d snapshots / %d", p.name, many, few), Limit: 2,
				Value: medians[fmt.Sprint(p.name, many)] / medians[fmt.Sprint(p.name, few)]})
		}
	}
	t.Claims = append(t.Claims, claim{Title: "space back: oldest (holds the image) / middle", Limit: 2,
		Value: medians[fmt.Sprint("oldest", many)] / medians[fmt.Sprint("a middle one", many)]})
	return t, nil
}

func (v *versions) deletesAt(t *table, c *state, p place, reps int, medians map[string]float64) error {
	var logical, waited, freed, written []float64
	for i := range 2 * reps {
		if err := quiet(c.s); err != nil {
			return err
		}
		before, err := c.a.pool()
		if err != nil {
			return err
		}
		wait := i%2 == 1
		n, took, err := c.a.remove("d", wait, fmt.Sprintf("s%d", p.of(c.count, i)))
		if err != nil {
			return err
		}
		if !wait {
			logical = append(logical, ms(took))
			continue
		}
		after, err := c.a.pool()
		if err != nil {
			return err
		}
		waited, freed, written = append(waited, ms(took)), append(freed, float64(n)), append(written, float64(after.Written-before.Written))
		if given := before.Used - after.Used; given != n {
			return fmt.Errorf("delete of %s: it said %d bytes, the pool has %d less", p.name, n, given)
		}
	}
	key := fmt.Sprintf("%s of %d: ", p.name, c.count)
	l, w := t.sample(key+"answer", logical), t.sample(key+"space back", waited)
	medians[fmt.Sprint(p.name, c.count)] = w
	t.row(fmt.Sprint(c.count), p.name, fmt.Sprintf("%.1f ms (%.1f)", l, largest(logical)), fmt.Sprintf("%.1f ms (%.1f)", w, largest(waited)),
		fmt.Sprintf("%.0f KiB", t.sample(key+"freed", freed)/1024), fmt.Sprintf("%.0f KiB", t.sample(key+"index written", written)/1024))
	fmt.Println("  ", t.Rows[len(t.Rows)-1])
	return nil
}
