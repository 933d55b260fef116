package cow

import "slices"

// Page is the flattened map of 512 blocks as version Head sees them: where each
// block is, its checksum, and the id that it is stored under. Owner ids may be
// those of versions merged since (Tree.Canonical resolves them).
//
// A page is either what the index holds (clean) or has changes of one version,
// Head, that the next checkpoint writes (Dirty). Before another version changes
// it, what the former one owns must have been taken with Encode.
type Page struct {
	Head    VersionID
	Applied uint64 // newest log sequence applied for Head
	// Has says that Head has a record of this page, stored or about to be.
	Has   bool
	Dirty bool
	// Absorbed are merged ids whose records of this page are Head's now; they
	// are removed in the commit that writes Head's record.
	Absorbed []VersionID

	loc     [PageBlocks]uint64
	crc     [PageBlocks]uint32
	slot    [PageBlocks]uint16
	owners  []VersionID // by slot; slot 0 is "nobody has anything here"
	changed Bits        // since the last Encode
	rebase  bool        // the next Encode must be a full record
	deltas  int         // operands since the last full record
}

// Entry is what a page says about one block.
type Entry struct {
	Loc   uint64
	CRC   uint32
	Owner VersionID // 0: nobody has anything here
}

// Reset makes p an empty page of version head.
func (p *Page) Reset(head VersionID) {
	if p.owners == nil { // nothing was ever in it: clearing it again takes longer than all the rest
		p.Head, p.owners = head, append(p.owners, 0)
		return
	}
	owners, absorbed := p.owners[:0], p.Absorbed[:0]
	*p = Page{Head: head, Absorbed: absorbed, owners: append(owners, 0)}
}

// At returns the entry of block i.
func (p *Page) At(i int) Entry { return Entry{p.loc[i], p.crc[i], p.owners[p.slot[i]]} }

// Lookup returns location and checksum of block i.
func (p *Page) Lookup(i int) (uint64, uint32) { return p.loc[i], p.crc[i] }

// Locations returns the locations of all blocks, to be read only.
func (p *Page) Locations() *[PageBlocks]uint64 { return &p.loc }

// Fill adds what an older version's record has for blocks that no newer one
// has. Records must come newest first. It returns whether anything was added.
func (p *Page) Fill(v VersionID, r *Record) bool {
	added := false
	for w, bits := range r.Set {
		if bits == 0 {
			continue
		}
		for i := w * 64; i < w*64+64; i++ {
			if p.slot[i] != 0 || !r.Set.Has(i) {
				continue
			}
			p.loc[i], p.crc[i], p.slot[i] = r.Loc[i], r.CRC[i], p.slotOf(v)
			added = true
		}
	}
	return added
}

func (p *Page) slotOf(v VersionID) uint16 {
	for s := len(p.owners) - 1; s > 0; s-- {
		if p.owners[s] == v {
			return uint16(s)
		}
	}
	if len(p.owners) > PageBlocks {
		p.compactOwners()
	}
	p.owners = append(p.owners, v)
	return uint16(len(p.owners) - 1)
}

// compactOwners drops owners that no block names any more: at most 512 are
// named, so a table of more holds some that are not.
func (p *Page) compactOwners() {
	var to [PageBlocks + 2]uint16
	owners := []VersionID{0}
	for i, s := range p.slot {
		if s == 0 {
			continue
		}
		if to[s] == 0 {
			owners = append(owners, p.owners[s])
			to[s] = uint16(len(owners) - 1)
		}
		p.slot[i] = to[s]
	}
	p.owners = owners
}

// Advance makes v, a version on top of Head, the one whose changes the page
// collects. The page must be clean.
func (p *Page) Advance(v VersionID) {
	if p.Head != v {
		p.Head, p.Has, p.Applied, p.rebase, p.deltas = v, false, 0, false, 0
	}
}

