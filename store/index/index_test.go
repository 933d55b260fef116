package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"
)

// toyMerge is a record of (slot, value) byte pairs in slot order; the newer one's slots hide the older one's.
func toyMerge(newer, older []byte) ([]byte, error) {
	if len(newer)%2 != 0 || len(older)%2 != 0 {
		return nil, errors.New("half a pair")
	}
	out := make([]byte, 0, len(newer)+len(older))
	for len(newer) > 0 || len(older) > 0 {
		switch {
		case len(older) == 0 || len(newer) > 0 && newer[0] < older[0]:
			out, newer = append(out, newer[:2]...), newer[2:]
		case len(newer) == 0 || older[0] < newer[0]:
			out, older = append(out, older[:2]...), older[2:]
		default:
			out, newer, older = append(out, newer[:2]...), newer[2:], older[2:]
		}
	}
	return out, nil
}

// noLeaks fails the test when it leaves goroutines behind. Those of abandoned databases of earlier tests do not count.
func noLeaks(t testing.TB) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

func openTest(t testing.TB, o Options) *Index {
	t.Helper()
	if o.Dir == "" {
		o.Dir = "index"
	}
	if o.MergePages == nil {
		o.MergePages = toyMerge
	}
	x, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return x
}

func commit(t testing.TB, x *Index, fill func(b *Batch)) {
	t.Helper()
	b := x.NewBatch()
	defer b.Close()
	fill(b)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
}

func wantNewest(t *testing.T, x *Index, branch, page, atMost, version uint64, rec string) {
	t.Helper()
	v, r, ok, err := x.NewestPage(branch, page, atMost, nil)
	if err != nil || ok != (rec != "") || v != version || string(r) != rec {
		t.Errorf("NewestPage(%d, %d, %d) = %d %q %v %v, want %d %q", branch, page, atMost, v, r, ok, err, version, rec)
	}
}

func TestPages(t *testing.T) {
	noLeaks(t)
	x := openTest(t, Options{FS: vfs.NewMem()})
	commit(t, x, func(b *Batch) {
		b.SetPage(1, 7, 10, []byte("a1"))
		b.SetPage(1, 7, 30, []byte("a3"))
		b.SetPage(1, 9, 20, []byte("b2"))
		b.SetPage(2, 7, 25, []byte("c2"))
		b.SetPage(2, 5, 25, []byte("c5"))
	})
	check := func() {
		t.Helper()
		wantNewest(t, x, 1, 7, 9, 0, "")
		wantNewest(t, x, 1, 7, 10, 10, "a1")
		wantNewest(t, x, 1, 7, 29, 10, "a1")
		wantNewest(t, x, 1, 7, ^uint64(0), 30, "a3")
		wantNewest(t, x, 1, 8, ^uint64(0), 0, "")
		wantNewest(t, x, 2, 7, 30, 25, "c2")
		wantNewest(t, x, 3, 7, 30, 0, "")
		if rec, ok, err := x.Page(1, 7, 10, nil); string(rec) != "a1" || !ok || err != nil {
			t.Errorf("Page: %q %v %v", rec, ok, err)
		}
		if rec, ok, err := x.Page(1, 7, 11, nil); rec != nil || ok || err != nil {
			t.Errorf("Page that is not there: %q %v %v", rec, ok, err)
		}
		for from, want := range map[uint64]uint64{0: 7, 7: 7, 8: 9, 9: 9} {
			if page, ok, err := nextPage(x, 1, from); page != want || !ok || err != nil {
				t.Errorf("NextPage(1, %d) = %d %v %v, want %d", from, page, ok, err, want)
			}
		}
		if page, ok, err := nextPage(x, 1, 10); ok || err != nil {
			t.Errorf("NextPage(1, 10) = %d %v, beyond the branch's last page", page, err)
		}
	}
	check()
	if err := errors.Join(x.Flush(), x.Check()); err != nil {
		t.Fatal(err)
	}
	check()
	if err := errors.Join(x.Compact(context.Background()), x.Check()); err != nil {
		t.Fatal(err)
	}
	check()
}

