package lun

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/google/uuid"

	"lunar/cow"
	"lunar/store/index"
	"lunar/store/segment"
)

const salvageBatch = 4 << 20 // bytes of one commit

// write stores the pages in order of birth, then which versions show through
// which, the catalogue, and the state.
func (s *salvage) write(x *index.Index, say func(string, int64, int64)) error {
	b := x.NewBatch()
	defer func() { b.Close() }()
	commit := func(least int) error {
		if b.Size() < least {
			return nil
		}
		err := b.Commit()
		b = x.NewBatch()
		return err
	}
	for i := range s.pieces {
		e := &s.pieces[i]
		if e.Kind == segment.Data || e.Kind == segment.Moved {
			for num := e.Block / cow.PageBlocks; num <= (e.Block+e.Count-1)/cow.PageBlocks; num++ {
				s.touch(num, cow.VersionID(e.Version))
			}
		}
	}
	for i := range s.pieces {
		say("writing the index", int64(i), int64(len(s.pieces)))
		s.piece(b, &s.pieces[i])
		if err := commit(salvageBatch); err != nil {
			return err
		}
	}
	for num, versions := range s.pages {
		s.hints(b, num, versions)
		if err := commit(salvageBatch); err != nil {
			return err
		}
	}
	if err := s.catalogue(b); err != nil {
		return err
	}
	return commit(0)
}

func (s *salvage) touch(num uint64, v cow.VersionID) {
	if s.pages[num] == nil {
		s.pages[num] = map[cow.VersionID]struct{}{}
	}
	s.pages[num][v] = struct{}{}
}

// piece lays one entry over the pages. A range without payload matters only where
// some version has a block.
func (s *salvage) piece(b *index.Batch, e *piece) {
	v := s.tree.Version(cow.VersionID(e.Version))
	if v == nil {
		return // nothing but zeroes was ever written to it
	}
	from, to := e.Block/cow.PageBlocks, (e.Block+e.Count-1)/cow.PageBlocks
	nums := []uint64{}
	if e.PayloadBlocks() > 0 || to-from < uint64(len(s.pages)) {
		for num := from; num <= to; num++ {
			nums = append(nums, num)
		}
	} else {
		nums = slices.AppendSeq(nums, maps.Keys(s.pages))
	}
	for _, num := range nums {
		if num < from || num > to || s.pages[num] == nil {
			continue
		}
		r := cow.Record{Applied: uint64(e.birth)}
		first := num * cow.PageBlocks
		for at := max(e.Block, first); at < min(e.Block+e.Count, first+cow.PageBlocks); at++ {
			i := int(at - first)
			r.Set.Add(i)
			switch {
			case e.Kind == segment.Zero:
				r.Loc[i] = cow.Zero
			case e.Kind == segment.Trim || e.dead != nil && e.dead[at-e.Block]:
				r.Loc[i] = 0
			default:
				r.Loc[i], r.CRC[i] = e.loc+at-e.Block, e.CRCs[at-e.Block]
			}
		}
		s.touch(num, v.ID)
		b.MergePage(uint64(v.Branch), num, uint64(v.ID), r.Append(nil))
	}
}

// hints stores, for each version that has a page, the older ones on its path that
// have it too.
func (s *salvage) hints(b *index.Batch, num uint64, versions map[cow.VersionID]struct{}) {
	all := slices.Sorted(maps.Keys(versions))
	for _, id := range all {
		r := cow.Record{}
		for _, older := range all {
			if older < id && s.below(id, older) {
				r.Hints = append(r.Hints, older)
			}
		}
		if slices.Reverse(r.Hints); len(r.Hints) > 0 { // newest first
			b.MergePage(uint64(s.tree.Version(id).Branch), num, uint64(id), r.Append(nil))
		}
	}
}

// below says whether a version lies on the path of another.
func (s *salvage) below(id, older cow.VersionID) bool {
	limits := s.paths[id]
	if limits == nil {
		limits = map[cow.BranchID]cow.VersionID{}
		for _, step := range s.tree.Path(id, nil) {
			limits[step.Branch] = step.Limit
		}
		s.paths[id] = limits
	}
	limit, on := limits[s.tree.Version(older).Branch]
	return on && older <= limit
}

func (s *salvage) catalogue(b *index.Batch) error {
	branches := map[cow.BranchID]bool{}
	for _, v := range s.tree.Versions() {
		if err := stageObject(b, objectVersion, uint64(v.ID), v); err != nil {
			return err
		}
		if x := s.tree.Branch(v.Branch); x != nil && !branches[x.ID] {
			branches[x.ID] = true
			if err := stageObject(b, objectBranch, uint64(x.ID), x); err != nil {
				return err
			}
		}
	}
	for _, l := range s.tree.LUNs() {
		if err := stageObject(b, objectLUN, uint64(l.ID), l); err != nil {
			return err
		}
	}
	capacity, err := s.p.defaultCapacity()
	if err != nil {
		return err
	}
	state, err := json.Marshal(&durable{Position: uint64(s.last) + 1, Epoch: s.epoch + 1, IDs: s.tree.Next() + idMargin,
		Capacity: capacity, Format: catalogueFormat, Index: uuid.NewString(), Salvaged: salvageWarning})
	b.SetMeta(metaState, state)
	return err
}
