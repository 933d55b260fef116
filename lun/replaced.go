package lun

import (
	"cmp"
	"encoding/binary"
	"slices"

	"lunar/cow"
)

// replaced says who hides what: version x replaced n blocks of version owner,
// which x's readers do not see any more and older versions do. Each block is
// counted once for each line of versions, with the first that hides it, under
// the ids that the records are stored under; a reader sums up over groups.
// So the space that a snapshot alone holds is known without looking at a page:
// on a chain it is what its only child replaced.
//
// It is guarded by the overlay's lock, and changes with the generation that
// commits the pages.
type replaced map[cow.VersionID][]pair

// pair is one owner that a version replaced blocks of; a version's pairs are in
// ascending order of owner.
type pair struct {
	owner cow.VersionID
	n     int64
}

func byOwner(p pair, owner cow.VersionID) int { return cmp.Compare(p.owner, owner) }

func (r replaced) add(x, owner cow.VersionID, n int64) {
	if n == 0 {
		return
	}
	ps := r[x]
	i, found := slices.BinarySearchFunc(ps, owner, byOwner)
	switch {
	case !found:
		ps = slices.Insert(ps, i, pair{owner, n})
	case ps[i].n+n == 0:
		ps = slices.Delete(ps, i, i+1)
	default:
		ps[i].n += n
	}
	if len(ps) == 0 {
		delete(r, x)
		return
	}
	r[x] = ps
}

func (r replaced) of(x, owner cow.VersionID) int64 {
	if i, found := slices.BinarySearchFunc(r[x], owner, byOwner); found {
		return r[x][i].n
	}
	return 0
}

// between sums up what the ids of xs replaced of the ids of owners.
func (r replaced) between(xs, owners []cow.VersionID) (n int64) {
	for _, x := range xs {
		if len(r[x]) == 0 {
			continue
		}
		for _, o := range owners {
			n += r.of(x, o)
		}
	}
	return n
}

// encode appends the pairs of a version: owner as the difference to the one
// before and n, uvarint each (FORMAT.md).
func (r replaced) encode(x cow.VersionID) []byte {
	var b []byte
	last := cow.VersionID(0)
	for _, p := range r[x] {
		b = binary.AppendUvarint(b, uint64(p.owner-last))
		b = binary.AppendUvarint(b, uint64(p.n))
		last = p.owner
	}
	return b
}

// decode reads the pairs of a version.
func (r replaced) decode(x cow.VersionID, b []byte) error {
	var ps []pair
	last := uint64(0)
	for len(b) > 0 {
		d, k := binary.Uvarint(b)
		if k <= 0 || d == 0 {
			return Errorf(ErrCorrupt, "index: what version %d replaced is malformed", x)
		}
		n, m := binary.Uvarint(b[k:])
		if m <= 0 || int64(n) <= 0 {
			return Errorf(ErrCorrupt, "index: what version %d replaced is malformed", x)
		}
		last += d
		ps = append(ps, pair{cow.VersionID(last), int64(n)})
		b = b[k+m:]
	}
	if len(ps) > 0 {
		r[x] = ps
	}
	return nil
}

// renameLocked moves what is counted under the ids that are retired to those
// that they went into; hiders are the ids of all versions that may have replaced
// blocks of theirs. What a version replaced of its own group does not count.
func (o *overlay) renameLocked(to map[cow.VersionID]cow.VersionID, hiders []cow.VersionID) {
	now := func(id cow.VersionID) cow.VersionID {
		if t, ok := to[id]; ok {
			return t
		}
		return id
	}
	for _, x := range hiders {
		for _, p := range slices.Clone(o.replaced[x]) {
			nx, owner := now(x), now(p.owner)
			if nx == x && owner == p.owner {
				continue
			}
			o.replaceLocked(x, p.owner, -p.n)
			if nx != owner {
				o.replaceLocked(nx, owner, p.n)
			}
		}
	}
}
