package lun

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"lunar/cow"
	"lunar/store/index"
	"lunar/store/segment"
)

// scrubBlock reads one block where the index said it is, and where it is now if
// it was moved or replaced meanwhile. It returns where it was found damaged.
func (p *Pool) scrubBlock(buf []byte, b cow.BranchID, num uint64, v cow.VersionID, i int, loc uint64, crc uint32) (uint64, error) {
	for {
		phase := p.grace.enter(0)
		err := p.log.Read(buf, segment.Loc(loc))
		p.grace.leave(0, phase)
		if err == nil && segment.Checksum(buf) == crc {
			return loc, nil
		}
		p.settle(b, num, v, nil)
		var r cow.Record
		ok, rerr := p.ownRecord(b, num, v, &r)
		switch {
		case rerr != nil:
			return loc, rerr
		case !ok || !r.Set.Has(i) || !cow.Stored(r.Loc[i]):
			return loc, nil
		case r.Loc[i] != loc:
			loc, crc = r.Loc[i], r.CRC[i]
			continue
		case err != nil:
			return loc, err
		}
		return loc, fmt.Errorf("the block does not match its checksum")
	}
}

// seenBy names the LUNs and snapshots that show a block of a version at a
// location: the version itself, and those made from it that have not replaced it.
func (p *Pool) seenBy(id cow.VersionID, num uint64, i int, loc uint64) []string {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	owner := p.tree.Canonical(id)
	var out []string
	var rec cow.Record
	todo := []cow.VersionID{owner}
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		v := p.tree.Version(at)
		if v == nil {
			continue
		}
		p.settle(v.Branch, num, at, nil)
		has, err := p.groupRecord(at, num, &rec)
		if at == owner && (!has || !rec.Set.Has(i) || rec.Loc[i] != loc) {
			return []string{}
		}
		if err == nil && at != owner && has && rec.Set.Has(i) {
			continue
		}
		if l := p.tree.LUN(v.LUN); l != nil && (uint64(l.Size)+blockSize-1)/blockSize > num*cow.PageBlocks+uint64(i) {
			switch v.State {
			case cow.Head:
				out = append(out, l.Name)
			case cow.Snapshot:
				out = append(out, l.Name+"@"+v.Name)
			}
		}
		todo = append(todo, p.tree.Children(at)...)
	}
	slices.SortFunc(out, compareExports)
	return out
}

// compareExports puts snapshots in front of LUNs.
func compareExports(a, b string) int {
	as, bs := strings.Contains(a, "@"), strings.Contains(b, "@")
	if as != bs {
		if as {
			return -1
		}
		return 1
	}
	return strings.Compare(a, b)
}

// files verifies the tables of the index and of its copies.
func (sc *scrubber) files() {
	p := sc.p
	dirs := []string{p.path(indexDir)}
	p.backups.mu.Lock()
	for i, s := range p.backups.slots {
		if s.valid {
			dirs = append(dirs, p.slotPath(i))
		}
	}
	p.backups.mu.Unlock()
	for n, dir := range dirs {
		damaged, err := index.VerifyTables(p.fs, dir)
		if err != nil {
			damaged = append(damaged, err)
		}
		for _, err := range damaged {
			switch {
			case errors.Is(err, fs.ErrNotExist): // it was replaced meanwhile
			case n == 0:
				sc.file("index", fmt.Errorf("%w; stop the server and run `lunar pool repair`", err))
			default:
				sc.file("copy of the index", err)
			}
		}
	}
}
