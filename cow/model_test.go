package cow

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// family is one page of a whole tree: encoded records as an index would hold
// them, a page for each LUN's head, and what each version must read as. It does
// to a page what package lun does, without locks and log.
type family struct {
	*script
	r       *rand.Rand
	records map[VersionID][]byte
	pages   map[LUNID]*Page
	want    map[VersionID]*[PageBlocks]uint64 // by canonical version; a snapshot's never changes
	live    map[uint64]bool                   // locations that somebody pays for
	next    uint64
	names   int
}

func newFamily(t testing.TB, seed uint64) *family {
	return &family{script: newScript(t), r: rand.New(rand.NewPCG(seed, 77)), records: map[VersionID][]byte{},
		pages: map[LUNID]*Page{}, want: map[VersionID]*[PageBlocks]uint64{}, live: map[uint64]bool{}, next: 1}
}

func (f *family) decode(id VersionID) (r Record, ok bool) {
	b, ok := f.records[id]
	if ok {
		if err := r.Decode(b); err != nil {
			f.t.Fatal(err)
		}
	}
	return r, ok
}

// load builds the page of a version from the records on its path: all of them,
// or only those that serve a hint of the newest one.
func (f *family) load(id VersionID, byHints bool) *Page {
	p := newPage(id)
	var path []VersionID // with records, newest first
	for _, step := range f.tree.Path(id, nil) {
		for v := step.Limit; v > 0; v-- {
			if x := f.tree.Version(v); x != nil && x.Branch == step.Branch && f.records[v] != nil {
				path = append(path, v)
			}
		}
	}
	hints := Hints{}
	for n, v := range path {
		r, _ := f.decode(v)
		older := VersionID(0)
		if n+1 < len(path) {
			older = path[n+1]
		}
		if n > 0 && byHints && !hints.Serve(v, older) {
			continue
		}
		p.Fill(v, &r)
		if v == id {
			p.Loaded(true, r.Applied)
		}
		if n == 0 {
			hints = HintsOf(r.Hints)
			hints.Serve(v, older)
		}
	}
	return p
}

// encode takes what a page holds unsaved.
func (f *family) encode(p *Page) {
	if !p.Dirty {
		return
	}
	var r Record
	p.Encode(&r)
	// A hole hides nothing in a version without a parent, once nothing is being
	// merged into it any more.
	if v := f.tree.Version(p.Head); r.Full && v.Parent == 0 && !f.tree.Joining(v.ID) {
		r.DropHoles()
	}
	for _, id := range p.Absorbed {
		delete(f.records, id)
	}
	p.Absorbed = p.Absorbed[:0]
	b := r.Append(nil)
	if older, ok := f.records[p.Head]; ok && !r.Full {
		var err error
		if b, err = MergeRecords(b, older); err != nil {
			f.t.Fatal(err)
		}
	} else if !ok && !r.Full {
		f.t.Fatalf("a delta of version %d over nothing", p.Head)
	}
	f.records[p.Head] = b
}

func (f *family) encodeAll() {
	for _, p := range f.pages {
		f.encode(p)
	}
}

func (f *family) page(l *LUN) *Page {
	p := f.pages[l.ID]
	if p == nil {
		f.encodeAll() // a clone reads through other heads' branches
		p = f.load(l.Head, true)
		f.pages[l.ID] = p
	}
	return p
}

// write sets some blocks of a head to new data, to zeroes or to holes.
func (f *family) write(l *LUN) {
	p := f.page(l)
	if p.Head != l.Head {
		f.encode(p)
		p.Advance(l.Head)
	}
	if !p.Has {
		p.Absorb(func(id VersionID) VersionID {
			if x := f.tree.Version(id); x == nil || x.LUN != l.ID {
				return id
			}
			return f.tree.Canonical(id)
		})
	}
	at, n, kind := f.r.IntN(64), 1+f.r.IntN(12), f.r.IntN(4)
	for i := at; i < at+n; i++ {
		loc := uint64(0)
		switch {
		case kind == 1:
			loc = Zero
		case kind > 1:
			loc = f.next
			f.next++
			f.live[loc] = true
		case p.At(i).Loc == 0:
			continue
		}
		old := p.Set(i, loc, uint32(loc))
		if old.Owner == p.Head {
			delete(f.live, old.Loc)
		}
		f.want[l.Head][i] = loc
	}
}

