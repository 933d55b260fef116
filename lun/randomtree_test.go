package lun

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"lunar/cow"
	"lunar/store/crashfs"
)

var (
	treeSeed = flag.Uint64("tree.seed", 0, "seed of the random trees; 0 takes the default seeds")
	treeRuns = flag.Int("tree.runs", 6, "how many random trees are grown")
)

// letters is the content of a LUN or snapshot of a scattered story: a letter for
// each unit that was written.
type letters struct {
	size int64 // bytes
	at   map[int64]byte
}

func (l letters) clone() letters { return letters{l.size, maps.Clone(l.at)} }

// String draws it as story.content does.
func (l letters) String() string {
	s := &story{scatter: true}
	var b strings.Builder
	for u := int64(0); s.place(u)+s.unit() <= l.size; u++ {
		if c := l.at[u]; c != 0 {
			b.WriteByte(c)
		} else {
			b.WriteByte('.')
		}
	}
	return b.String()
}

// resized forgets what lies behind the new end.
func (l letters) resized(size int64) letters {
	s := &story{scatter: true}
	l = l.clone()
	maps.DeleteFunc(l.at, func(u int64, _ byte) bool { return s.place(u) >= size })
	l.size = size
	return l
}

// gardener grows a random tree: it makes up operations, and knows what all LUNs
// and snapshots hold after each, by plain maps.
type gardener struct {
	s      *story // for sizes and places only
	rng    *rand.Rand
	heads  map[string]letters
	snaps  map[string]map[string]letters // by LUN, by name
	names  int
	letter byte
}

func newGardener(seed uint64) *gardener {
	return &gardener{
		s: &story{scatter: true}, rng: rand.New(rand.NewPCG(seed, 7)), letter: 'a' - 1,
		heads: map[string]letters{}, snaps: map[string]map[string]letters{},
	}
}

func pickKey[V any](rng *rand.Rand, m map[string]V) string {
	if len(m) == 0 {
		return ""
	}
	return slices.Sorted(maps.Keys(m))[rng.IntN(len(m))]
}

func (g *gardener) lun() string            { return pickKey(g.rng, g.heads) }
func (g *gardener) snap(lun string) string { return pickKey(g.rng, g.snaps[lun]) }

func (g *gardener) has(lun, name string) bool {
	_, ok := g.snaps[lun][name]
	return ok
}

func (g *gardener) name(kind string) string {
	g.names++
	return fmt.Sprintf("%s%d", kind, g.names)
}

// step makes up an operation and does it to the model; "" if it found none.
func (g *gardener) step() string {
	lun := g.lun()
	snap := g.snap(lun)
	n := g.rng.IntN(100)
	switch {
	case lun == "" || n < 5:
		return g.create()
	case n < 38:
		return g.write(lun)
	case n < 56:
		return g.snapshot(lun)
	case n < 62:
		return g.resize(lun)
	case n < 72:
		return g.clone(lun, snap)
	case n < 76 && len(g.heads) > 1:
		delete(g.heads, lun)
		delete(g.snaps, lun)
		return "delete-lun " + lun + " force"
	case n < 82:
		return "reclaim"
	case n < 84:
		return "checkpoint"
	case n < 86:
		return "publish"
	case snap == "":
		return ""
	case n < 93:
		return g.rollback(lun, snap)
	}
	return g.delete(lun, snap)
}

func (g *gardener) create() string {
	if len(g.heads) >= 4 {
		return ""
	}
	name := g.name("lun")
	g.heads[name], g.snaps[name] = letters{g.s.size(9), map[int64]byte{}}, map[string]letters{}
	return "create " + name + " 9"
}

func (g *gardener) write(lun string) string {
	h := g.heads[lun].clone()
	g.heads[lun] = h
	u := int64(g.rng.IntN(len(h.String())))
	if g.rng.IntN(4) == 0 {
		delete(h.at, u)
		return fmt.Sprintf("trim %s %d+1", lun, u)
	}
	if g.letter++; g.letter > 'z' {
		g.letter = 'a'
	}
	h.at[u] = g.letter
	return fmt.Sprintf("write %s %d+1 %c", lun, u, g.letter)
}

func (g *gardener) snapshot(lun string) string {
	line := "snapshot"
	for _, l := range slices.Compact(slices.Sorted(slices.Values([]string{lun, g.lun(), g.lun()}))) {
		name := g.name("s")
		g.snaps[l][name] = g.heads[l]
		line += " " + l + "@" + name
	}
	return line
}

func (g *gardener) resize(lun string) string {
	n := int64(3 + g.rng.IntN(12))
	g.heads[lun] = g.heads[lun].resized(g.s.size(n))
	return fmt.Sprintf("resize %s %d force", lun, n)
}

func (g *gardener) clone(lun, snap string) string {
	if len(g.heads) >= 5 {
		return ""
	}
	name := g.name("clone")
	g.snaps[name] = map[string]letters{}
	if snap == "" || g.rng.IntN(2) == 0 {
		g.heads[name] = g.heads[lun]
		return "clone " + lun + " " + name
	}
	g.heads[name] = g.snaps[lun][snap]
	return "clone " + lun + "@" + snap + " " + name
}

