package index

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Page reads exactly the record that version has of a page, appended to buf[:0].
func (x *Index) Page(branch, page, version uint64, buf []byte) (rec []byte, ok bool, err error) {
	return x.get(appendPageKey(make([]byte, 0, pageLen), branch, page, version), buf)
}

// NewestPage reads the newest record of a page on a branch that is not newer than atMost, appended to buf[:0].
func (x *Index) NewestPage(branch, page, atMost uint64, buf []byte) (version uint64, rec []byte, ok bool, err error) {
	r := x.PageReader()
	version, rec, ok, err = r.SeekNewest(branch, page, atMost)
	rec = append(buf[:0], rec...)
	if cerr := r.Close(); err == nil && cerr != nil {
		return 0, nil, false, cerr
	}
	if !ok {
		return 0, nil, false, err
	}
	return version, rec, true, err
}

// PageReader reads stored versions of pages, all of them as they were when it was made. It holds old tables and memory:
// it lives for one load.
type PageReader struct {
	x    *Index
	iter *pebble.Iterator
	err  error
	key  [pageLen]byte
}

// PageReader returns a reader, to be closed. An error on the way is returned by its first use.
func (x *Index) PageReader() *PageReader {
	r := &PageReader{x: x}
	r.iter, r.err = x.newIter(prefixOptions)
	return r
}

// prefixOptions are for lookups by prefix: many find nothing, so that even the largest level's filters are worth reading.
var prefixOptions = &pebble.IterOptions{KeyTypes: pebble.IterKeyTypePointsOnly, UseL6Filters: true}

// SeekNewest goes to the newest record of a page on a branch that is not newer than atMost. rec is valid until the next call.
func (r *PageReader) SeekNewest(branch, page, atMost uint64) (version uint64, rec []byte, ok bool, err error) {
	if r.err != nil {
		return 0, nil, false, r.err
	}
	defer r.x.fuse.catch(&err)
	return r.at(r.iter.SeekPrefixGE(appendPageKey(r.key[:0], branch, page, atMost)))
}

// Next goes to the next older record of the same page.
func (r *PageReader) Next() (version uint64, rec []byte, ok bool, err error) {
	if r.err != nil {
		return 0, nil, false, r.err
	}
	defer r.x.fuse.catch(&err)
	return r.at(r.iter.Next())
}

func (r *PageReader) at(valid bool) (version uint64, rec []byte, ok bool, err error) {
	if !valid {
		return 0, nil, false, readError(r.iter.Error())
	}
	k, err := decodeKey(r.iter.Key())
	if err != nil {
		return 0, nil, false, err
	}
	rec, err = r.iter.ValueAndErr()
	if err != nil {
		return 0, nil, false, readError(err)
	}
	return k.version, rec, true, nil
}

// Close ends the reader. It may be called more than once.
func (r *PageReader) Close() (err error) {
	if r.iter == nil {
		return nil
	}
	defer r.x.fuse.catch(&err)
	iter := r.iter
	r.iter, r.err = nil, fmt.Errorf("%w: the reader was closed", ErrClosed)
	return readError(iter.Close())
}

// Pages lists the pages from `from` to `last` that have any record on a branch, in order, until fn returns false. It makes one
// seek for each page, however many versions there are of it.
func (x *Index) Pages(branch, from, last uint64, fn func(page uint64) (more bool)) (err error) {
	iter, err := x.newIter(&pebble.IterOptions{LowerBound: appendPagePrefix(nil, branch, from), UpperBound: successor(nil, appendPagePrefix(nil, branch, last))})
	if err != nil {
		return err
	}
	defer x.fuse.catch(&err)
	defer func() {
		if cerr := iter.Close(); err == nil {
			err = readError(cerr)
		}
	}()
	var next [pageLen]byte
	for valid := iter.First(); valid; {
		k, err := decodeKey(iter.Key())
		if err != nil {
			return err
		}
		if !fn(k.page) || k.page == last {
			return nil
		}
		valid = iter.SeekGE(appendPagePrefix(next[:0], branch, k.page+1))
	}
	return readError(iter.Error())
}

// Changes lists the pages from `from` on that a version has records of, in order, until fn returns false.
func (x *Index) Changes(branch, version, from uint64, fn func(page uint64) (more bool)) error {
	return x.scanPrefix(appendChangeKey(nil, branch, version, from), func(k key, _ []byte) (bool, error) {
		return fn(k.page), nil
	})
}

// Versions lists the records of a page on a branch, newest first, until fn returns false. rec is valid inside fn only.
func (x *Index) Versions(branch, page uint64, fn func(version uint64, rec []byte) (more bool)) error {
	return x.scanPrefix(appendPageKey(nil, branch, page, ^uint64(0)), func(k key, rec []byte) (bool, error) {
		return fn(k.version, rec), nil
	})
}

// AllPages lists every record of every page, in key order. rec is valid inside fn only.
func (x *Index) AllPages(fn func(branch, page, version uint64, rec []byte) error) error {
	return x.scanKind(pageKind, func(k key, rec []byte) error { return fn(k.branch, k.page, k.version, rec) })
}

// get reads one key, appended to buf[:0].
func (x *Index) get(key, buf []byte) (value []byte, ok bool, err error) {
	if err := x.use(); err != nil {
		return nil, false, err
	}
	defer x.fuse.catch(&err)
	v, closer, err := x.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, readError(err)
	}
	value = append(buf[:0], v...)
	return value, true, readError(closer.Close())
}

func (x *Index) newIter(o *pebble.IterOptions) (iter *pebble.Iterator, err error) {
	if err := x.use(); err != nil {
		return nil, err
	}
	defer x.fuse.catch(&err)
	iter, err = x.db.NewIter(o)
	return iter, readError(err)
}

// scanPrefix walks the keys from `from` on that share its prefix.
func (x *Index) scanPrefix(from []byte, fn func(k key, value []byte) (more bool, err error)) error {
	return x.walk(prefixOptions, func(i *pebble.Iterator) bool { return i.SeekPrefixGE(from) }, fn)
}

// scan walks the keys of a range.
func (x *Index) scan(lower, upper []byte, fn func(k key, value []byte) (more bool, err error)) error {
	return x.walk(&pebble.IterOptions{LowerBound: lower, UpperBound: upper}, (*pebble.Iterator).First, fn)
}

// scanKind walks all keys of a kind.
func (x *Index) scanKind(kind byte, fn func(k key, value []byte) error) error {
	return x.scan([]byte{kind}, []byte{kind + 1}, func(k key, value []byte) (bool, error) { return true, fn(k, value) })
}

func (x *Index) walk(o *pebble.IterOptions, first func(*pebble.Iterator) bool,
	fn func(k key, value []byte) (more bool, err error)) (err error) {
	if err := x.use(); err != nil {
		return err
	}
	defer x.fuse.catch(&err)
	return walk(x.db, o, first, fn)
}

func walk(from pebble.Reader, o *pebble.IterOptions, first func(*pebble.Iterator) bool,
	fn func(k key, value []byte) (more bool, err error)) (err error) {
	iter, err := from.NewIter(o)
	if err != nil {
		return readError(err)
	}
	defer func() {
		if cerr := iter.Close(); err == nil {
			err = readError(cerr)
		}
	}()
	for valid := first(iter); valid; valid = iter.Next() {
		k, err := decodeKey(iter.Key())
		if err != nil {
			return err
		}
		value, err := iter.ValueAndErr()
		if err != nil {
			return readError(err)
		}
		more, err := fn(k, value)
		if err != nil || !more {
			return err
		}
	}
	return readError(iter.Error())
}
