package lun

import (
	"encoding/binary"
	"encoding/json"
	"slices"

	"lunar/cow"
)

// loadCatalogue reads what the last checkpoint says.
func (p *Pool) loadCatalogue() error {
	body, ok, err := p.index.Meta(metaState)
	if err != nil {
		return Errorf(ErrCorrupt, "index: %w", err)
	}
	if ok {
		if err := json.Unmarshal(body, &p.state); err != nil {
			return Errorf(ErrCorrupt, "index: state makes no sense: %w", err)
		}
		if err := p.tooOld(&p.state); err != nil {
			return err
		}
	} else {
		p.state.Position, p.state.IDs, p.state.Format = 1, 1, catalogueFormat
		if p.state.Capacity, err = p.defaultCapacity(); err != nil {
			return err
		}
	}
	p.state.publish()
	p.state.room.Store(p.state.Capacity)
	p.tree = cow.NewTree(p.state.IDs)
	if err := p.loadTree(); err != nil {
		return err
	}
	err = p.index.Counters(func(v uint64, b []byte) error {
		c, pairs, err := unmarshalCounts(b)
		if err != nil {
			return err
		}
		if err := p.overlay.replaced.decode(cow.VersionID(v), pairs); err != nil {
			return err
		}
		p.counter.stored[cow.VersionID(v)] = c
		p.counter.of(cow.VersionID(v)).add(c)
		return nil
	})
	if err != nil {
		return Errorf(ErrCorrupt, "index: %w", err)
	}
	if p.state.Format > catalogueFormat {
		return Errorf(ErrNotPool, "pool %s has catalogue format %d, this lunar knows formats up to %d; use a newer lunar", p.opts.Dir, p.state.Format, catalogueFormat)
	}
	p.loadSums()
	err = p.index.Segments(func(n uint64, b []byte) error {
		var r row
		if err := r.unmarshal(n, b); err != nil {
			return err
		}
		u := p.space.of(n)
		u.stored, u.rowed, u.row, u.rowSealed, u.sealed, u.info = r.live, r.live, true, r.sealed, r.sealed, r.info
		u.live.Store(r.live)
		if r.live == 0 && r.sealed {
			u.died = 1 // perhaps before, which nobody knows any more
		}
		return nil
	})
	if err != nil {
		return Errorf(ErrCorrupt, "index: %w", err)
	}
	p.space.highest = max(p.space.highest, p.state.Highest)
	return p.loadHoles()
}

func (p *Pool) loadTree() error {
	var c cow.Change
	err := p.index.Objects(objectBranch, func(_ uint64, b []byte) error {
		var x cow.Branch
		err := json.Unmarshal(b, &x)
		c.Branches = append(c.Branches, x)
		return err
	})
	if err == nil {
		err = p.index.Objects(objectVersion, func(_ uint64, b []byte) error {
			var x cow.Version
			err := json.Unmarshal(b, &x)
			c.Versions = append(c.Versions, x)
			return err
		})
	}
	if err == nil {
		err = p.index.Objects(objectLUN, func(_ uint64, b []byte) error {
			var x cow.LUN
			err := json.Unmarshal(b, &x)
			c.LUNs = append(c.LUNs, x)
			return err
		})
	}
	if err != nil {
		return Errorf(ErrCorrupt, "index: catalogue: %w", err)
	}
	p.tree.Apply(c)
	p.followHeads(c)
	return p.loadForwards()
}

// loadForwards reads where forgotten ids went. A row may name an id that was
// forgotten later, which has a larger one: those are resolved first.
func (p *Pool) loadForwards() error {
	type row struct{ id, into cow.VersionID }
	var rows []row
	err := p.index.Objects(objectForward, func(id uint64, b []byte) error {
		into, n := binary.Uvarint(b)
		if n <= 0 || into <= id {
			return Errorf(ErrCorrupt, "forgotten version %d went nowhere", id)
		}
		rows = append(rows, row{cow.VersionID(id), cow.VersionID(into)})
		return nil
	})
	if err != nil {
		return Errorf(ErrCorrupt, "index: catalogue: %w", err)
	}
	for _, r := range slices.Backward(rows) {
		for p.tree.Version(r.into) == nil && p.tree.Forward(r.into) != 0 {
			r.into = p.tree.Forward(r.into)
		}
		if p.tree.Version(r.into) != nil {
			p.tree.SetForward(r.id, r.into)
		}
	}
	return nil
}
