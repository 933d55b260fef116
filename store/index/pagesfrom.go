package index

// PagesFrom lists the records of pages in key order from one on, itself included, until fn returns false. A long walk is made of
// several, since each keeps old tables on disk while it runs. rec is valid inside fn only.
func (x *Index) PagesFrom(branch, page, version uint64, fn func(branch, page, version uint64, rec []byte) (more bool)) error {
	return x.scan(appendPageKey(nil, branch, page, version), []byte{pageKind + 1}, func(k key, rec []byte) (bool, error) {
		return fn(k.branch, k.page, k.version, rec), nil
	})
}
