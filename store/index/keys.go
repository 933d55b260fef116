package index

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// The key table. All numbers are big endian, so that byte order is number order; a page's versions are stored inverted, so
// that the newest comes first.
//
//	'c' branch version page   nothing            what a version changed, in page order
//	'm' name                  bytes              facts about the whole pool
//	'n' version               bytes              counters of a version
//	'o' kind id               bytes              catalogue
//	'p' branch page ^version  page record        the map
//	's' number                bytes              segments
//
// The first 17 bytes of a page key are its prefix: bloom filters hold prefixes, so a branch that never wrote a page
// is usually skipped without reading a block, and one seek finds the newest version. The first 17 bytes of a change key are
// its prefix too: they find all that one version changed.
const (
	changeKind  = 'c'
	metaKind    = 'm'
	counterKind = 'n'
	objectKind  = 'o'
	pageKind    = 'p'
	segmentKind = 's'

	prefixLen  = 1 + 8 + 8
	pageLen    = prefixLen + 8
	counterLen = 1 + 8
	objectLen  = 1 + 1 + 8
	segmentLen = 1 + 8
)

// key is a decoded key. Fields that its kind does not have are zero.
type key struct {
	kind    byte
	branch  uint64
	page    uint64
	version uint64
	object  uint8
	id      uint64 // of an object or a segment
	name    string // of a meta key
}

func appendPageKey(dst []byte, branch, page, version uint64) []byte {
	return binary.BigEndian.AppendUint64(appendPagePrefix(dst, branch, page), ^version)
}

func appendPagePrefix(dst []byte, branch, page uint64) []byte {
	dst = append(dst, pageKind)
	dst = binary.BigEndian.AppendUint64(dst, branch)
	return binary.BigEndian.AppendUint64(dst, page)
}

func appendChangeKey(dst []byte, branch, version, page uint64) []byte {
	dst = append(dst, changeKind)
	dst = binary.BigEndian.AppendUint64(dst, branch)
	dst = binary.BigEndian.AppendUint64(dst, version)
	return binary.BigEndian.AppendUint64(dst, page)
}

func appendObjectKey(dst []byte, kind uint8, id uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, objectKind, kind), id)
}

func appendCounterKey(dst []byte, version uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, counterKind), version)
}

func appendSegmentKey(dst []byte, number uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, segmentKind), number)
}

func appendMetaKey(dst []byte, name string) []byte {
	return append(append(dst, metaKind), name...)
}

// decodeKey is the inverse of the append functions. A key that none of them makes is a damage.
func decodeKey(b []byte) (key, error) {
	if len(b) == 0 {
		return key{}, fmt.Errorf("%w: an empty key", ErrCorrupt)
	}
	k := key{kind: b[0]}
	number := func(at int) uint64 { return binary.BigEndian.Uint64(b[at:]) }
	want := len(b)
	switch k.kind {
	case pageKind, changeKind:
		want = pageLen
	case counterKind:
		want = counterLen
	case objectKind:
		want = objectLen
	case segmentKind:
		want = segmentLen
	case metaKind:
	default:
		return key{}, fmt.Errorf("%w: key %x is of no known kind", ErrCorrupt, b)
	}
	if len(b) != want {
		return key{}, fmt.Errorf("%w: key %x has %d bytes and not %d", ErrCorrupt, b, len(b), want)
	}
	switch k.kind {
	case pageKind:
		k.branch, k.page, k.version = number(1), number(9), ^number(17)
	case changeKind:
		k.branch, k.version, k.page = number(1), number(9), number(17)
	case counterKind:
		k.version = number(1)
	case objectKind:
		k.object, k.id = b[1], number(2)
	case segmentKind:
		k.id = number(1)
	case metaKind:
		k.name = string(b[1:])
	}
	return k, nil
}

// append is the inverse of decodeKey.
func (k key) append(dst []byte) []byte {
	switch k.kind {
	case pageKind:
		return appendPageKey(dst, k.branch, k.page, k.version)
	case changeKind:
		return appendChangeKey(dst, k.branch, k.version, k.page)
	case counterKind:
		return appendCounterKey(dst, k.version)
	case objectKind:
		return appendObjectKey(dst, k.object, k.id)
	case segmentKind:
		return appendSegmentKey(dst, k.id)
	}
	return appendMetaKey(dst, k.name)
}

// splitKey cuts a key into the prefix that filters hold and the rest. Pebble calls it with shortened keys as well.
func splitKey(b []byte) int {
	if len(b) > prefixLen && (b[0] == pageKind || b[0] == changeKind) {
		return prefixLen
	}
	return len(b)
}

// successor is the smallest prefix that is larger than prefix a.
func successor(dst, a []byte) []byte {
	dst = append(dst, a...)
	if len(a) != prefixLen || (a[0] != pageKind && a[0] != changeKind) {
		return append(dst, 0)
	}
	for i := len(dst) - 1; ; i-- { // ends at the kind byte, which is not 0xff
		dst[i]++
		if dst[i] != 0 {
			return dst
		}
	}
}

// comparer orders keys by their bytes; its name is in every table, and part of the format.
var comparer = &pebble.Comparer{
	Name:                 "lunar.keys.1",
	Compare:              bytes.Compare,
	Equal:                bytes.Equal,
	ComparePointSuffixes: bytes.Compare,
	CompareRangeSuffixes: bytes.Compare,
	AbbreviatedKey:       pebble.DefaultComparer.AbbreviatedKey,
	FormatKey:            pebble.DefaultComparer.FormatKey,
	Separator:            pebble.DefaultComparer.Separator,
	Successor:            pebble.DefaultComparer.Successor,
	ImmediateSuccessor:   successor,
	Split:                splitKey,
}
