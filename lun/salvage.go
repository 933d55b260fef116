package lun

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"lunar/cow"
	"lunar/store/segment"
)

// Salvage is the last resort, when the index and its copies are lost: the records
// that are still in the segments, in the order in which their blocks were first
// written, give an index that is good for reading. What is told by no record any
// more cannot be known: names, deletes, merges, and what was trimmed or zeroed
// long ago.

const salvageReason = "salvaged without an index, for reading only: copy off what you need (docs/OPERATIONS.md, \"The index\")"

const salvageWarning = "made readable from the records in the segments, without an index: " +
	"blocks that were trimmed, zeroed or rolled back may show what was there before, snapshots that were deleted may be there again, " +
	"LUNs whose names are lost are called lost-NUMBER, and may each hold a part of one LUN; check what you copy off it, and import it into a new pool"

// piece is one entry of the log that says what blocks of a version hold.
type piece struct {
	segment.Entry
	birth segment.Seq
	loc   uint64
	dead  []bool // blocks that became holes; nil: none did
}

// salvage collects what the segments tell.
type salvage struct {
	p      *Pool
	pieces []piece
	tree   *cow.Tree
	epoch  uint64
	last   segment.Seq
	bad    []string                                         // segments that could not be read to their end
	pages  map[uint64]map[cow.VersionID]struct{}            // which versions have records of a page
	ends   map[cow.VersionID]uint64                         // blocks
	paths  map[cow.VersionID]map[cow.BranchID]cow.VersionID // limits by branch
}

// salvageIndex makes index.new of the segments. Called with the lock held.
func (p *Pool) salvageIndex(say func(string, int64, int64)) (out []string, err error) {
	dir := p.path(rebuiltDir)
	if err := p.removeAll(dir); err != nil {
		return nil, err
	}
	s := &salvage{p: p, tree: cow.NewTree(1), pages: map[uint64]map[cow.VersionID]struct{}{}, ends: map[cow.VersionID]uint64{}, paths: map[cow.VersionID]map[cow.BranchID]cow.VersionID{}}
	if err := s.collect(say); err != nil {
		return nil, err
	}
	if len(s.pieces) == 0 {
		return nil, Errorf(ErrCorrupt, "the segments of %s hold no record of this pool", p.opts.Dir)
	}
	lost := s.complete()
	p.fresh = true // the index is made
	x, err := p.openIndexAt(dir, false)
	p.fresh = false
	if err != nil {
		return nil, err
	}
	err = s.write(x, say)
	if err = errors.Join(err, x.Close()); err != nil {
		return nil, errors.Join(err, p.removeAll(dir))
	}
	out = append(out, fmt.Sprintf("%d LUNs were found", len(s.tree.LUNs())))
	if len(lost) > 0 {
		out = append(out, fmt.Sprintf("%d of them are without their name: %s", len(lost), someNames(lost, 20)))
	}
	return append(out, s.bad...), nil
}

// collect reads all headers and structural changes.
func (s *salvage) collect(say func(string, int64, int64)) error {
	o := s.p.logOptions()
	numbers, err := segment.Segments(o)
	if err != nil {
		return err
	}
	type change struct {
		seq segment.Seq
		c   cow.Change
	}
	var changes []change
	for i, n := range numbers {
		say("reading the segments", int64(i), int64(len(numbers)))
		first := len(s.pieces)
		err := segment.ScanFile(o, n, func(h *segment.Header, at int64) error {
			s.epoch, s.last = max(s.epoch, h.Epoch), max(s.last, h.Last())
			loc := n*s.p.space.blocks + uint64(at/blockSize) + 1
			for k, e := range h.Entries {
				seq := h.First + segment.Seq(k)
				switch e.Kind {
				case segment.Struct:
					if c, err := s.structure(n, int64(loc%s.p.space.blocks), e); err != nil {
						s.bad = append(s.bad, fmt.Sprintf("the structural change of log entry %d is unreadable: %v", seq, err))
					} else {
						changes = append(changes, change{seq, c})
					}
				case segment.Data, segment.Moved, segment.Zero, segment.Trim:
					e.CRCs = slices.Clone(e.CRCs)
					birth := seq
					if e.Kind == segment.Moved {
						birth = e.Birth
					}
					s.pieces = append(s.pieces, piece{e, birth, loc, nil})
				}
				loc += uint64(e.PayloadBlocks())
			}
			return nil
		})
		if err != nil {
			s.bad = append(s.bad, fmt.Sprintf("segment %s cannot be read to its end: %v", segment.Name(n), err))
		}
		s.findHoles(n, s.pieces[first:])
	}
	slices.SortStableFunc(s.pieces, func(a, b piece) int { return cmp.Compare(a.birth, b.birth) })
	slices.SortFunc(changes, func(a, b change) int { return cmp.Compare(a.seq, b.seq) })
	for _, c := range changes {
		s.tree.Apply(s.tree.Unswept(c.c))
	}
	return nil
}

