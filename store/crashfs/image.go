package crashfs

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Loss says what a crash does to what was not synced.
type Loss struct {
	way  way
	seed uint64
}

type way uint8

const (
	loseAll way = iota
	keepAll
	keepSome
)

// LoseAll loses everything that was not synced: the least that a power cut may leave.
func LoseAll() Loss { return Loss{way: loseAll} }

// KeepAll keeps everything, as when only the process dies. What a failed sync
// left is in the cache still.
func KeepAll() Loss { return Loss{way: keepAll} }

// KeepSome keeps some of it, in part torn; which, only the seed decides.
func KeepSome(seed uint64) Loss { return Loss{way: keepSome, seed: seed} }

func (l Loss) String() string {
	switch l.way {
	case loseAll:
		return "losing all that was not synced"
	case keepAll:
		return "keeping all that was not synced"
	}
	return fmt.Sprintf("keeping some of what was not synced by seed %d", l.seed)
}

// Image is what a crash leaves: a new file system, with nothing open or locked.
func (fs *FS) Image(l Loss) *FS {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	im := imager{loss: l, nodes: map[node]node{}}
	if l.way == keepSome {
		im.rng = rand.New(rand.NewPCG(l.seed, 0x9e3779b97f4a7c15))
	}
	im.names = map[*dir]map[string]node{}
	im.folders(fs.changes)
	out := New()
	out.root, out.usage = im.dir(fs.root), fs.usage
	return out
}

// Fork is what a killed process leaves: all as it is read now, and what was not
// synced still is not. Nothing is open or locked.
func (fs *FS) Fork() *FS {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	out, nodes := New(), map[node]node{}
	out.root, out.usage = fork(fs.root, nodes).(*dir), fs.usage
	for _, c := range fs.changes {
		n := *c
		if c.from != nil {
			n.from = fork(c.from, nodes).(*dir)
		}
		if c.to != nil {
			n.to, n.n = fork(c.to, nodes).(*dir), fork(c.n, nodes)
		}
		out.changes = append(out.changes, &n)
	}
	return out
}

func fork(n node, nodes map[node]node) node {
	if got := nodes[n]; got != nil {
		return got
	}
	if f, ok := n.(*file); ok {
		out := &file{live: f.live.share(), durable: f.durable.share(), pend: slices.Clone(f.pend), diverged: f.diverged, modified: f.modified}
		nodes[n] = out
		return out
	}
	d, out := n.(*dir), newDir()
	nodes[n] = out
	for name, x := range d.live {
		out.live[name] = fork(x, nodes)
	}
	for name, x := range d.durable {
		out.durable[name] = fork(x, nodes)
	}
	return out
}

type imager struct {
	loss  Loss
	rng   *rand.Rand
	names map[*dir]map[string]node // of the folders that are not as they were synced
	nodes map[node]node            // a file may have several names
}

// cut is how much of a list of n is kept: any of it, or what comes first.
type cut struct {
	first   int
	percent int
	rng     *rand.Rand
}

func (im *imager) cut(n int) cut {
	switch im.rng.IntN(6) {
	case 0:
		return cut{}
	case 1:
		return cut{first: n}
	case 2, 3: // in order
		return cut{first: im.rng.IntN(n + 1)}
	default:
		return cut{percent: []int{10, 50, 90}[im.rng.IntN(3)], rng: im.rng}
	}
}

func (c cut) keeps(i int) bool { return i < c.first || c.percent > 0 && c.rng.IntN(100) < c.percent }

// folders decides the changes of folders.
func (im *imager) folders(changes []*change) {
	if im.loss.way == loseAll {
		return
	}
	ends := im.ends(changes)
	for i, ch := range changes {
		linked := ch.to == nil || ch.linked
		if ch.to != nil && !ch.linked && i < ends[ch.to] {
			im.of(ch.to)[ch.toName], linked = ch.n, true
		}
		// The old name may be there although the new one is; there is never neither. A removal may be lost.
		if ch.from == nil || ch.unlinked || i >= ends[ch.from] || !linked || im.rng != nil && im.rng.IntN(4) == 0 {
			continue
		}
		delete(im.of(ch.from), ch.fromName)
	}
}

