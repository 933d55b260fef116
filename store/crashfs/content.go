package crashfs

import "slices"

const pageSize = 4096

// page is never changed once it is in a content: it may be shared by images.
type page [pageSize]byte

var zeroPage page

// content is the bytes of a file: a table of pages, nil for one of zeros.
type content struct {
	pages []*page
	size  int64
	own   bool // the table is nobody else's
}

// share returns the same content for somebody else.
func (c *content) share() content {
	c.own = false
	return *c
}

func (c *content) set(i int, p *page) {
	if !c.own {
		c.pages, c.own = slices.Clone(c.pages), true
	}
	for len(c.pages) <= i {
		c.pages = append(c.pages, nil)
	}
	c.pages[i] = p
}

func (c *content) page(i int) *page {
	if i < len(c.pages) && c.pages[i] != nil {
		return c.pages[i]
	}
	return &zeroPage
}

func (c *content) read(b []byte, off int64) int {
	if off >= c.size {
		return 0
	}
	b = b[:min(int64(len(b)), c.size-off)]
	for n := 0; n < len(b); {
		at := off + int64(n)
		n += copy(b[n:], c.page(int(at / pageSize))[at%pageSize:])
	}
	return len(b)
}

// write puts b at off. Whole pages are kept as they are in b, which must not change any more.
func (c *content) write(b []byte, off int64) {
	c.size = max(c.size, off+int64(len(b)))
	for len(b) > 0 {
		i, at := int(off/pageSize), int(off%pageSize)
		if at == 0 && len(b) >= pageSize {
			c.set(i, (*page)(b[:pageSize]))
			b, off = b[pageSize:], off+pageSize
			continue
		}
		p := *c.page(i)
		n := copy(p[at:], b)
		c.set(i, &p)
		b, off = b[n:], off+int64(n)
	}
}

// truncate changes the size. What was behind a smaller one reads as zeros if it grows again.
func (c *content) truncate(size int64) {
	if size < c.size {
		i := int(size / pageSize)
		if tail := int(size % pageSize); tail > 0 && i < len(c.pages) && c.pages[i] != nil {
			p := *c.pages[i]
			clear(p[tail:])
			c.set(i, &p)
			i++
		}
		for ; i < len(c.pages); i++ {
			c.set(i, nil)
		}
	}
	c.size = size
}

// punch makes whole pages of a range zeros; the size stays.
func (c *content) punch(off, n int64) {
	for i := int((off + pageSize - 1) / pageSize); int64(i+1)*pageSize <= off+n && i < len(c.pages); i++ {
		c.set(i, nil)
	}
}

// effect is one change of a file that was not synced.
type effect struct {
	kind Kind // OpWrite, OpTruncate, OpPunch
	data []byte
	off  int64
	n    int64 // of a hole
}

// apply does all of it.
func (e *effect) apply(c *content) {
	switch e.kind {
	case OpWrite:
		c.write(e.data, e.off)
	case OpTruncate:
		c.truncate(e.off)
	case OpPunch:
		c.punch(e.off, e.n)
	}
}
