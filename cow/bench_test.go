package cow

import "testing"

var sink uint64

// benchPage is a page of a head of which each block was written once, in order.
func benchPage() *Page {
	p := new(Page)
	p.Reset(7)
	for i := range PageBlocks {
		p.Set(i, uint64(1<<20+i), uint32(i)*0x9e3779b1)
	}
	return p
}

// scattered are the blocks of a page in a random-looking order.
func scattered(i int) int { return i * 197 % PageBlocks }

func BenchmarkPageLookup(b *testing.B) {
	p, i := benchPage(), 0
	for b.Loop() {
		loc, crc := p.Lookup(scattered(i))
		sink += loc + uint64(crc)
		i++
	}
}

func BenchmarkPageSet(b *testing.B) {
	p, i := benchPage(), 0
	for b.Loop() {
		sink += p.Set(scattered(i), uint64(i)+1<<21, uint32(i)).Loc
		i++
	}
}

// BenchmarkPageEncode is a checkpoint's part of a page of which 8 blocks were written.
func BenchmarkPageEncode(b *testing.B) {
	p, i := benchPage(), 0
	p.Loaded(true, 1)
	var r Record
	var buf []byte
	for b.Loop() {
		for range 8 {
			p.Set(scattered(i), uint64(i)*5+1<<21, uint32(i))
			i++
		}
		p.Encode(&r)
		buf = r.Append(buf[:0])
		sink += uint64(len(buf))
	}
}

// BenchmarkPageDecode is a page miss's part of a whole page of scattered blocks.
func BenchmarkPageDecode(b *testing.B) {
	p := benchPage()
	for i := range PageBlocks {
		p.Set(scattered(i), uint64(i)*5+1<<21, uint32(i))
	}
	var r Record
	p.Encode(&r)
	buf := r.Append(nil)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if err := r.Decode(buf); err != nil {
			b.Fatal(err)
		}
		p.Reset(8)
		p.Fill(7, &r)
	}
}
