package lun

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"lunar/cow"
)

func goOn(time.Duration) bool { return false }

// runsOf counts the runs of a LUN's blocks: places where a block is not stored behind the one before it.
func runsOf(t *testing.T, p *Pool, lun string, blocks int) (runs int) {
	t.Helper()
	v := vol(t, p, lun)
	defer v.Close()
	last := uint64(0)
	for at := 0; at < blocks; at += cow.PageBlocks {
		pg, err := v.view.get(uint64(at / cow.PageBlocks))
		must(t, err)
		must(t, pg.lock())
		for i := range cow.PageBlocks {
			loc, _ := pg.Lookup(i)
			if loc != last+1 {
				runs++
			}
			last = loc
		}
		pg.mu.Unlock()
		pg.unpin()
	}
	return runs
}

// scatteredPool has a LUN whose blocks were written at random, some of which snapshots hold.
func scatteredPool(t *testing.T, fs vfs.FS, blocks int) (*Pool, []byte) {
	p := openT(t, fs, Options{Manual: true})
	newLUNT(t, p, CreateLUN{Name: "a", SizeBytes: int64(blocks) * blockSize})
	v := vol(t, p, "a")
	defer v.Close()
	want := make([]byte, blocks)
	random := rand.New(rand.NewPCG(7, 7))
	write := func(block, n int, b byte) {
		must(t, v.WriteAt(pat(n, b), int64(block)*blockSize, false))
		for i := range n {
			want[block+i] = b
		}
	}
	for at := 0; at < blocks; at += 64 {
		write(at, 64, 1)
	}
	for i := range 12 {
		if i%3 == 0 {
			snapT(t, p, "a", string(rune('p'+i)))
		}
		for range blocks / 16 {
			write(random.IntN(blocks), 1, byte(i+2))
		}
	}
	must(t, v.Flush())
	return p, want
}

func expectAll(t *testing.T, p *Pool, want []byte, what string) {
	t.Helper()
	v := vol(t, p, "a")
	defer v.Close()
	b := make([]byte, len(want)*blockSize)
	must(t, v.ReadAt(b, 0))
	for i, w := range want {
		if b[i*blockSize] != w || b[(i+1)*blockSize-1] != w {
			t.Fatalf("%s: block %d holds %d, want %d", what, i, b[i*blockSize], w)
		}
	}
	report, err := p.Check(bg, nil)
	if err != nil || !report.OK {
		t.Fatalf("%s: check: %+v, %v", what, report, err)
	}
}

// Blocks that random writes scattered are put together, whoever owns them; then there is nothing left to do. A crash before
// the checkpoint, after it, and a clean stop lose nothing.
func TestDefragment(t *testing.T) {
	const blocks = 4 * cow.PageBlocks
	fs := vfs.NewCrashableMem()
	p, want := scatteredPool(t, fs, blocks)
	before := runsOf(t, p, "a", blocks)
	must(t, p.Checkpoint())
	must(t, p.defragment(goOn))
	after := runsOf(t, p, "a", blocks)
	t.Logf("%d runs before, %d after; %d blocks moved", before, after, p.moved.Load())
	if before < blocks/3 || after > blocks/40 {
		t.Errorf("%d runs of %d blocks before, %d after", before, blocks, after)
	}
	crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0})
	expectAll(t, p, want, "put together")
	must(t, p.Checkpoint())
	moved := p.moved.Load()
	must(t, p.defragment(goOn))
	if n := p.moved.Load() - moved; n != 0 || p.defrag.pages() != 0 {
		t.Errorf("%d blocks were moved again, %d pages are left to be looked at", n, p.defrag.pages())
	}
	must(t, p.Close())
	p = openT(t, fs, Options{Manual: true})
	expectAll(t, p, want, "after a restart")
	if n := runsOf(t, p, "a", blocks); n != after {
		t.Errorf("%d runs after a restart, %d before", n, after)
	}
	must(t, p.Close())
	p = openT(t, crashed, Options{Manual: true})
	expectAll(t, p, want, "after a crash before the checkpoint")
	if n := runsOf(t, p, "a", blocks); n != before {
		t.Errorf("%d runs after a crash before the checkpoint, want %d as before", n, before)
	}
	// What was loaded since is looked at, though nothing was written.
	must(t, p.defragment(goOn))
	if n := runsOf(t, p, "a", blocks); n > blocks/40 {
		t.Errorf("%d runs when it was done again", n)
	}
}

