package main

import (
	"fmt"
	"time"
)

// many takes 65,536 snapshots of one LUN, which must work: there is no built-in ceiling.
func (v *versions) many() (table, error) {
	count := 65536
	if v.b.quick {
		count = 4096
	}
	const size = 1 << 30
	t := table{
		Title:   fmt.Sprintf("%d snapshots of one LUN", count),
		Notes:   fmt.Sprintf("1 GiB, all mapped, each snapshot followed by %d random 4K writes; through the API on one connection.", manyWrites),
		Columns: []string{"", "time", "each"},
	}
	s, a, err := v.serve("LUNAR_LOG_LEVEL=warn")
	if err != nil {
		return t, err
	}
	defer s.stop()
	m := &manyRun{t: &t, s: s, a: a, count: count}
	if err := a.createLUN("d", size); err != nil {
		return t, err
	}
	w, err := attach(s, "d", 1)
	if err != nil {
		return t, err
	}
	if err := w.spread(size); err != nil {
		return t, err
	}
	if err := m.create(w); err != nil {
		return t, err
	}
	if err := detach(a, w, "d"); err != nil {
		return t, err
	}
	for _, step := range []func() error{m.lists, m.restart, m.removeOnes, m.removeHalf, m.removeLUN} {
		if err := step(); err != nil {
			fmt.Print(t.markdown()) // what is known so far
			return t, err
		}
	}
	return t, nil
}

const manyWrites = 4

type manyRun struct {
	t     *table
	s     *server
	a     *admin
	count int
}

func (m *manyRun) row(title string, took time.Duration, n int) {
	m.t.sample(title, []float64{ms(took)})
	each := ""
	if n > 1 {
		each = millis(ms(took) / float64(n))
	}
	m.t.row(title, millis(ms(took)), each)
	fmt.Printf("   %s: %v %s\n", title, took.Round(time.Millisecond), each)
}

// create takes the snapshots, with a row for each doubling of their number.
func (m *manyRun) create(w *writer) error {
	began, from := time.Now(), 0
	for i := range m.count {
		if _, err := m.a.snapshot("d", fmt.Sprintf("s%d", i)); err != nil {
			return err
		}
		if err := w.scatter(manyWrites); err != nil {
			return err
		}
		if n := i + 1; n >= 4096 && n&(n-1) == 0 || n == m.count {
			m.row(fmt.Sprintf("create, %d to %d", from, n), time.Since(began), n-from)
			began, from = time.Now(), n
		}
	}
	m.t.row("memory (RSS)", mib(rss(m.s)), "")
	return m.a.wantSnapshots("d", m.count)
}

func (m *manyRun) lists() error {
	if err := quiet(m.s); err != nil {
		return err
	}
	var list []struct{ Name string }
	took, err := m.a.call("GET", "/snapshots?lun=d", nil, &list)
	if err != nil {
		return err
	}
	if len(list) != m.count {
		return fmt.Errorf("the list has %d snapshots of %d", len(list), m.count)
	}
	m.row("list all", took, 1)
	if took, err = m.a.call("GET", fmt.Sprintf("/luns/d/snapshots/s%d", m.count/2), nil, nil); err != nil {
		return err
	}
	m.row("show one", took, 1)
	took, err = m.a.call("GET", "/status", nil, nil)
	m.row("status", took, 1)
	return err
}

func (m *manyRun) restart() error {
	began := time.Now()
	if err := m.s.end(); err != nil {
		return err
	}
	m.row("stop", time.Since(began), 1)
	began = time.Now()
	if err := m.s.run(m.s.uri); err != nil {
		return err
	}
	m.row("start, until it is ready", time.Since(began), 1)
	m.a = newAdmin(m.s.admin)
	if err := m.a.wantSnapshots("d", m.count); err != nil {
		return err
	}
	pool, err := m.a.pool()
	m.t.row("index", mib(pool.Index), fmt.Sprintf("%.2f KiB", float64(pool.Index)/1024/float64(m.count)))
	m.t.row("memory (RSS) after the start", mib(rss(m.s)), "")
	return err
}

func (m *manyRun) removeOnes() error {
	for i, place := range []string{"oldest", "a middle one", "newest"} {
		n := []int{0, m.count / 2, m.count - 1}[i]
		_, took, err := m.a.remove("d", true, fmt.Sprintf("s%d", n))
		if err != nil {
			return err
		}
		m.row("delete --wait, "+place, took, 1)
	}
	return m.a.wantSnapshots("d", m.count-3)
}

// removeHalf deletes every other snapshot in one request.
func (m *manyRun) removeHalf() error {
	var names []string
	for i := 2; i < m.count-2; i += 2 {
		if i != m.count/2 {
			names = append(names, fmt.Sprintf("s%d", i))
		}
	}
	freed, took, err := m.a.remove("d", true, names...)
	if err != nil {
		return err
	}
	m.row(fmt.Sprintf("delete --wait of %d at once (%s freed)", len(names), mib(freed)), took, len(names))
	return m.a.wantSnapshots("d", m.count-3-len(names))
}

func (m *manyRun) removeLUN() error {
	info, err := m.a.lun("d")
	if err != nil {
		return err
	}
	began := time.Now()
	took, err := m.a.deleteLUN("d")
	if err != nil {
		return err
	}
	m.row(fmt.Sprintf("delete the LUN with its %d snapshots, answer", info.Snapshots), took, 1)
	for {
		pool, err := m.a.pool()
		if err != nil {
			return err
		}
		if pool.Used == 0 {
			break
		}
		if time.Since(began) > 20*time.Minute {
			return fmt.Errorf("20 minutes after the delete %d bytes are still used", pool.Used)
		}
		time.Sleep(10 * time.Millisecond)
	}
	m.row("delete the LUN, until the space is back", time.Since(began), 1)
	return nil
}