// step does one random thing.
func (f *family) step() {
	luns := f.tree.LUNs()
	if len(luns) == 0 {
		f.names++
		f.line([]string{"create", fmt.Sprint("lun", f.names)})
		f.want[f.tree.LUNs()[0].Head] = new([PageBlocks]uint64)
		return
	}
	l := luns[f.r.IntN(len(luns))]
	snaps := f.tree.Snapshots(l.ID)
	f.names++
	name := fmt.Sprint("n", f.names)
	switch k := f.r.IntN(20); {
	case k < 9:
		f.write(l)
	case k < 12 && len(snaps) < 6:
		f.line([]string{"snapshot", l.Name + "@" + name})
		f.follow(l.ID, l.Head)
	case k == 12 && len(snaps) > 0:
		f.rollback(l, snaps[f.r.IntN(len(snaps))], name)
	case k == 13 && len(luns) < 4:
		f.clone(l, snaps, name)
	case k < 17 && len(snaps) > 0:
		f.line([]string{"delete", l.Name + "@" + snaps[f.r.IntN(len(snaps))].Name})
	case k == 17 && f.r.IntN(4) == 0:
		f.encodeAll()
		delete(f.pages, l.ID)
		f.line([]string{"delete-lun", l.Name})
	case k == 18:
		f.encodeAll()
		clear(f.pages) // the cache loses everything
	case k == 19:
		f.reclaimOnce()
	}
}

// follow gives a new head the content of the version that it was made from.
func (f *family) follow(id LUNID, from VersionID) {
	c := *f.want[from]
	f.want[f.tree.LUN(id).Head] = &c
}

func (f *family) rollback(l *LUN, to *Version, name string) {
	f.encodeAll()
	args := []string{"rollback", l.Name + "@" + to.Name}
	if f.r.IntN(2) == 0 {
		args = append(args, "keep="+name)
	}
	f.line(args)
	delete(f.pages, l.ID)
	f.follow(l.ID, to.ID)
}

func (f *family) clone(l *LUN, snaps []*Version, name string) {
	from, src := l.Name, l.Head
	if len(snaps) > 0 && f.r.IntN(2) == 0 {
		s := snaps[f.r.IntN(len(snaps))]
		from, src = l.Name+"@"+s.Name, s.ID
	}
	f.line([]string{"clone", from, name})
	f.follow(f.lun(name).ID, src)
	if src == l.Head {
		f.follow(l.ID, src)
	}
}

// reclaimOnce does one round as package lun does, with writes in between.
func (f *family) reclaimOnce() {
	plan := f.tree.PlanReclaim(func(VersionID) bool { return false })
	f.apply(f.tree.PlanMerge(plan.Merges...), nil)
	for range f.r.IntN(3) {
		for _, l := range f.tree.LUNs() {
			f.write(l)
		}
	}
	f.check("while merging")
	f.encodeAll()
	for into, sources := range f.tree.Merging() {
		f.join(into, sources)
		f.check("after a join")
	}
	for _, src := range sorted(f.tree.Merging()) {
		f.apply(f.tree.PlanMerged(src, f.empty()), nil)
		f.check("after the end of a merge")
	}
	for _, id := range plan.Free {
		for _, g := range f.tree.Group(id, nil) {
			r, _ := f.decode(g)
			f.giveBack(&r, Bits{})
			delete(f.records, g)
		}
	}
	f.apply(f.tree.PlanFreed(plan.Free), nil)
	f.check("after a round")
}

func (f *family) giveBack(r *Record, kept Bits) {
	for i := range PageBlocks {
		if r.Set.Has(i) && !kept.Has(i) {
			delete(f.live, r.Loc[i])
		}
	}
}

// empty lists, at times, the merged ids under which nothing is stored.
func (f *family) empty() (out []VersionID) {
	for _, v := range f.tree.Versions() {
		if (v.State == Alias || v.State == Merging) && f.records[v.ID] == nil && f.r.IntN(3) > 0 {
			out = append(out, v.ID)
		}
	}
	return out
}

