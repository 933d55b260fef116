package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// tool runs a program that must succeed and says how long it took.
func tool(args ...string) (time.Duration, error) {
	began := time.Now()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	took := time.Since(began)
	if err != nil {
		return took, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return took, nil
}

// qcow is a qcow2 image, alone or the top of a chain.
type qcow struct {
	path   string
	size   int64
	random *rand.Rand
}

// newQcow makes an image with min(size, mapped) bytes written, spread over all of it.
func newQcow(path string, size, mapped int64) (*qcow, error) {
	if _, err := tool("qemu-img", "create", "-q", "-f", "qcow2", path, fmt.Sprint(size)); err != nil {
		return nil, err
	}
	const page = 2 << 20
	part := min(size, mapped) * page / size
	var commands strings.Builder
	for off := int64(0); off < size; off += page {
		fmt.Fprintf(&commands, "write -q -P 7 %d %d\n", off, part)
	}
	cmd := exec.Command("qemu-io", "-f", "qcow2", "-t", "writeback", path)
	cmd.Stdin = strings.NewReader(commands.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("qemu-io %s: %w\n%s", path, err, out)
	}
	return &qcow{path, size, rand.New(rand.NewPCG(1, 7))}, nil
}

// scatter writes n random blocks.
func (q *qcow) scatter(n int) error {
	var commands strings.Builder
	for range n {
		fmt.Fprintf(&commands, "aio_write -q -P 9 %d 4096\n", q.random.Int64N(q.size/4096)*4096)
	}
	commands.WriteString("aio_flush\n")
	cmd := exec.Command("qemu-io", "-f", "qcow2", "-t", "writeback", q.path)
	cmd.Stdin = strings.NewReader(commands.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-io %s: %w\n%s", q.path, err, out)
	}
	return nil
}

func (q *qcow) snapshots() (int, error) {
	out, err := exec.Command("qemu-img", "snapshot", "-l", q.path).Output()
	n := 0
	for _, line := range strings.Split(string(out), "\n") {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], "s") {
			n++
		}
	}
	return n, err
}

var qemuOps = []string{"nothing (list, status)", "create", "revert", "delete"}

// qemu compares lunar's commands with internal snapshots of qcow2: processes on both sides, the same sizes and history.
func (v *versions) qemu() (table, error) {
	reps := min(v.repeats, 7)
	t := table{
		Title: "Beside qcow2 with internal snapshots: commands",
		Notes: fmt.Sprintf("`lunar snapshot create`, `rollback --discard`, `snapshot delete` beside `qemu-img snapshot -c`, `-a`, `-d`, processes on both sides, in turn; milliseconds, median (largest) of %d. The same size, min(size, %s) mapped, %d random writes after each snapshot (qemu-io for qcow2, offline: qemu-img needs the image for itself).",
			reps, gib(v.mapped), snapshotWrites),
		Columns: []string{"size", "snapshots"},
	}
	for _, op := range qemuOps {
		t.Columns = append(t.Columns, "lunar "+op, "qcow2 "+op)
	}
	counts := v.counts[:2]
	for _, size := range v.sizes {
		if err := v.qemuSize(&t, size, counts, reps); err != nil {
			return t, fmt.Errorf("%s: %w", gib(size), err)
		}
	}
	return t, nil
}

func (v *versions) qemuSize(t *table, size int64, counts []int, reps int) error {
	q, err := newQcow(filepath.Join(v.b.top, "internal.qcow2"), size, v.mapped)
	if err != nil {
		return err
	}
	defer os.Remove(q.path)
	c := &state{size: size}
	if c.s, c.a, err = v.serve(); err != nil {
		return err
	}
	defer c.s.stop()
	if err := v.mapAndGrow(c); err != nil {
		return err
	}
	have := 0
	for _, count := range counts {
		if err := v.grow(c.a, c.w, "d", have, count); err != nil {
			return err
		}
		began := time.Now()
		for i := have; i < count; i++ {
			if _, err := tool("qemu-img", "snapshot", "-c", fmt.Sprintf("s%d", i), q.path); err != nil {
				return err
			}
			if err := q.scatter(snapshotWrites); err != nil {
				return err
			}
		}
		fmt.Printf("   %s: qcow2 has %d snapshots after %v\n", gib(size), count, time.Since(began).Round(time.Millisecond))
		have = count
		if err := v.qemuCell(t, c, q, count, reps); err != nil {
			return err
		}
	}
	return nil
}

// qemuCell runs the same commands on both in turn; both have the same snapshots afterwards as before.
func (v *versions) qemuCell(t *table, c *state, q *qcow, count, reps int) error {
	lunar := func(args ...string) (time.Duration, error) {
		return tool(append(append([]string{v.b.lunar}, args...), "--server", "unix://"+c.s.admin)...)
	}
	if err := detach(c.a, c.w, "d"); err != nil {
		return err
	}
	times := map[string][]float64{}
	for i := range reps {
		target := fmt.Sprintf("s%d", []int{0, count / 2, count - 1}[i%3])
		for _, step := range []struct {
			key    string
			ours   []string
			theirs []string
		}{
			{qemuOps[0], []string{"pool", "status"}, []string{"qemu-img", "snapshot", "-l", q.path}},
			{qemuOps[1], []string{"snapshot", "create", "d@x"}, []string{"qemu-img", "snapshot", "-c", "x", q.path}},
			{qemuOps[2], []string{"rollback", "d@" + target, "--discard"}, []string{"qemu-img", "snapshot", "-a", target, q.path}},
			{qemuOps[3], []string{"snapshot", "delete", "d@x"}, []string{"qemu-img", "snapshot", "-d", "x", q.path}},
		} {
			ours, err := lunar(step.ours...)
			if err != nil {
				return err
			}
			theirs, err := tool(step.theirs...)
			if err != nil {
				return err
			}
			times["lunar "+step.key] = append(times["lunar "+step.key], ms(ours))
			times["qcow2 "+step.key] = append(times["qcow2 "+step.key], ms(theirs))
		}
	}
	cells := []string{gib(c.size), fmt.Sprint(count)}
	for _, key := range t.Columns[2:] {
		m := t.sample(fmt.Sprintf("%s, %s, %d", key, gib(c.size), count), times[key])
		cells = append(cells, fmt.Sprintf("%.1f (%.0f)", m, largest(times[key])))
	}
	t.row(cells...)
	fmt.Println("  ", cells)
	n, err := q.snapshots()
	if err == nil && n != count {
		err = fmt.Errorf("the qcow2 image has %d snapshots, not %d", n, count)
	}
	var attached error
	c.w, attached = attach(c.s, "d", uint64(count))
	return errors.Join(err, attached, c.a.wantSnapshots("d", count))
}
