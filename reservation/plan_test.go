package reservation

import (
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestPlanRecycle(t *testing.T) {
	snaps := func(frees ...int64) (c []Candidate) {
		for i, f := range frees {
			c = append(c, Candidate{ID: uint64(i + 1), Created: int64(i), Frees: f})
		}
		return c
	}
	with := func(c []Candidate, change func(c []Candidate)) []Candidate { change(c); return c }
	for _, c := range []struct {
		name  string
		snaps []Candidate
		need  int64
		drop  []uint64
		frees int64
	}{
		{"nothing needed", snaps(5, 5), 0, nil, 0},
		{"nothing there", nil, 5, nil, 0},
		{"oldest first, no more than needed", snaps(5, 5, 5), 6, []uint64{1, 2}, 10},
		{"exactly enough", snaps(5, 5, 5), 10, []uint64{1, 2}, 10},
		{"all there is, and it is too little", snaps(5, 5), 100, []uint64{1, 2}, 10},
		{"those that free nothing stay", snaps(0, 5, 0, 5, 0), 100, []uint64{2, 4}, 10},
		{"protected, attached and cloned stay", with(snaps(5, 5, 5, 5), func(c []Candidate) {
			c[0].Protected, c[1].Attached, c[2].HasClones = true, true, true
		}), 5, []uint64{4}, 5},
		{"age decides, not the order of the list", with(snaps(1, 2, 3), func(c []Candidate) {
			c[0].Created, c[2].Created = 9, -9
		}), 4, []uint64{3, 2}, 5},
		{"shared blocks need all that hold them", with(snaps(0, 0, 0, 9, 9), func(c []Candidate) { c[3].With = []uint64{2, 3} }), 5, []uint64{2, 3, 4}, 9},
		{"a group can take in what was passed over", with(snaps(0, 5, 100), func(c []Candidate) { c[2].With = []uint64{1} }), 50, []uint64{1, 2, 3}, 105},
		{"protected ones are not part of a group", with(snaps(0, 0, 9), func(c []Candidate) {
			c[1].Protected, c[2].With = true, []uint64{2}
		}), 5, []uint64{3}, 9},
	} {
		before := slices.Clone(c.snaps)
		drop, frees := PlanRecycle(c.snaps, c.need, NoLimit)
		if !slices.Equal(drop, c.drop) || frees != c.frees {
			t.Errorf("%s: drops %v for %d, want %v for %d", c.name, drop, frees, c.drop, c.frees)
		}
		if !reflect.DeepEqual(before, c.snaps) {
			t.Errorf("%s: it changed its input", c.name)
		}
	}
}

// With a bound the plan stops before the snapshot that would give more.
func TestPlanRecycleAtMost(t *testing.T) {
	snaps := []Candidate{{ID: 1, Created: 1, Frees: 5}, {ID: 2, Created: 2, Frees: 5}, {ID: 3, Created: 3, Frees: 1}}
	for _, c := range []struct {
		most  int64
		drop  []uint64
		frees int64
	}{{4, nil, 0}, {5, []uint64{1}, 5}, {9, []uint64{1}, 5}, {10, []uint64{1, 2}, 10}, {100, []uint64{1, 2, 3}, 11}} {
		if drop, frees := PlanRecycle(snaps, 100, c.most); !slices.Equal(drop, c.drop) || frees != c.frees {
			t.Errorf("at most %d: drops %v for %d, want %v for %d", c.most, drop, frees, c.drop, c.frees)
		}
	}
}

func TestPlanTakeBack(t *testing.T) {
	area := func(id uint64, area, reserve, coming int64, onFull OnFull) Entry {
		return Entry{ID: id, Account: Account{Area: area, Reserve: reserve, OnFull: onFull}, Coming: coming}
	}
	all := []Entry{area(1, 50, 20, 0, Recycle), area(2, 100, 0, 0, Freeze), area(3, 60, 20, 0, Recycle), area(4, 10, 20, 0, Recycle), area(5, 90, 0, 85, Recycle)}
	for _, c := range []struct {
		name   string
		need   int64
		except uint64
		want   []Loan
	}{
		{"nothing needed", 0, 0, nil},
		{"the one that borrowed most", 10, 0, []Loan{{3, 10}}},
		{"not below its reserve, then the next", 50, 0, []Loan{{3, 40}, {1, 10}}},
		{"all there is", 1000, 0, []Loan{{3, 40}, {1, 30}, {5, 5}}},
		{"not from the one that asks", 10, 3, []Loan{{1, 10}}},
	} {
		if got := PlanTakeBack(all, c.need, c.except); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// A level is reported once: use that wavers around a mark does not cross it again and again.
func TestFollow(t *testing.T) {
	level := LevelOK
	for i, c := range []struct {
		used int64
		want Level
	}{{79, LevelOK}, {80, LevelWarning}, {79, LevelWarning}, {81, LevelWarning}, {78, LevelWarning}, {77, LevelOK}, {79, LevelOK},
		{95, LevelCritical}, {94, LevelCritical}, {92, LevelWarning}, {94, LevelWarning}, {95, LevelCritical}, {10, LevelOK}} {
		if level = Follow(level, c.used, 100); level != c.want {
			t.Errorf("step %d, %d %% used: %v, want %v", i, c.used, level, c.want)
		}
	}
	if got := Follow(LevelCritical, 100, NoLimit); got != LevelOK {
		t.Errorf("without a limit: %v", got)
	}
}

func TestFullIn(t *testing.T) {
	for _, c := range []struct {
		rates       []float64
		used, limit int64
		days        float64
		ok          bool
	}{
		{[]float64{10, 50}, 100, 200, 2, true},
		{[]float64{50, 10}, 100, 200, 2, true},
		{[]float64{-5, 0}, 100, 200, 0, false},
		{nil, 100, 200, 0, false},
		{[]float64{math.NaN()}, 100, 200, 0, false},
		{[]float64{math.NaN(), 10}, 100, 200, 10, true},
		{[]float64{10}, 100, NoLimit, 0, false},
		{[]float64{0}, 200, 200, 0, true},
		{nil, 300, 200, 0, true},
	} {
		if days, ok := FullIn(c.rates, c.used, c.limit); days != c.days || ok != c.ok {
			t.Errorf("FullIn(%v, %d, %d) = %v %v", c.rates, c.used, c.limit, days, ok)
		}
	}
}

func TestWarn(t *testing.T) {
	for _, c := range []struct {
		used, limit int64
		want        Level
	}{{0, 100, LevelOK}, {79, 100, LevelOK}, {80, 100, LevelWarning}, {94, 100, LevelWarning}, {95, 100, LevelCritical},
		{200, 100, LevelCritical}, {1 << 40, NoLimit, LevelOK}, {0, 0, LevelOK}, {1, 0, LevelCritical}} {
		if got := Warn(c.used, c.limit); got != c.want {
			t.Errorf("Warn(%d, %d) = %v, want %v", c.used, c.limit, got, c.want)
		}
	}
}

func TestHuman(t *testing.T) {
	for blocks, want := range map[int64]string{0: "0 B", 1: "4 KiB", 255: "1020 KiB", 256: "1 MiB", 384: "1536 KiB", 1 << 18: "1 GiB",
		-(1 << 28): "-1 TiB", 1<<18 + 1: "1024.00 MiB", 10<<18 + 1: "10.00 GiB", 1200 << 18: "1200 GiB", 12345 << 18: "12.06 TiB",
		1 << 40: "4 PiB", maxBlocks: "16 EiB"} {
		if got := Human(blocks); got != want {
			t.Errorf("Human(%d) = %q, want %q", blocks, got, want)
		}
	}
}

func TestExplainUnsettled(t *testing.T) {
	l := New(1<<20, nil)
	if err := l.Add(7, Account{Size: 1 << 18, Limit: NoLimit}); err != nil {
		t.Fatal(err)
	}
	l.Admit(7, 256, 256)
	l.SetPending(512)
	text := strings.Join(l.Explain(7), "\n")
	for _, want := range []string{"writes under way take at most 2 MiB more", "takes 0 B + 0 B + 2 MiB = 2 MiB", "+ 2 MiB on their way back"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if l.Explain(8) != nil {
		t.Error("it explains a LUN that is not there")
	}
}
