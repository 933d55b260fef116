package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// merge measures how fast space comes back where there is much of it: snapshots that are each followed by writes to every
// page of the LUN, deleted one at a time and all at once.
func (v *versions) merge() (table, error) {
	const count = 8
	size := v.mapped
	writes := int(size / 4096 / 16) // 32 blocks of each page of 512
	t := table{
		Title: "Merge throughput",
		Notes: fmt.Sprintf("LUN of %s, all mapped, %d snapshots, each followed by %d random 4K writes (about %d in each page of 512 blocks). Pages: those of the deleted snapshots' change lists.",
			gib(size), count, writes, 32),
		Columns: []string{"deleted", "space is back after", "bytes freed", "freed", "pages", "index written"},
	}
	s, a, err := v.serve()
	if err != nil {
		return t, err
	}
	defer s.stop()
	if err := a.createLUN("d", size); err != nil {
		return t, err
	}
	w, err := attach(s, "d", 1)
	if err != nil {
		return t, err
	}
	defer w.Close()
	if err := w.spread(size); err != nil {
		return t, err
	}
	for i := range count {
		if _, err := a.snapshot("d", fmt.Sprintf("s%d", i)); err != nil {
			return t, err
		}
		if err := w.scatter(writes); err != nil {
			return t, err
		}
	}
	for _, step := range []struct {
		title string
		names []string
	}{{"the oldest", []string{"s0"}}, {"a middle one", []string{"s4"}}, {"the newest", []string{"s7"}}, {"the other five at once", []string{"s1", "s2", "s3", "s5", "s6"}}} {
		if err := v.mergeStep(&t, s, a, step.title, size, step.names); err != nil {
			return t, err
		}
	}
	return t, a.wantSnapshots("d", 0)
}

func (v *versions) mergeStep(t *table, s *server, a *admin, title string, size int64, names []string) error {
	if err := quiet(s); err != nil {
		return err
	}
	before, err := a.pool()
	if err != nil {
		return err
	}
	freed, took, err := a.remove("d", true, names...)
	if err != nil {
		return err
	}
	after, err := a.pool()
	if err != nil {
		return err
	}
	if given := before.Used - after.Used; given != freed {
		return fmt.Errorf("delete of %v: it said %d bytes, the pool has %d less", names, freed, given)
	}
	pages := float64(size>>21) * float64(len(names))
	t.sample(title+": space back", []float64{ms(took)})
	t.row(title, took.Round(time.Millisecond).String(), mib(freed), fmt.Sprintf("%.0f MB/s", float64(freed)/1e6/took.Seconds()),
		fmt.Sprintf("%.0f/s", pages/took.Seconds()), mib(after.Written-before.Written))
	fmt.Println("  ", t.Rows[len(t.Rows)-1])
	return nil
}

// index measures what the cleaner costs the index: bytes that the index writes for each byte that the cleaner moves.
func (v *versions) index() (table, error) {
	t := table{
		Title:   "Index bytes written for each byte that the cleaner moves",
		Notes:   fmt.Sprintf("LUN of 1 GiB written in random order, then %d random writes to each snapshot; as much of another LUN between them, which is deleted: half of every segment is dead. Then `pool clean`.", snapshotWrites),
		Columns: []string{"snapshots", "moved", "index written", "index / moved", "moved a second"},
	}
	of := map[int]float64{}
	counts := append([]int{0}, v.counts[1:]...)
	for _, n := range counts {
		s, a, err := v.serve("LUNAR_CLEANER_DEFRAGMENT=false") // it would move blocks as well
		if err != nil {
			return t, err
		}
		of[n], err = v.indexRun(&t, s, a, n, counts[len(counts)-1])
		if err = errors.Join(err, s.stop()); err != nil {
			return t, fmt.Errorf("%d snapshots: %w", n, err)
		}
	}
	for _, n := range counts[1:] {
		t.Claims = append(t.Claims, claim{Title: fmt.Sprintf("index written / moved: %d snapshots / none", n), Value: of[n] / of[0], Limit: 2})
	}
	return t, nil
}

func (v *versions) indexRun(t *table, s *server, a *admin, n, most int) (float64, error) {
	if err := interleaved(s, a, n, most); err != nil {
		return 0, err
	}
	// What the history left dead goes first, and a checkpoint takes what is still in memory.
	if err := errors.Join(a.clean(), quiet(s)); err != nil {
		return 0, err
	}
	before, err := a.pool()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := a.deleteLUN("noise"); err != nil {
		return 0, err
	}
	if err := a.clean(); err != nil {
		return 0, err
	}
	took := time.Since(began)
	if err := quiet(s); err != nil { // the index tidies up behind it
		return 0, err
	}
	after, err := a.pool()
	if err != nil {
		return 0, err
	}
	// What the janitor moved before, as soon as the other LUN was gone, counts as well.
	moved, written := after.Moved-before.Moved, after.Written-before.Written
	if moved < 64<<20 {
		return 0, fmt.Errorf("the cleaner moved only %d bytes: nothing is measured", moved)
	}
	ratio := float64(written) / float64(moved)
	t.sample(fmt.Sprintf("%d snapshots", n), []float64{ratio})
	t.row(fmt.Sprint(n), mib(moved), mib(written), fmt.Sprintf("%.4f", ratio), fmt.Sprintf("%.0f MB/s", float64(moved)/1e6/took.Seconds()))
	fmt.Println("  ", t.Rows[len(t.Rows)-1])
	return ratio, a.wantSnapshots("d", n)
}

// interleaved writes two LUNs side by side, so that every segment holds half of each; d gets n snapshots at the end of
// the same history.
func interleaved(s *server, a *admin, n, most int) error {
	const size = 1 << 30
	var writers []*writer
	for _, name := range []string{"d", "noise"} {
		if err := a.createLUN(name, size); err != nil {
			return err
		}
		w, err := attach(s, name, 5)
		if err != nil {
			return err
		}
		defer w.Disconnect()
		writers = append(writers, w)
	}
	// Every block once, in random order.
	order := writers[0].random.Perm(size / 4096)
	for chunk := range slices.Chunk(order, 64) {
		for _, w := range writers {
			if err := w.writeBlocks(chunk); err != nil {
				return err
			}
		}
	}
	for i := range most {
		if i >= most-n {
			if _, err := a.snapshot("d", fmt.Sprintf("s%d", i)); err != nil {
				return err
			}
		}
		for _, w := range writers {
			if err := w.scatter(snapshotWrites); err != nil {
				return err
			}
		}
	}
	return a.wantSnapshots("d", n)
}
