package main

import (
	"fmt"
	"time"
)

const cloneCount = 1000

// clones makes 1,000 clones of one snapshot through the API in one go and writes each of them in one block.
func (v *versions) clones() (table, error) {
	count := cloneCount
	if v.b.quick {
		count = 100
	}
	const size = 1 << 30
	t := table{
		Title: fmt.Sprintf("%d clones of one snapshot, each written in one block", count),
		Notes: "Image of 1 GiB, all mapped. Made one after the other over one connection to the API; then each is attached, written in one 4K block, flushed and detached. " +
			"Index: what is on disk for it after a clean stop, to the end of its log.",
		Columns: []string{"", "total", "each"},
	}
	s, a, err := v.serve()
	if err != nil {
		return t, err
	}
	defer s.stop()
	if err := a.createLUN("image", size); err != nil {
		return t, err
	}
	w, err := attach(s, "image", 1)
	if err != nil {
		return t, err
	}
	if err := w.spread(size); err != nil {
		return t, err
	}
	if err := detach(a, w, "image"); err != nil {
		return t, err
	}
	if _, err := a.snapshot("image", "gold"); err != nil {
		return t, err
	}
	if err := restart(s); err != nil {
		return t, err
	}
	before, memory, err := v.footing(s, a)
	if err != nil {
		return t, err
	}
	each := func(title string, total time.Duration) {
		m := t.sample(title, []float64{ms(total)})
		t.row(title, millis(m), millis(m/float64(count)))
	}
	made, written, err := cloneAll(s, a, count)
	if err != nil {
		return t, err
	}
	each("made", made)
	each("written (attach, write, flush, detach)", written)
	if err := v.cloneFooting(&t, s, a, count, before, memory); err != nil {
		return t, err
	}
	removed, err := v.removeClones(s, a, count)
	if err != nil {
		return t, err
	}
	each("deleted, until the space is back", removed)
	fmt.Println("  ", t.Rows)
	return t, nil
}

func cloneAll(s *server, a *admin, count int) (made, written time.Duration, err error) {
	began := time.Now()
	for i := range count {
		if _, err := a.clone("image", "gold", fmt.Sprintf("c%d", i)); err != nil {
			return 0, 0, err
		}
	}
	made, began = time.Since(began), time.Now()
	for i := range count {
		w, err := attach(s, fmt.Sprintf("c%d", i), uint64(i))
		if err != nil {
			return 0, 0, err
		}
		if err := w.Write(w.block, w.random.Int64N(w.Size/4096)*4096, false); err != nil {
			return 0, 0, err
		}
		if err := w.Flush(); err != nil {
			return 0, 0, err
		}
		w.Disconnect() // the server may have closed first
	}
	return made, time.Since(began), nil
}

// footing is what the index and the memory of the server take when nothing happens.
func (v *versions) footing(s *server, a *admin) (index, memory int64, err error) {
	if err := quiet(s); err != nil {
		return 0, 0, err
	}
	info, err := a.pool()
	return info.Index, rss(s), err
}

// cloneFooting reads what the clones take, proves that they are there, and restarts the server, which commits all.
func (v *versions) cloneFooting(t *table, s *server, a *admin, count int, before, memory int64) error {
	_, now, err := v.footing(s, a)
	if err != nil {
		return err
	}
	took, err := timed(func() error { return restart(s) })
	if err != nil {
		return err
	}
	index, again, err := v.footing(s, a)
	if err != nil {
		return err
	}
	var luns []struct{ Name string }
	listed, err := a.call("GET", "/luns", nil, &luns)
	if err != nil {
		return err
	}
	if len(luns) != count+1 {
		return fmt.Errorf("%d LUNs after %d clones", len(luns), count)
	}
	perKiB := func(n int64) string { return fmt.Sprintf("%.1f KiB", float64(n)/1024/float64(count)) }
	t.row("memory (RSS) more than before", mib(now-memory), perKiB(now-memory))
	t.row("memory (RSS) after a restart", mib(again-memory), perKiB(again-memory))
	t.row("index", mib(index-before), perKiB(index-before))
	t.row("`lun list` through the API", millis(ms(listed)), "")
	t.row("stop and start again", took.Round(time.Millisecond).String(), "")
	return nil
}

func timed(fn func() error) (time.Duration, error) {
	began := time.Now()
	err := fn()
	return time.Since(began), err
}

// removeClones deletes all clones and the image, and waits until nothing of them is left.
func (v *versions) removeClones(s *server, a *admin, count int) (time.Duration, error) {
	began := time.Now()
	for i := range count {
		if _, err := a.deleteLUN(fmt.Sprintf("c%d", i)); err != nil {
			return 0, err
		}
	}
	if _, err := a.deleteLUN("image"); err != nil {
		return 0, err
	}
	for {
		info, err := a.pool()
		if err != nil || info.Used == 0 {
			return time.Since(began), err
		}
		if time.Since(began) > 10*time.Minute {
			return 0, fmt.Errorf("10 minutes after the last delete %d bytes are still used", info.Used)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// restart stops the server and starts it on the same files.
func restart(s *server) error {
	if err := s.end(); err != nil {
		return err
	}
	return s.run(s.uri)
}