// join is the merge of one page, as lun.joinPage does it: under the newest id
// that has a record, or under the version that all go into.
func (f *family) join(into VersionID, sources []VersionID) {
	rewrite := f.tree.Version(sources[0]).LUN != f.tree.Version(into).LUN || f.r.IntN(2) == 0
	var top VersionID
	var rec Record
	have := f.tree.Group(into, nil) // newest first: that is the order of the path
	for _, id := range have {
		r, ok := f.decode(id)
		if !ok {
			continue
		}
		if top == 0 {
			top, rec = id, r
			if rewrite {
				top = into
			}
			rec.Full = true
			delete(f.records, id)
			f.records[top] = rec.Append(nil)
			f.rename(id, top)
			continue
		}
		kept := rec.Join(&r)
		f.giveBack(&r, kept)
		delete(f.records, id)
		f.records[top] = rec.Append(nil)
		f.rename(id, top)
	}
}

func (f *family) rename(from, to VersionID) {
	for _, p := range f.pages {
		p.Rename(from, to)
		if p.Head == to {
			p.Loaded(true, p.Applied)
		}
	}
}

// check compares every version that a user sees with what it must read as, read
// in three ways, and what is stored with what is paid for.
func (f *family) check(when string) {
	f.t.Helper()
	for _, p := range f.pages {
		var before, after [PageBlocks]Entry
		for i := range before {
			before[i] = p.At(i)
		}
		f.encode(p)
		for i := range after {
			after[i] = p.At(i)
		}
		if before != after {
			f.t.Fatalf("%s: encoding changed the page of %d", when, p.Head)
		}
	}
	for _, v := range f.tree.Versions() {
		if v.State != Head && v.State != Snapshot {
			continue
		}
		views := map[string]*Page{"all records": f.load(v.ID, false), "hinted records": f.load(v.ID, true)}
		if v.State == Head && f.pages[v.LUN] != nil {
			views["the cached page"] = f.pages[v.LUN]
		}
		for how, p := range views {
			for i, want := range f.want[v.ID] {
				if got, crc := p.Lookup(i); got != want || Stored(got) && crc != uint32(got) {
					f.t.Fatalf("%s: version %d block %d by %s is at %d, want %d\n%s", when, v.ID, i, how, got, want, draw(f.tree))
				}
			}
		}
	}
	stored := map[uint64]bool{}
	for id := range f.records {
		r, _ := f.decode(id)
		for i := range PageBlocks {
			if r.Set.Has(i) && Stored(r.Loc[i]) {
				if stored[r.Loc[i]] {
					f.t.Fatalf("%s: location %d is stored twice", when, r.Loc[i])
				}
				stored[r.Loc[i]] = true
			}
		}
	}
	for loc := range f.live {
		if !stored[loc] {
			f.t.Fatalf("%s: location %d is paid for, and nobody stores it: lost space\n%s", when, loc, draw(f.tree))
		}
	}
	for loc := range stored {
		if !f.live[loc] {
			f.t.Fatalf("%s: location %d is stored and was given back: it would be used anew\n%s", when, loc, draw(f.tree))
		}
	}
}

// TestPagesOfATree: random writes and structural changes on random trees, with
// loads, evictions and merges in between.
func TestPagesOfATree(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			f := newFamily(t, seed)
			for n := range 120 {
				f.step()
				f.check(fmt.Sprint("step ", n))
			}
			for _, l := range slices.Clone(f.tree.LUNs()) {
				f.encodeAll()
				delete(f.pages, l.ID)
				f.line([]string{"delete-lun", l.Name})
			}
			for !f.tree.PlanReclaim(func(VersionID) bool { return false }).Empty() {
				f.reclaimOnce()
			}
			if len(f.records) > 0 || len(f.live) > 0 || draw(f.tree) != "empty\n" || len(f.tree.Branches()) > 0 {
				t.Fatalf("left over: %d records, %d blocks, %d branches\n%s", len(f.records), len(f.live), len(f.tree.Branches()), draw(f.tree))
			}
		})
	}
}