func TestListings(t *testing.T) {
	noLeaks(t)
	x := openTest(t, Options{FS: vfs.NewMem()})
	commit(t, x, func(b *Batch) {
		for page := uint64(0); page < 5; page++ {
			b.SetPage(1, page*100, 4, []byte{byte(page)})
		}
		b.SetPage(1, 100, 3, []byte("old"))
		b.SetPage(1, 100, ^uint64(0), []byte("new"))
		b.SetPage(1, ^uint64(0), 5, []byte("last"))
	})
	var pages []uint64
	collect := func(from uint64, most int) []uint64 {
		pages = nil
		err := x.Changes(1, 4, from, func(page uint64) bool {
			pages = append(pages, page)
			return len(pages) < most
		})
		if err != nil {
			t.Fatal(err)
		}
		return pages
	}
	for _, c := range []struct {
		from uint64
		most int
		want []uint64
	}{{0, 9, []uint64{0, 100, 200, 300, 400}}, {101, 9, []uint64{200, 300, 400}}, {0, 2, []uint64{0, 100}}, {401, 9, nil}} {
		if got := collect(c.from, c.most); !slices.Equal(got, c.want) {
			t.Errorf("Changes from %d, at most %d: %v, want %v", c.from, c.most, got, c.want)
		}
	}
	var got []string
	err := x.Versions(1, 100, func(version uint64, rec []byte) bool {
		got = append(got, fmt.Sprintf("%d:%q", version, rec))
		return true
	})
	want := []string{`18446744073709551615:"new"`, `4:"\x01"`, `3:"old"`}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Versions: %v %v, want %v", got, err, want)
	}
	if page, ok, err := nextPage(x, 1, 401); page != ^uint64(0) || !ok || err != nil {
		t.Errorf("NextPage up to the last page there can be: %d %v %v", page, ok, err)
	}
	n := 0
	if err := x.AllPages(func(_, _, _ uint64, _ []byte) error { n++; return nil }); err != nil || n != 8 {
		t.Errorf("AllPages: %d of 8, %v", n, err)
	}
	stop := errors.New("stop")
	if err := x.AllPages(func(_, _, _ uint64, _ []byte) error { return stop }); err != stop {
		t.Errorf("AllPages returned %v and not its callback's error", err)
	}
}

func TestPageReader(t *testing.T) {
	noLeaks(t)
	x := openTest(t, Options{FS: vfs.NewMem()})
	commit(t, x, func(b *Batch) {
		for v := uint64(1); v <= 3; v++ {
			b.SetPage(1, 7, v*10, []byte{byte(v)})
		}
		b.SetPage(1, 8, 1, []byte("next page"))
	})
	r := x.PageReader()
	defer r.Close()
	var versions []uint64
	v, _, ok, err := r.SeekNewest(1, 7, 29)
	for ; ok; v, _, ok, err = r.Next() {
		versions = append(versions, v)
	}
	if err != nil || !slices.Equal(versions, []uint64{20, 10}) {
		t.Errorf("versions %v %v, want 20 and 10", versions, err)
	}
	// It sees the index as it was.
	commit(t, x, func(b *Batch) { b.DeletePage(1, 7, 10) })
	if _, _, ok, err := r.SeekNewest(1, 7, 10); !ok || err != nil {
		t.Errorf("a reader lost what was there when it was made: %v %v", ok, err)
	}
	wantNewest(t, x, 1, 7, 10, 0, "")
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, _, _, err := r.SeekNewest(1, 7, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed reader says %v", err)
	}
}

func TestTables(t *testing.T) {
	noLeaks(t)
	fs := vfs.NewMem()
	x := openTest(t, Options{FS: fs})
	commit(t, x, func(b *Batch) {
		b.SetObject(1, 5, []byte("five"))
		b.SetObject(1, 2, []byte("two"))
		b.SetObject(2, 3, []byte("other"))
		b.SetObject(255, 9, []byte("last kind"))
		b.SetCounter(8, []byte("c"))
		b.SetSegment(4, []byte("s"))
		b.SetMeta("replay", []byte("p"))
		b.SetMeta("", []byte("no name"))
	})
	commit(t, x, func(b *Batch) {
		b.SetSegment(5, []byte("t"))
		b.SetCounter(9, nil)
		b.DeleteSegment(4)
		b.DeleteCounter(8)
		b.DeleteObject(1, 5)
	})
	var got []string
	list := func(what string) func(uint64, []byte) error {
		return func(id uint64, b []byte) error { got = append(got, fmt.Sprint(what, id, string(b))); return nil }
	}
	err := errors.Join(x.Objects(1, list("one ")), x.Objects(2, list("two ")), x.Objects(3, list("three ")),
		x.Objects(255, list("255 ")), x.Counters(list("counter ")), x.Segments(list("segment ")))
	want := []string{"one 2two", "two 3other", "255 9last kind", "counter 9", "segment 5t"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("listings %q, %v; want %q", got, err, want)
	}
	for name, want := range map[string]string{"replay": "p", "": "no name"} {
		if v, ok, err := x.Meta(name); string(v) != want || !ok || err != nil {
			t.Errorf("Meta(%q) = %q %v %v", name, v, ok, err)
		}
	}
	if _, ok, err := x.Meta("nothing"); ok || err != nil {
		t.Errorf("a meta key that is not there: %v %v", ok, err)
	}
	if x.DiskBytes() == 0 || x.Metrics() == "" {
		t.Error("no figures")
	}
}

