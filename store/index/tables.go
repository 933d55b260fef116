package index

// Objects lists the catalogue's objects of a kind by id. The value is valid inside fn only, here and below.
func (x *Index) Objects(kind uint8, fn func(id uint64, value []byte) error) error {
	lower := []byte{objectKind, kind}
	upper := []byte{objectKind, kind + 1}
	if kind == 0xff {
		upper = []byte{objectKind + 1}
	}
	return x.scan(lower, upper, func(k key, value []byte) (bool, error) { return true, fn(k.id, value) })
}

// Counters lists the counters of all versions.
func (x *Index) Counters(fn func(version uint64, value []byte) error) error {
	return x.scanKind(counterKind, func(k key, value []byte) error { return fn(k.version, value) })
}

// Segments lists what is known of segments, by number.
func (x *Index) Segments(fn func(number uint64, value []byte) error) error {
	return x.scanKind(segmentKind, func(k key, value []byte) error { return fn(k.id, value) })
}

// Meta reads a fact about the whole pool.
func (x *Index) Meta(name string) (value []byte, ok bool, err error) {
	return x.get(appendMetaKey(nil, name), nil)
}
