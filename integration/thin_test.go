package integration

import (
	"errors"
	"math"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"lunar/integration/harness"
)

const (
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

// TestThin: 16 TiB cost nothing until they are written.
func TestThin(t *testing.T) {
	s := harness.Start(t, "--capacity", "8G")
	s.Lunar("lun", "create", "first", "1G") // the pool's own files are there
	before := s.DiskBytes()
	var took []time.Duration
	for _, name := range []string{"huge", "huge2", "huge3"} {
		took = append(took, s.Run("lun", "create", name, "16T").Took)
	}
	grown := s.DiskBytes() - before
	if grown >= mib {
		t.Errorf("three thin LUNs of 16 TiB cost %d bytes of disk, more than 1 MiB", grown)
	}
	slices.Sort(took)
	if took[1] > harness.Within(100*time.Millisecond) {
		t.Errorf("creating a thin LUN of 16 TiB took %v, more than 100 ms", took[1])
	}
	t.Logf("three 16 TiB thin LUNs: %d bytes of disk, created in %v", grown, took)

	c := s.Dial("huge")
	if c.Size != 16*tib {
		t.Fatalf("the export has %d bytes", c.Size)
	}
	p := make([]byte, 4096)
	for _, off := range []int64{0, 5*tib + 12288, 16*tib - 4096} {
		if err := c.Read(p, off); err != nil || p[0] != 0 {
			t.Fatalf("read at %d: %v, %d", off, err, p[0])
		}
		for i := range p {
			p[i] = byte(off>>12) | 1
		}
		if err := c.Write(p, off, true); err != nil {
			t.Fatalf("write at %d: %v", off, err)
		}
		clear(p)
	}
	s.Restart()
	c = s.Dial("huge")
	for _, off := range []int64{0, 5*tib + 12288, 16*tib - 4096} {
		if err := c.Read(p, off); err != nil || p[0] != byte(off>>12)|1 || p[4095] != p[0] {
			t.Fatalf("after a restart, read at %d: %v, %d", off, err, p[0])
		}
	}
	if used := s.LUN("huge").UsedBytes; used != 3*4096 {
		t.Errorf("used_bytes is %d after three blocks", used)
	}
}

// amounts finds sizes in a message, as bytes.
var amounts = regexp.MustCompile(`([0-9][0-9.,]*) ?([KMGT]?)(i?B)?\b`)

// names tells whether a message holds a size within 10 % of the one wanted.
func names(message string, want int64) bool {
	scale := map[string]float64{"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
	for _, m := range amounts.FindAllStringSubmatch(message, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err == nil && math.Abs(v*scale[m[2]]-float64(want)) < 0.1*float64(want) {
			return true
		}
	}
	return false
}

// TestThick: a promise that cannot be kept is refused with what is left; one that was given is kept, whatever thin
// LUNs do to the pool.
func TestThick(t *testing.T) {
	s := harness.Start(t, "--capacity", "2G")
	free := s.Pool().FreeBytes
	r := s.Refused([]string{"big"}, "lun", "create", "big", "4G", "--thick")
	if !names(r.Stderr, free) {
		t.Errorf("the refusal does not say what is left (%d bytes): %s", free, r.Stderr)
	}
	if n := s.Pool().LUNs; n != 0 {
		t.Errorf("%d LUNs after a refusal", n)
	}
	s.Lunar("lun", "create", "thick", "512M", "--thick", "--reserve", "0")
	left := s.Pool().FreeBytes
	if free-left < 512*mib {
		t.Errorf("free went from %d to %d bytes with a thick LUN of 512 MiB", free, left)
	}
	s.Refused(nil, "lun", "create", "second", "1536M", "--thick", "--reserve", "0")

	// A thin LUN takes all that is left.
	s.Lunar("lun", "create", "thin", "16G")
	c := s.Dial("thin")
	p := make([]byte, 4*mib)
	written := int64(0)
	var err error
	for err == nil && written < 4*gib {
		fill(p, uint64(written)+1)
		if err = c.Write(p, written, false); err == nil {
			written += int64(len(p))
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the thin LUN took %d bytes of a 2 GiB pool with a 512 MiB promise, then: %v", written, err)
	}
	if written < left/2 {
		t.Errorf("ENOSPC after %d bytes, but %d were free", written, left)
	}
	if err := c.Read(p, 0); err != nil {
		t.Errorf("reads do not go on after ENOSPC: %v", err)
	}
	d := s.Dial("thick")
	for pass := range int64(2) { // fill, and overwrite: what an overwrite frees is the LUN's own again
		for off := int64(0); off < 512*mib; off += int64(len(p)) {
			fill(p, uint64(off+pass)+7)
			if err := d.Write(p, off, false); err != nil {
				t.Fatalf("pass %d: a thick LUN's write at %d failed in a full pool: %v", pass, off, err)
			}
		}
		if err := d.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	want := make([]byte, len(p))
	for off := int64(0); off < 512*mib; off += int64(len(p)) {
		fill(want, uint64(off+1)+7)
		if err := d.Read(p, off); err != nil || string(p) != string(want) {
			t.Fatalf("the thick LUN reads back wrong at %d (%v)", off, err)
		}
	}
	t.Logf("thin LUN got %d MiB of %d MiB free before ENOSPC; pool on disk %d MiB of 2048", written/mib, left/mib, s.DiskBytes()/mib)
}

// fill makes bytes that neither compress nor repeat.
func fill(p []byte, seed uint64) {
	x := seed*0x9e3779b97f4a7c15 | 1
	for i := 0; i+8 <= len(p); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		p[i], p[i+1], p[i+2], p[i+3] = byte(x), byte(x>>8), byte(x>>16), byte(x>>24)
		p[i+4], p[i+5], p[i+6], p[i+7] = byte(x>>32), byte(x>>40), byte(x>>48), byte(x>>56)
	}
}
