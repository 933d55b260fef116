package checker

import (
	"crypto/sha256"
	"errors"
	"fmt"
)

// Reader reads whole blocks of a LUN or snapshot.
type Reader interface {
	Read(p []byte, off int64) error
}

// View is what a LUN or a snapshot was found to hold.
type View struct {
	Sum     [sha256.Size]byte
	Newer   int // blocks that hold more than they had to
	Lost    int // blocks whose newest version is gone, as it may be
	visible []found
}

// found is the version that a block shows. A block of zeroes can be one of several.
type found struct {
	oldest, newest int // indices into the block's versions
}

// cut says which versions must be there and which may.
type cut struct {
	must     func(version) bool
	may      Tick // issued at this tick or before
	requests bool // a request is there as a whole or not at all
}

// Crashed checks a LUN after a crash: what a FLUSH or FUA acknowledged is there, every block is one version, and what
// survived of the rest is a prefix: nothing is missing that was acknowledged before something present was issued.
func (m *Model) Crashed(r Reader) (View, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	durable := m.durable
	return m.check(r, cut{may: never, must: func(v version) bool {
		return v.acked != never && (v.fua || v.acked <= durable)
	}})
}

// Frozen checks a snapshot that was asked for after tick `began` and reported at tick `reported`: it holds all that was
// acknowledged before, nothing issued after, and each request as a whole or not at all.
func (m *Model) Frozen(r Reader, began, reported Tick) (View, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.check(r, cut{may: reported, requests: true, must: func(v version) bool { return v.acked <= began }})
}

// Current checks a LUN that nobody writes to and that did not crash: it holds all that was acknowledged.
func (m *Model) Current(r Reader) (View, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.check(r, cut{may: never, must: func(v version) bool { return v.acked != never }})
}

// Settle makes what a check found the truth from now on: it must still be there after the next crash, and what was
// lost must never come back.
func (m *Model) Settle(view View) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for b, at := range view.visible {
		kept := m.blocks[b][at.newest]
		kept.issued, kept.acked = 0, 0
		m.blocks[b] = append(m.blocks[b][:0], kept)
	}
	m.durable = 0
}

// Sum is the hash of all that a LUN or snapshot holds, as in View.
func Sum(r Reader, blocks int) (sum [sha256.Size]byte, err error) {
	hash := sha256.New()
	buffer := make([]byte, 256*BlockSize)
	for first := 0; first < blocks; first += 256 {
		p := buffer[:min(256, blocks-first)*BlockSize]
		if err := r.Read(p, int64(first)*BlockSize); err != nil {
			return sum, fmt.Errorf("read of blocks %d+%d: %w", first, len(p)/BlockSize, err)
		}
		hash.Write(p)
	}
	copy(sum[:], hash.Sum(nil))
	return sum, nil
}

const problemsMax = 12

func (m *Model) check(r Reader, c cut) (View, error) {
	view := View{visible: make([]found, len(m.blocks))}
	var problems []error
	report := func(err error) {
		if err != nil && len(problems) < problemsMax {
			problems = append(problems, err)
		}
	}
	hash := sha256.New()
	buffer := make([]byte, 256*BlockSize)
	for first := 0; first < len(m.blocks); first += 256 {
		p := buffer[:min(256, len(m.blocks)-first)*BlockSize]
		if err := r.Read(p, int64(first)*BlockSize); err != nil {
			return view, fmt.Errorf("read of blocks %d+%d: %w", first, len(p)/BlockSize, err)
		}
		hash.Write(p)
		for i := 0; i*BlockSize < len(p); i++ {
			at, err := m.block(first+i, p[i*BlockSize:(i+1)*BlockSize], c)
			report(err)
			view.visible[first+i] = at
			view.count(m.blocks[first+i], at, c)
		}
	}
	copy(view.Sum[:], hash.Sum(nil))
	if len(problems) == 0 {
		report(m.prefix(view, c))
		if c.requests {
			report(m.whole(view, c))
		}
	}
	return view, errors.Join(problems...)
}

func (v *View) count(versions []version, at found, c cut) {
	if at.newest > lastMust(versions, c) {
		v.Newer++
	}
	if at.newest < len(versions)-1 {
		v.Lost++
	}
}

func lastMust(versions []version, c cut) int {
	last := 0
	for i, v := range versions {
		if c.must(v) {
			last = i
		}
	}
	return last
}

// block finds the version that a block shows and judges it alone.
func (m *Model) block(block int, p []byte, c cut) (found, error) {
	versions := m.blocks[block]
	is, err := decode(p, uint64(block))
	if err != nil {
		return found{}, err
	}
	at := found{oldest: -1, newest: -1}
	must := lastMust(versions, c)
	for i, v := range versions {
		if v.zero != is.zero || (!v.zero && v.gen != is.gen) {
			continue
		}
		if at.oldest < 0 || at.oldest < must {
			at.oldest = i
		}
		if v.issued <= c.may {
			at.newest = i
		}
	}
	want := versions[must]
	switch {
	case at.oldest < 0 && is.zero:
		return found{}, fmt.Errorf("block %d: reads as zeroes, must hold generation %d", block, want.gen)
	case at.oldest < 0:
		return found{}, fmt.Errorf("block %d: holds generation %d of connection %d, which was overwritten before the last check or lost and came back; must hold %d or later",
			block, is.gen, is.conn, want.gen)
	case at.newest < 0:
		return found{}, fmt.Errorf("block %d: holds generation %d, which was issued afterwards", block, is.gen)
	case at.newest < must:
		return found{}, fmt.Errorf("block %d: lost: holds generation %d (zero %v), must hold %d (zero %v, fua %v) or later",
			block, is.gen, is.zero, want.gen, want.zero, want.fua)
	}
	at.oldest = min(at.oldest, at.newest)
	return at, nil
}

// prefix finds a request that is missing although it was acknowledged before one that is present was sent.
func (m *Model) prefix(view View, c cut) error {
	lost, lostBlock, lostGen := never, 0, uint64(0)
	kept, keptBlock, keptGen := Tick(0), 0, uint64(0)
	for b, at := range view.visible {
		versions := m.blocks[b]
		if v := versions[at.oldest]; v.issued > kept {
			kept, keptBlock, keptGen = v.issued, b, v.gen
		}
		for _, v := range versions[at.newest+1:] {
			if v.acked < lost && v.issued <= c.may {
				lost, lostBlock, lostGen = v.acked, b, v.gen
			}
		}
	}
	if lost < kept {
		return fmt.Errorf("not a prefix: block %d lost generation %d (acknowledged at tick %d) and block %d kept generation %d (sent at tick %d)",
			lostBlock, lostGen, lost, keptBlock, keptGen, kept)
	}
	return nil
}

// whole finds a request of several blocks that is there in part.
func (m *Model) whole(view View, c cut) error {
	type split struct{ in, out, inBlock, outBlock int }
	requests := map[uint64]split{}
	for b, at := range view.visible {
		for i, v := range m.blocks[b] {
			if v.issued == 0 || v.issued > c.may || (i > at.oldest && i <= at.newest) {
				continue // settled before, afterwards, or zeroes that could be either
			}
			s := requests[v.gen]
			if i <= at.oldest {
				s.in, s.inBlock = s.in+1, b
			} else {
				s.out, s.outBlock = s.out+1, b
			}
			requests[v.gen] = s
		}
	}
	for gen, s := range requests {
		if s.in > 0 && s.out > 0 {
			return fmt.Errorf("request split: generation %d is there at block %d and missing at block %d", gen, s.inBlock, s.outBlock)
		}
	}
	return nil
}