// With little room, or switched off, nothing is moved.
func TestDefragmentKeepsItsBounds(t *testing.T) {
	const blocks = 4 * cow.PageBlocks
	p, want := scatteredPool(t, vfs.NewMem(), blocks)
	p.defrag.held, p.defrag.spent = 0, copiesPerWrite*int64(p.clientBytes()/blockSize)
	must(t, p.defragment(goOn))
	if n := p.moved.Load(); n != 0 {
		t.Errorf("%d blocks were moved beyond the budget", n)
	}
	p.defrag.spent = 0
	stopped := 0
	must(t, p.defragment(func(time.Duration) bool { stopped++; return true }))
	if n := p.moved.Load(); stopped != 1 || n == 0 || n > cow.PageBlocks {
		t.Errorf("asked %d times whether to stop, and %d blocks moved of one page", stopped, n)
	}
	expectAll(t, p, want, "in part")

	off := openT(t, vfs.NewMem(), Options{Manual: true, NoDefragment: true})
	newLUNT(t, off, CreateLUN{Name: "a", SizeBytes: blocks * blockSize})
	v := vol(t, off, "a")
	defer v.Close()
	for i := range blocks {
		must(t, v.WriteAt(pat(1, 1), int64(i*7%blocks)*blockSize, false))
	}
	must(t, off.Checkpoint())
	must(t, off.defragment(goOn))
	if n := off.moved.Load(); n != 0 {
		t.Errorf("switched off, and %d blocks were moved", n)
	}
}

// A damaged block stays where it is with its window; the rest is put together.
func TestDefragmentDamaged(t *testing.T) {
	const blocks = cow.PageBlocks
	p, _ := scatteredPool(t, vfs.NewMem(), blocks)
	must(t, p.Checkpoint())
	v := vol(t, p, "a")
	pg, err := v.view.get(0)
	must(t, err)
	must(t, pg.lock())
	e := pg.At(200)
	pg.Page.Set(200, e.Loc, e.CRC+1) // as if the bytes were others
	pg.mu.Unlock()
	pg.unpin()
	v.Close()
	must(t, p.defragment(goOn))
	pg, err = vol(t, p, "a").view.get(0)
	must(t, err)
	must(t, pg.lock())
	defer pg.unpin()
	defer pg.mu.Unlock()
	var loc [cow.PageBlocks]uint64
	for i := range loc {
		loc[i], _ = pg.Lookup(i)
	}
	ws := scattered(&loc, p.defrag.least, nil)
	if len(ws) != 1 || ws[0].from != 192 {
		t.Errorf("left scattered: %v, want the window at 192 alone", ws)
	}
}

// Somebody overwrites blocks while they are put together: the overwrite wins.
func TestDefragmentUnderOverwrites(t *testing.T) {
	m := scripted(t)
	m.p.defrag.least, m.p.defrag.held = 1, 1<<20
	m.put("a", 0, 150)
	m.snap("a", "s")
	for round := range 4 {
		var wg sync.WaitGroup
		moved := m.p.moved.Load()
		wrote := make([][]delta, 2)
		for i := range wrote {
			first := m.next
			m.next += 60
			wg.Go(func() { wrote[i] = overwrite(t, m.p, "a", uint64(round*2+i), first, i, 60) })
		}
		for range 4 {
			if err := m.p.defragment(goOn); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
		for _, w := range wrote {
			m.pend = append(m.pend, w...)
		}
		m.checkpoint()
		if err := m.p.defragment(goOn); err != nil || m.p.moved.Load() == moved {
			t.Errorf("round %d: nothing was put together: %v", round, err)
		}
		m.verify()
		if round%2 == 1 {
			m.sync("a")
			m.cut(0)
			m.p.defrag.least, m.p.defrag.held = 1, 1<<20
		}
	}
	m.verify()
}

// putTogether puts every block of every head together, however little it is worth.
func (s *story) putTogether([]string) (string, error) {
	p := s.p
	p.defrag.least, p.defrag.held = 1, 1<<20
	for _, v := range p.allViews() {
		for num := range uint64(4) {
			pg, err := v.get(num)
			if err != nil {
				return "", err
			}
			if err := pg.lock(); err != nil {
				return "", err
			}
			p.noteScattered(pg)
			pg.mu.Unlock()
			pg.unpin()
		}
	}
	moved := p.moved.Load()
	err := p.defragment(goOn)
	if p.moved.Load() == moved && err == nil {
		s.t.Fatal("there was nothing to put together")
	}
	return "", err
}
