package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	chainLength = 64
	chainSize   = 1 << 30
)

// chain compares a LUN with 64 snapshots with a chain of 64 overlays, each of them beside itself without.
func (v *versions) chain() (table, error) {
	t := table{
		Title: fmt.Sprintf("Beside an external chain of %d qcow2 overlays", chainLength),
		Notes: fmt.Sprintf("1 GiB, all mapped, %d snapshots or overlays (`qemu-img create -b`), each followed by %d random 4K writes; fio over NBD (lunar, qemu-nbd), %d s, %d interleaved repeats; x: ratio to the same server without snapshots.",
			chainLength, snapshotWrites, v.b.seconds, v.pairs),
		Columns: []string{"", "lunar, none", fmt.Sprintf("lunar, %d snapshots", chainLength), "qcow2, none", fmt.Sprintf("qcow2, chain of %d", chainLength)},
	}
	s, a, err := v.serve()
	if err != nil {
		return t, err
	}
	defer s.stop()
	var created []float64
	for _, n := range []int{0, chainLength} {
		if err := v.headLUN(s, a, n, chainLength); err != nil {
			return t, err
		}
	}
	targets := []*server{{uri: export(s, headName(0)), cmd: s.cmd}, {uri: export(s, headName(chainLength)), cmd: s.cmd}}
	alone, err := newQcow(filepath.Join(v.b.top, "alone.qcow2"), chainSize, chainSize)
	if err != nil {
		return t, err
	}
	defer os.Remove(alone.path)
	if err := alone.scatter(chainLength * snapshotWrites); err != nil {
		return t, err
	}
	top, files, created, err := v.overlays()
	defer func() {
		for _, file := range files {
			os.Remove(file)
		}
	}()
	if err != nil {
		return t, err
	}
	for _, q := range []*qcow{alone, top} {
		n, err := v.qemuNBD(q)
		if err != nil {
			return t, err
		}
		defer n.stop()
		targets = append(targets, n)
	}
	if err := quiet(s); err != nil {
		return t, err
	}
	for _, r := range headRows {
		if err := v.chainRow(&t, r, targets); err != nil {
			return t, err
		}
	}
	m := t.sample("create -b", created)
	t.row("create (process)", "", "", "", fmt.Sprintf("%.1f ms (%.0f)", m, largest(created)))
	return t, v.chainMerge(&t, targets[3], files)
}

// overlays makes a base image and a chain on top of it. files are from the base on.
func (v *versions) overlays() (top *qcow, files []string, created []float64, err error) {
	base := filepath.Join(v.b.top, "base.qcow2")
	if top, err = newQcow(base, chainSize, chainSize); err != nil {
		return nil, []string{base}, nil, err
	}
	files = []string{base}
	for i := range chainLength {
		next := filepath.Join(v.b.top, fmt.Sprintf("overlay%02d.qcow2", i))
		took, err := tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", top.path, next)
		if err != nil {
			return nil, files, nil, err
		}
		files, created = append(files, next), append(created, ms(took))
		top.path = next
		if err := top.scatter(snapshotWrites); err != nil {
			return nil, files, nil, err
		}
	}
	return top, files, created, nil
}

// qemuNBD serves an image.
func (v *versions) qemuNBD(q *qcow) (*server, error) {
	dir, err := os.MkdirTemp(v.b.top, "s")
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "s")
	s := &server{name: "qemu-nbd", dir: dir, uri: "nbd+unix:///?socket=" + socket}
	s.args = []string{"qemu-nbd", "-t", "-e", "16", "-k", socket, "-f", "qcow2", "--cache=writeback", "--aio=io_uring", q.path}
	v.b.show(s.args)
	return s, s.run(socket)
}

func (v *versions) chainRow(t *table, r row, targets []*server) error {
	samples := make([][]sample, len(targets))
	for i := range v.pairs {
		for k := range targets {
			k = (k + i) % len(targets)
			m, err := measure(r, targets[k], v.b, i+1)
			if err != nil {
				return err
			}
			samples[k] = append(samples[k], m)
		}
	}
	cells := []string{r.Title}
	for k := range targets {
		m := t.sample(fmt.Sprintf("%s, %s", r.ID, t.Columns[k+1]), each(samples[k], rate))
		text := fmt.Sprintf("%.0f/s", m)
		if r.large() {
			text = fmt.Sprintf("%.0f MB/s", m/1e6)
		}
		if k%2 == 1 {
			text += fmt.Sprintf(" x%v", ratios(samples[k], samples[k-1], rate))
		}
		cells = append(cells, text)
	}
	t.row(cells...)
	fmt.Println("  ", cells)
	return nil
}

// chainMerge takes the oldest overlay out of the chain, as qemu does that offline: its data goes into the base, the next
// one is put on the base. lunar's delete is in a table of its own.
func (v *versions) chainMerge(t *table, n *server, files []string) error {
	if err := n.stop(); err != nil {
		return err
	}
	began := time.Now()
	if _, err := tool("qemu-img", "commit", "-q", "-f", "qcow2", files[1]); err != nil {
		return err
	}
	if _, err := tool("qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", files[0], files[2]); err != nil {
		return err
	}
	took := time.Since(began)
	t.sample("commit of the oldest overlay", []float64{ms(took)})
	t.row("delete the oldest (commit, rebase -u; processes)", "", "", "", millis(ms(took)))
	return nil
}