func TestMergePages(t *testing.T) {
	noLeaks(t)
	x := openTest(t, Options{FS: vfs.NewMem()})
	settle := []func() error{
		func() error { return nil }, x.Flush, func() error { return x.Compact(context.Background()) },
	}
	for n, between := range settle {
		branch := uint64(n + 1)
		for _, delta := range []string{"a1c1", "b2", "a3", "d4", "c5"} {
			commit(t, x, func(b *Batch) { b.MergePage(branch, 7, 1, []byte(delta)) })
			if err := between(); err != nil {
				t.Fatal(err)
			}
		}
		wantNewest(t, x, branch, 7, 1, 1, "a3b2c5d4")
		// A whole record replaces, a deletion forgets: what came before never shines through.
		commit(t, x, func(b *Batch) { b.SetPage(branch, 7, 1, []byte("z9")) })
		if err := between(); err != nil {
			t.Fatal(err)
		}
		commit(t, x, func(b *Batch) { b.MergePage(branch, 7, 1, []byte("y8")) })
		wantNewest(t, x, branch, 7, 1, 1, "y8z9")
		commit(t, x, func(b *Batch) {
			b.DeletePage(branch, 7, 1)
			b.MergePage(branch, 7, 1, []byte("x7"))
		})
		wantNewest(t, x, branch, 7, 1, 1, "x7")
	}
	if err := errors.Join(x.Compact(context.Background()), x.Check()); err != nil {
		t.Fatal(err)
	}
	wantNewest(t, x, 3, 7, 1, 1, "x7")
}

