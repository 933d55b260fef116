package lun

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
)

// simulated is a log without bytes: segments of blocks, cleaned as the cleaner does it.
type simulated struct {
	where   []int32 // segment of each block of the LUN
	live    []int64 // of each segment
	filled  []int64
	sealed  []uint64 // when
	members [][]int32
	free    []int32
	open    [2]int32
	size    int64
	now     uint64
	moved   int64
}

func newSimulated(blocks, segments int, size int64) *simulated {
	s := &simulated{where: make([]int32, blocks), live: make([]int64, segments), filled: make([]int64, segments),
		sealed: make([]uint64, segments), members: make([][]int32, segments), size: size}
	for i := range segments {
		s.free = append(s.free, int32(i))
	}
	for i := range s.where {
		s.where[i] = -1
	}
	s.open = [2]int32{s.take(), s.take()}
	return s
}

func (s *simulated) take() int32 {
	n := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	s.live[n], s.filled[n], s.sealed[n], s.members[n] = 0, 0, 0, s.members[n][:0]
	return n
}

func (s *simulated) put(block int32, head int) {
	if at := s.where[block]; at >= 0 {
		s.live[at]--
	}
	n := s.open[head]
	s.where[block] = n
	s.live[n]++
	s.filled[n]++
	s.members[n] = append(s.members[n], block)
	s.now++
	if s.filled[n] == s.size {
		s.sealed[n] = s.now
		s.open[head] = s.take()
	}
}

// clean empties one victim at a time while segments are short.
func (s *simulated) clean(low, high, head int) {
	for len(s.free) < high {
		var all []victim
		for i, at := range s.sealed {
			if at > 0 {
				all = append(all, victim{number: uint64(i), live: s.live[i], blocks: s.size, age: s.now - at})
			}
		}
		vs := pickVictims(all, pressureAt(len(s.free), low, high), 1)
		if len(vs) == 0 {
			return
		}
		n := int32(vs[0].number)
		s.sealed[n] = 0
		for _, b := range s.members[n] {
			if s.where[b] == n {
				s.moved++
				s.put(b, head)
			}
		}
		s.free = append(s.free, n)
	}
}

// BenchmarkSeparateHeads: copies in the clients' segment, as it is, and in one of their own. What it reports is the blocks written
// for each that a client wrote, uniformly at random and with nine tenths of the writes to a tenth of the LUN.
func BenchmarkSeparateHeads(b *testing.B) {
	if os.Getenv("LUNAR_LONG") == "" {
		b.Skip("takes ten minutes; LUNAR_LONG=1 runs it")
	}
	const segments, size = 512, 1024
	for _, hot := range []bool{false, true} {
		for _, fill := range []int{50, 75, 90} {
			for _, heads := range []int{1, 2} {
				b.Run(fmt.Sprintf("hot=%v/fill=%d/heads=%d", hot, fill, heads), func(b *testing.B) {
					for b.Loop() {
						b.ReportMetric(simulate(segments, size, fill, hot, heads), "amplification")
					}
				})
			}
		}
	}
}

func simulate(segments, size, fill int, hot bool, heads int) float64 {
	blocks := segments * size / 100 * fill
	s := newSimulated(blocks, segments, int64(size))
	random := rand.New(rand.NewPCG(1, 2))
	write := func(block int) {
		s.put(int32(block), 0)
		s.clean(3, 3+segments/16, heads-1)
	}
	for i := range blocks {
		write(i)
	}
	for round := range 4 { // three to settle
		s.moved = 0
		for range blocks {
			block := random.IntN(blocks)
			if hot && random.IntN(10) > 0 {
				block %= blocks / 10
			}
			write(block)
		}
		if round == 3 {
			break
		}
	}
	return 1 + float64(s.moved)/float64(blocks)
}