// ends says up to which change each folder is kept: all alike, or each by itself.
func (im *imager) ends(changes []*change) map[*dir]int {
	ends := map[*dir]int{}
	end, each := len(changes), false
	if im.rng != nil {
		end, each = im.cut(len(changes)).first, im.rng.IntN(2) == 0
	}
	for _, ch := range changes {
		for _, d := range []*dir{ch.to, ch.from} {
			if _, known := ends[d]; d != nil && !known {
				if each {
					end = im.rng.IntN(len(changes) + 1)
				}
				ends[d] = end
			}
		}
	}
	return ends
}

// of returns the names of a folder, to be changed.
func (im *imager) of(d *dir) map[string]node {
	m := im.names[d]
	if m == nil {
		m = make(map[string]node, len(d.durable))
		for k, v := range d.durable {
			m[k] = v
		}
		im.names[d] = m
	}
	return m
}

func (im *imager) dir(d *dir) *dir {
	if got := im.nodes[d]; got != nil {
		return got.(*dir)
	}
	out := newDir()
	im.nodes[d] = out
	names := im.names[d]
	if names == nil {
		names = d.durable
	}
	for _, name := range namesOf(names) {
		var n node
		switch x := names[name].(type) {
		case *dir:
			n = im.dir(x)
		case *file:
			n = im.file(x)
		}
		out.live[name], out.durable[name] = n, n
	}
	return out
}

func (im *imager) file(f *file) *file {
	if got := im.nodes[f]; got != nil {
		return got.(*file)
	}
	var c content
	switch {
	case im.loss.way == loseAll || len(f.pend) == 0 && im.loss.way != keepAll:
		c = f.durable.share()
	case im.loss.way == keepAll:
		c = f.live.share()
	default:
		c = f.durable.share()
		cut := im.cut(len(f.pend))
		for i := range f.pend {
			if cut.keeps(i) {
				im.keep(&f.pend[i], &c)
			} else {
				im.lose(&f.pend[i], &c)
			}
		}
	}
	out := &file{live: c, durable: c, modified: time.Time{}}
	out.live.own, out.durable.own = false, false
	im.nodes[f] = out
	return out
}

// lose loses an effect; but a file may have its new size without its new data.
func (im *imager) lose(e *effect, c *content) {
	if end := e.off + int64(len(e.data)); e.kind == OpWrite && end > c.size && im.rng.IntN(4) == 0 {
		c.truncate(end)
	}
}

const sector = 512

// keep does an effect, one in four times in part only.
func (im *imager) keep(e *effect, c *content) {
	if im.rng.IntN(4) > 0 {
		e.apply(c)
		return
	}
	switch e.kind {
	case OpTruncate:
		e.apply(c)
	case OpPunch:
		for at := e.off; at < e.off+e.n; at += pageSize {
			if im.rng.IntN(2) == 0 {
				c.punch(at, pageSize)
			}
		}
	case OpWrite:
		im.tear(e, c)
	}
}

// tear keeps the first bytes of a write, or some of its sectors.
func (im *imager) tear(e *effect, c *content) {
	if im.rng.IntN(2) == 0 {
		if n := im.rng.IntN(len(e.data) + 1); n > 0 {
			c.write(e.data[:n:n], e.off)
		}
		return
	}
	lost := im.rng.IntN(4) == 0 // many, or few
	for at := 0; at < len(e.data); {
		n := min(sector-int((e.off+int64(at))%sector), len(e.data)-at)
		if few := im.rng.IntN(8) == 0; few == lost {
			c.write(slices.Clone(e.data[at:at+n]), e.off+int64(at))
		}
		at += n
	}
}

// Damage changes bytes of a file below the file system, as a disk may that lies: fn gets n bytes from off on, which are
// both what is read and what is durable, as all of the file is then. It is an error if there is no such file.
func (fs *FS) Damage(name string, off int64, n int, fn func(b []byte)) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	got, err := fs.findLocked(name)
	f, ok := got.(*file)
	if err != nil || !ok {
		return pathError("damage", name, err)
	}
	f.sync()
	b := make([]byte, n)
	f.live.read(b, off)
	fn(b)
	size := f.live.size
	for _, c := range []*content{&f.live, &f.durable} {
		c.write(slices.Clone(b), off)
		c.truncate(min(c.size, size))
	}
	return nil
}