// TestModel runs random batches, flushes, compactions and reopenings against a map.
func TestModel(t *testing.T) {
	noLeaks(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	model := map[at][]byte{}
	fs := vfs.NewMem()
	x := openTest(t, small(Options{FS: fs}))
	for step := range 150 {
		switch n := rng.IntN(100); {
		case n < 80:
			commit(t, x, func(b *Batch) {
				for range 1 + rng.IntN(40) {
					k := at{1 + rng.Uint64N(3), rng.Uint64N(20), 1 + rng.Uint64N(10)}
					rec := []byte{byte(rng.IntN(20)), byte(step)}
					switch rng.IntN(5) {
					case 0:
						b.SetPage(k.branch, k.page, k.version, rec)
						model[k] = rec
					case 1:
						b.DeletePage(k.branch, k.page, k.version)
						delete(model, k)
					default:
						b.MergePage(k.branch, k.page, k.version, rec)
						model[k], _ = toyMerge(rec, model[k])
					}
				}
			})
		case n < 90:
			if err := x.Flush(); err != nil {
				t.Fatal(err)
			}
		case n < 95:
			if err := x.Compact(context.Background()); err != nil {
				t.Fatal(err)
			}
		default:
			if err := x.Close(); err != nil {
				t.Fatal(err)
			}
			x = openTest(t, small(Options{FS: fs, MustExist: true}))
		}
		if step%10 == 0 {
			if err := x.Check(); err != nil {
				t.Fatal(err)
			}
		}
		if step%3 == 0 {
			compare(t, x, model, rng.Uint64N(12))
		}
	}
}

// at is where the model keeps a record.
type at struct{ branch, page, version uint64 }

// compare holds the whole index against the model, and one lookup of the newest version.
func compare(t *testing.T, x *Index, model map[at][]byte, atMost uint64) {
	t.Helper()
	n := 0
	err := x.AllPages(func(branch, page, version uint64, rec []byte) error {
		n++
		if want := model[at{branch, page, version}]; !bytes.Equal(rec, want) {
			t.Fatalf("%d %d %d is %x, want %x", branch, page, version, rec, want)
		}
		return nil
	})
	if err != nil || n != len(model) {
		t.Fatalf("%d pages of %d, %v", n, len(model), err)
	}
	var newest uint64
	for k := range model {
		if k.branch == 1 && k.page == 3 && k.version <= atMost {
			newest = max(newest, k.version)
		}
	}
	wantNewest(t, x, 1, 3, atMost, newest, string(model[at{1, 3, newest}]))
}

func TestAfterClose(t *testing.T) {
	noLeaks(t)
	x := openTest(t, Options{FS: vfs.NewMem()})
	used := x.NewBatch()
	used.SetMeta("a", nil)
	if err := used.Commit(); err != nil {
		t.Fatal(err)
	}
	used.SetMeta("b", nil)
	if err := used.Commit(); !errors.Is(err, ErrClosed) {
		t.Errorf("a batch that was committed says %v", err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	late := x.NewBatch()
	late.SetPage(1, 2, 3, nil)
	_, _, pageErr := x.Page(1, 2, 3, nil)
	_, _, _, newestErr := x.NewestPage(1, 2, 3, nil)
	_, _, nextErr := nextPage(x, 1, 0)
	for what, err := range map[string]error{
		"commit": late.Commit(), "page": pageErr, "newest": newestErr, "next": nextErr, "check": x.Check(), "flush": x.Flush(),
		"backup": x.Backup("b"), "changes": x.Changes(1, 1, 0, nil), "segments": x.Segments(nil),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
	if err := x.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// TestFilters: a branch that has nothing of a page is answered by a filter, also in the last level.
func TestFilters(t *testing.T) {
	noLeaks(t)
	x := openTest(t, Options{FS: vfs.NewMem()})
	commit(t, x, func(b *Batch) {
		for page := uint64(0); page < 2000; page += 2 {
			b.SetPage(1, page, 5, bytes.Repeat([]byte("ab"), 100))
		}
	})
	if err := x.Compact(context.Background()); err != nil {
		t.Fatal(err)
	}
	before := x.db.Metrics().Filter
	for page := uint64(1); page < 2000; page += 2 {
		wantNewest(t, x, 1, page, 9, 0, "")
	}
	after := x.db.Metrics().Filter
	if hits := after.Hits - before.Hits; hits < 950 {
		t.Errorf("filters answered %d of 1000 lookups of what is not there", hits)
	}
	for page := uint64(0); page < 2000; page += 2 {
		if _, _, ok, err := x.NewestPage(1, page, 9, nil); !ok || err != nil {
			t.Fatalf("page %d: %v %v", page, ok, err)
		}
	}
}

// BenchmarkCommit commits deltas of 1024 random pages, as a checkpoint does.
func BenchmarkCommit(b *testing.B) {
	x := openTest(b, Options{Dir: b.TempDir() + "/index"})
	delta := bytes.Repeat([]byte("ab"), 125)
	for b.Loop() {
		commit(b, x, func(batch *Batch) {
			for range 1024 {
				batch.MergePage(1, rand.Uint64N(1<<20), 1, delta)
			}
		})
	}
	b.ReportMetric(float64(b.N)*1024/b.Elapsed().Seconds(), "pages/s")
}

func BenchmarkNewestPage(b *testing.B) {
	x := openTest(b, Options{Dir: b.TempDir() + "/index"})
	const pages = 20000
	rec := bytes.Repeat([]byte("0123456789abcdef"), 64)
	for from := uint64(0); from < pages; from += 1000 {
		commit(b, x, func(batch *Batch) {
			for p := from; p < from+1000; p++ {
				batch.SetPage(1, p, 1, rec)
			}
		})
	}
	if err := x.Compact(context.Background()); err != nil {
		b.Fatal(err)
	}
	for name, branch := range map[string]uint64{"hit": 1, "miss": 2} {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, 0, 4096)
			b.ReportAllocs()
			for b.Loop() {
				_, _, ok, err := x.NewestPage(branch, rand.Uint64N(pages), 9, buf)
				if ok != (branch == 1) || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}

// nextPage is the first page from `from` on that has a record on a branch.
func nextPage(x *Index, branch, from uint64) (page uint64, ok bool, err error) {
	err = x.Pages(branch, from, ^uint64(0), func(num uint64) bool {
		page, ok = num, true
		return false
	})
	return page, ok, err
}
