package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// The operations of the logical part.
const (
	opNothing  = "empty request"
	opServer   = "create, in the server"
	opCreate   = "snapshot create"
	opRollback = "rollback"
	opClone    = "clone"
	opRecord   = "one log record"
	opDelete   = "snapshot delete"
)

var logicalOps = []string{opNothing, opServer, opCreate, opRollback, opClone, opRecord, opDelete}

// state is a server with one LUN of some size with some number of snapshots: a cell of the logical table.
type state struct {
	size  int64
	count int
	s     *server
	a     *admin
	w     *writer
	times map[string][]float64 // by operation, in milliseconds
	extra []string             // snapshots that the measurement took
	kept  []string             // snapshots that its rollbacks kept
}

func (c *state) String() string { return fmt.Sprintf("%s, %d snapshots", gib(c.size), c.count) }

func (c *state) note(op string, took time.Duration) { c.times[op] = append(c.times[op], ms(took)) }

// logical times snapshot create, rollback, clone and delete over sizes of LUNs and numbers of snapshots: neither may
// matter. Every state has a server of its own, since it must not matter what else is in the pool either.
func (v *versions) logical() (table, error) {
	t := table{
		Title: "Snapshot create, rollback, clone, delete by LUN size and number of snapshots",
		Notes: fmt.Sprintf("Milliseconds until the API's answer on one connection, fdatasync included; median (largest) of %d, the states in turn. min(size, %s) mapped, spread over all pages of the LUN; each snapshot is followed by %d random 4K writes. "+
			"Create: while the client is attached and has just written. Clone: of a middle snapshot. Rollback: to the oldest, a middle and the newest snapshot in turn, %d random writes before each, the state before is kept. Delete: of one of the newest; its merge comes later (see below). One log record: a new description of the LUN, just before each delete.",
			v.repeats, gib(v.mapped), snapshotWrites, snapshotWrites),
		Columns: append([]string{"LUN", "snapshots"}, logicalOps...),
	}
	var states []*state
	defer func() {
		for _, c := range states {
			c.s.stop()
		}
	}()
	for _, size := range v.sizes {
		for _, count := range v.counts {
			c := &state{size: size, count: count, times: map[string][]float64{}}
			var err error
			if c.s, c.a, err = v.serve(); err != nil {
				return t, err
			}
			states = append(states, c)
			if err := v.mapAndGrow(c); err != nil {
				return t, fmt.Errorf("%v: %w", c, err)
			}
		}
	}
	if err := v.logicalRounds(states); err != nil {
		return t, err
	}
	medians := map[string]float64{}
	for _, c := range states {
		cells := []string{gib(c.size), fmt.Sprint(c.count)}
		for _, op := range logicalOps {
			key := fmt.Sprintf("%s, %v", op, c)
			medians[key] = t.sample(key, c.times[op])
			cells = append(cells, fmt.Sprintf("%.2f (%.1f)", medians[key], slices.Max(c.times[op])))
		}
		t.row(cells...)
	}
	for _, op := range []string{opServer, opCreate, opRollback, opClone, opDelete} {
		t.Claims = append(t.Claims, v.growth(op, medians)...)
	}
	return t, nil
}

// growth compares the extremes of both axes.
func (v *versions) growth(op string, medians map[string]float64) []claim {
	few, many := v.counts[0], v.counts[len(v.counts)-1]
	small, large := v.sizes[0], v.sizes[len(v.sizes)-1]
	of := func(size int64, count int) float64 {
		return medians[fmt.Sprintf("%s, %v", op, &state{size: size, count: count})]
	}
	return []claim{
		{Title: fmt.Sprintf("%s: %d snapshots / %d (%s)", op, many, few, gib(large)), Value: of(large, many) / of(large, few), Limit: 2},
		{Title: fmt.Sprintf("%s: %s / %s (%d snapshots)", op, gib(large), gib(small), many), Value: of(large, many) / of(small, many), Limit: 2},
	}
}

