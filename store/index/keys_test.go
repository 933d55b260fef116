package index

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// The order and bytes of the keys are the format: a change here is a new Format.
func TestKeyOrder(t *testing.T) {
	golden := []struct {
		key []byte
		hex string
	}{
		{appendChangeKey(nil, 1, 2, 3), "63000000000000000100000000000000020000000000000003"},
		{appendChangeKey(nil, 1, 2, 4), "63000000000000000100000000000000020000000000000004"},
		{appendChangeKey(nil, 1, 3, 0), "63000000000000000100000000000000030000000000000000"},
		{appendChangeKey(nil, 256, 1, 1), "63000000000000010000000000000000010000000000000001"},
		{appendMetaKey(nil, ""), "6d"},
		{appendMetaKey(nil, "replay"), "6d7265706c6179"},
		{appendCounterKey(nil, 255), "6e00000000000000ff"},
		{appendCounterKey(nil, 256), "6e0000000000000100"},
		{appendObjectKey(nil, 1, 9), "6f010000000000000009"},
		{appendObjectKey(nil, 2, 1), "6f020000000000000001"},
		{appendPageKey(nil, 1, 2, ^uint64(0)), "70000000000000000100000000000000020000000000000000"},
		{appendPageKey(nil, 1, 2, 10), "7000000000000000010000000000000002fffffffffffffff5"},
		{appendPageKey(nil, 1, 2, 9), "7000000000000000010000000000000002fffffffffffffff6"},
		{appendPageKey(nil, 1, 3, 99), "7000000000000000010000000000000003ffffffffffffff9c"},
		{appendPageKey(nil, 2, 0, 1), "7000000000000000020000000000000000fffffffffffffffe"},
		{appendSegmentKey(nil, 7), "730000000000000007"},
	}
	for i, g := range golden {
		if got := fmt.Sprintf("%x", g.key); got != g.hex {
			t.Errorf("key %d is %s, want %s", i, got, g.hex)
		}
		if i > 0 && bytes.Compare(golden[i-1].key, g.key) >= 0 {
			t.Errorf("key %d %x does not sort behind %x", i, g.key, golden[i-1].key)
		}
		k, err := decodeKey(g.key)
		if err != nil || !bytes.Equal(k.append(nil), g.key) {
			t.Errorf("key %x decodes to %+v, %v", g.key, k, err)
		}
	}
}

func TestDecodeKeyRefuses(t *testing.T) {
	for _, b := range [][]byte{nil, {}, {'x'}, {'p'}, make([]byte, 25), bytes.Repeat([]byte{'p'}, 24), bytes.Repeat([]byte{'p'}, 26),
		bytes.Repeat([]byte{'c'}, 17), bytes.Repeat([]byte{'n'}, 10), bytes.Repeat([]byte{'o'}, 9), bytes.Repeat([]byte{'s'}, 8)} {
		if k, err := decodeKey(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%x decodes to %+v, %v", b, k, err)
		}
	}
}

func FuzzDecodeKey(f *testing.F) {
	f.Add(appendPageKey(nil, 1, 2, 3))
	f.Add(appendChangeKey(nil, 1, 2, 3))
	f.Add(appendObjectKey(nil, 1, 2))
	f.Add(appendMetaKey(nil, "name"))
	f.Add([]byte{'s', 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := decodeKey(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%x: %v", b, err)
			}
			return
		}
		if got := k.append(nil); !bytes.Equal(got, b) {
			t.Fatalf("%x comes back as %x", b, got)
		}
	})
}

// TestComparer holds the comparer to what Pebble's documentation of Split, Separator and ImmediateSuccessor asks for, on keys
// and on every shortened form of them.
func TestComparer(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	small := func() uint64 { return []uint64{0, 1, 0xff, 0x100, 1 << 63, ^uint64(0)}[rng.IntN(6)] }
	var keys [][]byte
	for range 400 {
		k := key{kind: "cmnops"[rng.IntN(6)], branch: small(), page: small(), version: small(), object: uint8(rng.IntN(3)),
			id: small(), name: "name"[:rng.IntN(5)]}.append(nil)
		keys = append(keys, k, k[:1+rng.IntN(len(k))])
	}
	slices.SortFunc(keys, bytes.Compare)
	keys = slices.CompactFunc(keys, bytes.Equal)
	prefix := func(b []byte) []byte { return b[:splitKey(b)] }
	for i, b := range keys {
		if p := prefix(b); splitKey(p) != len(p) {
			t.Fatalf("the prefix %x of %x has a suffix itself", p, b)
		}
		if s := successor(nil, prefix(b)); bytes.Compare(prefix(b), s) >= 0 || splitKey(s) != len(s) {
			t.Fatalf("successor of %x is %x", prefix(b), s)
		}
		if i == 0 {
			continue
		}
		a := keys[i-1]
		if bytes.Compare(prefix(a), prefix(b)) > 0 {
			t.Fatalf("%x < %x, but not their prefixes", a, b)
		}
		if s := comparer.Separator(nil, a, b); bytes.Compare(a, s) > 0 || bytes.Compare(s, b) >= 0 {
			t.Fatalf("separator of %x and %x is %x", a, b, s)
		}
		_, aErr := decodeKey(a) // a shortened key is nobody's prefix
		_, bErr := decodeKey(b)
		next := successor(nil, prefix(a))
		if aErr == nil && bErr == nil && !bytes.Equal(prefix(a), prefix(b)) && bytes.Compare(next, prefix(b)) > 0 {
			t.Fatalf("the successor %x of %x leaves out %x", next, prefix(a), prefix(b))
		}
	}
}