// Absorb gives the blocks that are stored under an id merged into Head to Head.
// That is right only while Head has no record of its own here: then everything
// the id has shows through, and nothing of it is garbage. Where two ids show, the
// newer one may hide blocks of the older one; the merger, which finds such a page
// in the lists of both, joins them and gives the hidden blocks back.
func (p *Page) Absorb(canonical func(VersionID) VersionID) {
	if p.Has {
		return
	}
	from := VersionID(0)
	for s := 1; s < len(p.owners); s++ {
		if o := p.owners[s]; o != p.Head && o != from && canonical(o) == p.Head && p.uses(uint16(s)) {
			if from != 0 {
				return
			}
			from = o
		}
	}
	if from != 0 {
		p.Absorbed = append(p.Absorbed, from)
		p.Rename(from, p.Head)
		// The page is Head's now even if no change follows: it must be taken
		// before another version changes it.
		p.rebase, p.Dirty, p.Has = true, true, true
	}
}

func (p *Page) uses(slot uint16) bool { return slices.Contains(p.slot[:], slot) }

// Rename gives the blocks stored under id from to id to, after a merger moved
// them in the index.
func (p *Page) Rename(from, to VersionID) {
	for s := 1; s < len(p.owners); s++ {
		if p.owners[s] == from {
			p.owners[s] = to
		}
	}
}

// Set maps block i of Head to a location with its checksum and returns what was
// there. loc 0 makes a hole that hides what ancestors have.
func (p *Page) Set(i int, loc uint64, crc uint32) (old Entry) {
	old = p.At(i)
	p.loc[i], p.crc[i], p.slot[i] = loc, crc, p.slotOf(p.Head)
	p.changed.Add(i)
	p.Dirty, p.Has = true, true
	return old
}

// Move changes the location of block i from one place to another if it is
// still there; checksum and owner stay. It is no change of Head.
func (p *Page) Move(i int, from, to uint64) bool {
	if p.loc[i] != from {
		return false
	}
	p.loc[i] = to
	return true
}

// Touched notes that block i of Head was moved, so that it is written again.
func (p *Page) Touched(i int) {
	p.changed.Add(i)
	p.Dirty = true
}

// Owns appends to r the entries that are stored under id v.
func (p *Page) Owns(v VersionID, r *Record) {
	for i, s := range p.slot {
		if s != 0 && p.owners[s] == v {
			r.Set.Add(i)
			r.Loc[i], r.CRC[i] = p.loc[i], p.crc[i]
		}
	}
}

// maxDeltas bounds how many operands pile up on a record, and with it what a
// load has to decode.
const maxDeltas = 16

// Encode takes the changes of Head as a record, full or a delta, and makes the
// page clean. An empty full record means that Head has nothing here.
func (p *Page) Encode(r *Record) {
	r.Applied, r.Hints, r.Set = p.Applied, r.Hints[:0], Bits{}
	n := 0
	for _, w := range p.changed {
		for ; w != 0; w &= w - 1 {
			n++
		}
	}
	r.Full = p.rebase || p.deltas == 0 || p.deltas >= maxDeltas || n > PageBlocks/4
	if r.Full {
		p.Owns(p.Head, r)
		r.Hints = p.hints(r.Hints)
		p.deltas = 1
	} else {
		for i := range PageBlocks {
			if p.changed.Has(i) {
				r.Set.Add(i)
				r.Loc[i], r.CRC[i] = p.loc[i], p.crc[i]
			}
		}
		p.deltas++
	}
	p.changed, p.Dirty, p.rebase = Bits{}, false, false
}

// hints lists the other versions that show through, newest first.
func (p *Page) hints(out []VersionID) []VersionID {
	var seen [PageBlocks + 2]bool
	for _, s := range p.slot {
		if s != 0 && !seen[s] {
			seen[s] = true
			if o := p.owners[s]; o != p.Head {
				out = append(out, o)
			}
		}
	}
	slices.SortFunc(out, func(a, b VersionID) int { return int(int64(b) - int64(a)) })
	return slices.Compact(out)
}

// Loaded notes, after the records were filled in, what the index has of Head:
// whether it has a record, up to which sequence it is applied, and that the
// next change may be stored as a delta over it.
func (p *Page) Loaded(has bool, applied uint64) {
	p.Has, p.Applied = has, applied
	if has {
		p.deltas = 1
	}
}

// Empty says whether no version on the path has anything in the page.
func (p *Page) Empty() bool {
	for _, s := range p.slot {
		if s != 0 {
			return false
		}
	}
	return true
}