func (v *versions) mapAndGrow(c *state) (err error) {
	if err := c.a.createLUN("d", c.size); err != nil {
		return err
	}
	if c.w, err = attach(c.s, "d", 1); err != nil {
		return err
	}
	began := time.Now()
	if err := c.w.spread(min(c.size, v.mapped)); err != nil {
		return err
	}
	fmt.Printf("   %s: mapped in %v\n", gib(c.size), time.Since(began).Round(time.Millisecond))
	return v.grow(c.a, c.w, "d", 0, c.count)
}

// logicalRounds measures every operation in all states in turn, so that a slow moment of the machine meets them all.
// It leaves the numbers of snapshots as they were, and proves it.
func (v *versions) logicalRounds(states []*state) error {
	steps := []func(*state, int) error{(*state).createOne, (*state).cloneOne, (*state).rollbackOne, (*state).removeOne}
	for _, step := range steps {
		if err := quietAll(states); err != nil {
			return err
		}
		for i := range v.repeats {
			for k := range states {
				c := states[(k+i)%len(states)]
				if err := step(c, i); err != nil {
					return fmt.Errorf("%v: %w", c, err)
				}
			}
		}
	}
	for _, c := range states {
		if err := c.tidy(v.repeats); err != nil {
			return fmt.Errorf("%v: %w", c, err)
		}
	}
	return nil
}

func quietAll(states []*state) error {
	var errs []error
	for _, c := range states {
		errs = append(errs, quiet(c.s))
	}
	return errors.Join(errs...)
}

func (c *state) createOne(i int) error {
	took, err := c.a.call("GET", "/clients", nil, nil)
	if err != nil {
		return err
	}
	c.note(opNothing, took)
	if err := c.w.scatter(snapshotWrites); err != nil {
		return err
	}
	name := fmt.Sprintf("m%d", i)
	if took, err = c.a.snapshot("d", name); err != nil {
		return err
	}
	c.note(opCreate, took)
	c.extra = append(c.extra, name)
	server, err := c.a.serverTimes()
	if server["d@"+name] == 0 && err == nil {
		err = fmt.Errorf("the events do not say how long %s took", name)
	}
	c.note(opServer, server["d@"+name])
	return err
}

func (c *state) cloneOne(i int) error {
	took, err := c.a.clone("d", fmt.Sprintf("s%d", c.count/2), fmt.Sprintf("c%d", i))
	c.note(opClone, took)
	return err
}

// rollbackOne goes to the oldest, a middle and the newest snapshot in turn.
func (c *state) rollbackOne(i int) (err error) {
	if c.w == nil {
		if c.w, err = attach(c.s, "d", uint64(i)+99); err != nil {
			return err
		}
	}
	err = errors.Join(c.w.scatter(snapshotWrites), detach(c.a, c.w, "d"))
	if c.w = nil; err != nil {
		return err
	}
	kept, took, err := c.a.rollback("d", fmt.Sprintf("s%d", []int{0, c.count / 2, c.count - 1}[i%3]))
	c.note(opRollback, took)
	c.kept = append(c.kept, kept)
	return err
}

// removeOne deletes one of the newest snapshots, and waits until the space is back before the next state's turn. A change
// of the description before it is the measure of what one durable record costs at that moment.
func (c *state) removeOne(i int) error {
	took, err := c.a.call("PATCH", "/luns/d", object{"description": fmt.Sprint(i)}, nil)
	if err != nil {
		return err
	}
	c.note(opRecord, took)
	_, took, err = c.a.remove("d", false, c.extra[i])
	c.note(opDelete, took)
	return errors.Join(err, quiet(c.s))
}

func (c *state) tidy(clones int) error {
	if _, _, err := c.a.remove("d", true, c.kept...); err != nil {
		return err
	}
	for i := range clones {
		if _, err := c.a.deleteLUN(fmt.Sprintf("c%d", i)); err != nil {
			return err
		}
	}
	return c.a.wantSnapshots("d", c.count)
}