// structure reads the payload of a structural entry that begins at a block.
func (s *salvage) structure(number uint64, block int64, e segment.Entry) (c cow.Change, err error) {
	f, err := s.p.fs.Open(s.p.path(segmentDir, segment.Name(number)))
	if err != nil {
		return c, err
	}
	defer f.Close()
	b := make([]byte, int(e.Count)*blockSize)
	if n, err := f.ReadAt(b, block*blockSize); n < len(b) {
		return c, err
	}
	for i := range e.CRCs {
		if segment.Checksum(b[i*blockSize:(i+1)*blockSize]) != e.CRCs[i] {
			return c, fmt.Errorf("it does not match its checksum")
		}
	}
	return c, json.Unmarshal(b[:e.Block], &c)
}

// findHoles marks the blocks of a segment's entries that read as the zeros that they
// do not hold: they were dead, and their space was given back.
func (s *salvage) findHoles(number uint64, pieces []piece) {
	if segment.Whole(s.p.logOptions(), number) {
		return
	}
	f, err := s.p.fs.Open(s.p.path(segmentDir, segment.Name(number)))
	if err != nil {
		return
	}
	defer f.Close()
	b, zeros := make([]byte, blockSize), make([]byte, blockSize)
	ofZeros := segment.Checksum(zeros)
	for i := range pieces {
		x := &pieces[i]
		for k, crc := range x.CRCs {
			n, err := f.ReadAt(b, int64((x.loc+uint64(k))%s.p.space.blocks)*blockSize)
			if err != nil || n < len(b) || crc == ofZeros || !bytes.Equal(b, zeros) {
				continue
			}
			if x.dead == nil {
				x.dead = make([]bool, len(x.CRCs))
			}
			x.dead[k] = true
		}
	}
}

// complete makes a tree of what is known, with LUNs for what nothing names. It
// returns their names.
func (s *salvage) complete() (lost []string) {
	for i := range s.pieces {
		e := &s.pieces[i]
		if e.Kind == segment.Data || e.Kind == segment.Moved {
			v := cow.VersionID(e.Version)
			s.ends[v] = max(s.ends[v], e.Block+e.Count)
		}
	}
	next := s.tree.Next()
	for _, v := range slices.Sorted(maps.Keys(s.ends)) {
		next = max(next, uint64(v)+1)
	}
	id := func() uint64 { next++; return next - 1 }
	lun := func(l cow.LUNID, head cow.VersionID, size int64) {
		if l == 0 {
			l = cow.LUNID(id())
		}
		name := fmt.Sprintf("lost-%d", l)
		lost = append(lost, name)
		s.tree.Apply(cow.Change{Next: next, LUNs: []cow.LUN{{ID: l, UUID: name, Name: name, Size: size, Head: head, ReadOnly: true, Created: s.p.now().UTC(), Reserve: "0", Limit: "none", OnFull: OnFullRecycle}}})
	}
	// Versions that no record makes: each a LUN of its own.
	for _, v := range slices.Sorted(maps.Keys(s.ends)) {
		if s.tree.Version(v) != nil {
			continue
		}
		l, b, size := cow.LUNID(id()), cow.BranchID(id()), int64(s.ends[v])*blockSize
		s.tree.Apply(cow.Change{Versions: []cow.Version{{ID: v, LUN: l, Branch: b, Size: size, State: cow.Head}}, Branches: []cow.Branch{{ID: b}}})
		lun(l, v, size)
	}
	for _, v := range s.tree.Versions() { // branches and parents that are lost
		b := s.tree.Branch(v.Branch)
		if b == nil || b.Fork != 0 && s.tree.Version(b.Fork) == nil {
			s.tree.Apply(cow.Change{Branches: []cow.Branch{{ID: v.Branch}}})
		}
		if n := *v; n.Parent != 0 && s.tree.Version(n.Parent) == nil {
			n.Parent = 0
			s.tree.Apply(cow.Change{Versions: []cow.Version{n}})
		}
	}
	for _, l := range s.tree.LUNs() { // heads without a record that makes them
		if s.tree.Version(l.Head) == nil {
			b := cow.BranchID(id())
			s.tree.Apply(cow.Change{Next: next, Branches: []cow.Branch{{ID: b}}, Versions: []cow.Version{{ID: l.Head, LUN: l.ID, Branch: b, Size: l.Size, State: cow.Head}}})
		}
	}
	for _, v := range s.tree.Versions() { // versions of LUNs that are lost
		if (v.State == cow.Head || v.State == cow.Snapshot) && s.tree.LUN(v.LUN) == nil {
			head := *v
			if v.State == cow.Snapshot {
				b := cow.BranchID(id())
				head = cow.Version{ID: cow.VersionID(id()), LUN: v.LUN, Branch: b, Parent: v.ID, Size: v.Size, State: cow.Head}
				s.tree.Apply(cow.Change{Versions: []cow.Version{head}, Branches: []cow.Branch{{ID: b, Fork: v.ID}}})
			}
			lun(v.LUN, head.ID, head.Size)
		}
	}
	s.tree.Apply(cow.Change{Next: next})
	return lost
}