func (g *gardener) rollback(lun, snap string) string {
	line := "rollback " + lun + "@" + snap
	if g.rng.IntN(2) == 0 {
		line += " discard"
	} else {
		// The clock stands still, so the second kept state of a LUN has a number.
		base := "before-rollback-" + storyBegin.Format(timeName)
		name := base
		for n := 2; g.has(lun, name); n++ {
			name = fmt.Sprintf("%s-%d", base, n)
		}
		g.snaps[lun][name] = g.heads[lun]
	}
	g.heads[lun] = g.snaps[lun][snap]
	return line
}

func (g *gardener) delete(lun, snap string) string {
	line := "delete"
	for _, name := range []string{snap, g.snap(lun), g.snap(lun)} {
		if g.has(lun, name) {
			delete(g.snaps[lun], name)
			line += " " + lun + "@" + name
		}
	}
	return line
}

// state draws all contents as the model has them.
func (g *gardener) state() string {
	out := map[string]string{}
	for lun, h := range g.heads {
		out[lun] = h.String()
		for name, x := range g.snaps[lun] {
			out[lun+"@"+name] = x.String()
		}
	}
	return fmt.Sprint(out)
}

// TestRandomTrees grows random trees on a pool that is crashed before the writes
// of each operation. What comes up must be the model's state before or after the
// operation, pass `pool check`, and still do so when all space has been given
// back. A seed repeats a run.
func TestRandomTrees(t *testing.T) {
	first, runs := max(*treeSeed, 1), *treeRuns
	switch {
	case *treeSeed != 0:
		runs = 1
	case raceEnabled:
		runs = 1
	}
	for seed := first; seed < first+uint64(runs); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			growTree(t, seed)
		})
	}
}

func growTree(t *testing.T, seed uint64) {
	g := newGardener(seed)
	var done []string
	defer func() {
		if t.Failed() {
			t.Logf("seed %d:\n%s", seed, strings.Join(done, "\n"))
		}
	}()
	power := &powerCutter{all: true, some: 1}
	s := crashStory(t, crashfs.New())
	s.open()
	defer func() { s.p.Abandon() }()
	crashes, ops := 0, 60
	if raceEnabled {
		ops = 20
	}
	for len(done) < ops {
		before := g.state()
		op := g.step()
		if op == "" {
			continue
		}
		done = append(done, op)
		after := g.state()
		power.arm(s.fs)
		said := s.line(strings.Fields(op))
		cuts := power.disarm()
		if strings.Contains(said, "error") {
			t.Fatalf("%s: %s", op, said)
		}
		if got := fmt.Sprint(s.contents()); got != after {
			t.Fatalf("after %s the pool holds\n%s\nwant\n%s", op, got, after)
		}
		for i, c := range cuts {
			if (i+len(done))%4 == 0 { // a quarter, to keep the time
				crashes++
				afterCrash(t, c, op, before, after)
			}
		}
	}
	s.check()
	foresee(t, g, s.p)
	t.Logf("%d operations, %d crashes", len(done), crashes)
}

// foresee compares what deleting random sets would free with the sum over their
// members, each looked at by itself.
func foresee(t *testing.T, g *gardener, p *Pool) {
	t.Helper()
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	p.takeAll()
	for range 30 {
		var ids []cow.VersionID
		for _, v := range p.tree.Versions() {
			if v.State == cow.Snapshot && g.rng.IntN(3) > 0 {
				ids = append(ids, v.ID)
			}
		}
		got, err := p.wouldFree(ids)
		must(t, err)
		before := release{p: p, gone: func(id cow.VersionID) bool { return p.tree.Version(id).State == cow.Deleted }}
		after := release{p: p, gone: func(id cow.VersionID) bool { return slices.Contains(ids, id) || before.gone(id) }}
		want := int64(0)
		for _, v := range p.tree.Versions() {
			for sign, r := range map[int64]*release{1: &after, -1: &before} {
				if v.State != cow.Alias && v.State != cow.Merging && r.gone(v.ID) {
					n, err := freedAlone(r, v.ID)
					must(t, err)
					want += sign * n
				}
			}
		}
		if got != want {
			t.Fatalf("deleting %v would free %d blocks, one by one it is %d", ids, got, want)
		}
	}
}

// freedAlone is what one gone version gives back, on a line too: what each version
// on the way to the one that is left replaced of it.
func freedAlone(r *release, id cow.VersionID) (n int64, err error) {
	if r.below(id).left != 1 {
		return r.freed(id)
	}
	t := r.p.tree
	r.p.overlay.mu.RLock()
	defer r.p.overlay.mu.RUnlock()
	for c := r.below(id).next; ; c = r.below(c).next {
		n += r.p.overlay.replaced.between(t.Group(c, nil), t.Group(id, nil))
		if !r.gone(c) {
			return n, nil
		}
	}
}

func afterCrash(t *testing.T, c powerCut, op, before, after string) {
	t.Helper()
	where := fmt.Sprintf("%q, crashed before %s", op, c.at)
	s := crashStory(t, c.fs)
	s.open()
	defer func() { s.p.Abandon() }()
	s.checkAt(where)
	got := fmt.Sprint(s.contents())
	if got != before && got != after {
		t.Fatalf("%s: the pool holds\n%s\nwant\n%s\nor\n%s", where, got, before, after)
	}
	s.settled()
}
