package lun

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// orderTree is a small tree and what is to be deleted of it, in every order.
type orderTree struct {
	name   string
	build  string   // lines of a story
	delete []string // LUN@NAME, or LUN with all that it has
}

var orderTrees = []orderTree{
	{"chain", `
		create vol 9
		write vol 0+6 a
		snapshot vol@a
		write vol 1+4 b
		snapshot vol@b
		write vol 2+2 c
		trim vol 5+1
		snapshot vol@c
		write vol 3+4 d
		snapshot vol@d
		write vol 0+2 e
		write vol 8+1 e`,
		[]string{"vol@a", "vol@b", "vol@c", "vol@d"}},
	{"chain with one that stays", `
		create vol 9
		write vol 0+6 a
		snapshot vol@a
		write vol 1+4 b
		snapshot vol@b
		write vol 2+2 c
		snapshot vol@stays
		trim vol 0+9
		write vol 3+4 d
		snapshot vol@d
		write vol 0+2 e
		snapshot vol@e`,
		[]string{"vol@a", "vol@b", "vol@d", "vol@e"}},
	{"branches after rollbacks", `
		create vol 9
		write vol 0+6 a
		snapshot vol@a
		write vol 1+4 b
		snapshot vol@b
		rollback vol@a discard
		write vol 4+3 c
		snapshot vol@c
		rollback vol@b discard
		write vol 3+1 d
		trim vol 0+1
		snapshot vol@d
		write vol 3+3 e`,
		[]string{"vol@a", "vol@b", "vol@c", "vol@d"}},
	{"clones of clones", `
		create vol 9
		write vol 0+6 a
		snapshot vol@a
		write vol 0+1 v
		clone vol@a one
		write one 1+3 b
		snapshot one@s
		write one 2+1 o
		clone one@s two
		write two 3+4 c
		trim two 0+1`,
		[]string{"vol@a", "vol", "one@s", "one"}},
	{"golden image", `
		create gold 9
		write gold 0+6 a
		snapshot gold@v
		write gold 1+3 b
		clone gold now
		clone gold@v one
		clone gold@v two
		write gold 2+1 g
		write now 3+2 n
		write one 4+3 c
		write two 0+9 d`,
		[]string{"gold@v", "gold", "one", "two"}},
	{"clones that stay", `
		create gold 9
		write gold 0+6 a
		snapshot gold@v
		write gold 1+3 b
		snapshot gold@w
		clone gold@v one
		clone gold@w two
		clone gold@v three
		write one 4+3 c
		snapshot one@s
		write one 0+2 e
		write two 0+2 d
		write three 3+3 f`,
		[]string{"gold@v", "gold@w", "gold", "one@s", "three"}},
}

// TestDeleteInEveryOrder deletes the parts of small trees in every order, with
// and without giving space back in between, and with a crash now and then. What
// stays must read as before at each step; in the end content and accounts are the same in
// every order.
func TestDeleteInEveryOrder(t *testing.T) {
	for _, tree := range orderTrees {
		t.Run(strings.ReplaceAll(tree.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			want, first := "", ""
			n := 0
			permutations(tree.delete, func(order []string) {
				if n++; raceEnabled && n%7 != 1 {
					return
				}
				got := tree.run(t, order, n)
				if want == "" {
					want, first = got, strings.Join(order, " ")
				}
				if got != want {
					t.Fatalf("after deleting %s:\n%s\nafter deleting %s it was:\n%s", strings.Join(order, " "), got, first, want)
				}
			})
			if raceEnabled {
				n /= 7
			}
			t.Logf("%d orders end like this:\n%s", n, want)
		})
	}
}

// run deletes in one order; how says what happens in between.
func (o orderTree) run(t *testing.T, order []string, how int) string {
	s := newStory(t)
	s.scatter = true
	defer func() { s.p.Abandon() }()
	do := func(format string, args ...any) {
		t.Helper()
		line := fmt.Sprintf(format, args...)
		if said := s.line(strings.Fields(line)); strings.Contains(said, "error") {
			t.Fatalf("deleting %v: %s: %s", order, line, said)
		}
	}
	for line := range strings.Lines(o.build) {
		do("%s", line)
	}
	before := s.contents()
	for i, name := range order {
		lun, snap, _ := strings.Cut(name, "@")
		switch {
		case snap == "":
			do("delete-lun %s force", lun)
		case before[name] != "" && s.contents()[name] != "": // else it went with its LUN
			do("delete %s", name)
		}
		switch (how + i) % 4 {
		case 0:
			do("reclaim")
		case 1:
			do("crash")
		case 2:
			do("publish")
		}
		for name, got := range s.contents() {
			if got != before[name] {
				t.Fatalf("deleting %v: after %s, %s holds %s, want %s", order, order[i], name, got, before[name])
			}
		}
	}
	do("reclaim")
	s.check()
	return s.view()
}

// contents reads all LUNs and snapshots.
func (s *story) contents() map[string]string {
	out := map[string]string{}
	for _, l := range s.p.LUNs() {
		out[l.Name] = s.content(l.Name, "")
		list, err := s.p.Snapshots(l.Name)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, x := range list {
			out[x.LUN+"@"+x.Name] = s.content(x.LUN, x.Name)
		}
	}
	return out
}

// permutations calls fn with every order of list.
func permutations(list []string, fn func([]string)) {
	var place func(done, rest []string)
	place = func(done, rest []string) {
		if len(rest) == 0 {
			fn(done)
			return
		}
		for i := range rest {
			place(append(slices.Clone(done), rest[i]), slices.Delete(slices.Clone(rest), i, i+1))
		}
	}
	place(nil, list)
}
