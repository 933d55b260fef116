package nbd

import (
	"slices"
	"strings"
)

// Names of metadata contexts.
const (
	contextAllocation  = "base:allocation"
	prefixChanged      = "lunar:changed:"
	prefixDirtyBitmap  = "qemu:dirty-bitmap:"
	maxSelectedContext = 64 // each is a bit of a uint64 in BLOCK_STATUS
	// maxListedSnapshots are listed for those who do not ask by name. A LUN may
	// have far more; then the list has the wildcard as well, as the sign that more
	// can be selected.
	maxListedSnapshots = 256
)

// metaContext is a context that a client has selected; its id is its place in
// the list, from 1.
type metaContext struct {
	name  string
	since string // the snapshot compared with; "" for base:allocation
	age   int    // how many snapshots are newer
}

// contextsOf lists all contexts of a device.
func contextsOf(d Device) []metaContext {
	list := []metaContext{{name: contextAllocation}}
	c, ok := d.(ChangeReporter)
	if !ok {
		return list
	}
	snapshots := c.ChangedContexts()
	for _, prefix := range []string{prefixChanged, prefixDirtyBitmap} {
		for age, s := range snapshots {
			if s != "" && validName([]byte(prefix+s)) {
				list = append(list, metaContext{name: prefix + s, since: s, age: age})
			}
		}
	}
	return list
}

// metaQuery is the payload of LIST_META_CONTEXT and SET_META_CONTEXT.
type metaQuery struct {
	export  string
	queries []string
}

// parseMetaQuery decodes the payload. Every inner length is held against what
// is left of the option, and nothing may be left over.
func parseMetaQuery(b []byte) (q metaQuery, ok bool) {
	name, b, ok := takeString(b)
	if !ok || len(b) < 4 {
		return q, false
	}
	q.export = name
	n := be.Uint32(b)
	b = b[4:]
	if uint64(n)*4 > uint64(len(b)) {
		return q, false // each query has a length at least
	}
	for range n {
		var s string
		if s, b, ok = takeString(b); !ok {
			return q, false
		}
		q.queries = append(q.queries, s)
	}
	return q, len(b) == 0
}

// takeString cuts a string with a 32-bit length off the front of b.
func takeString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	n := be.Uint32(b)
	b = b[4:]
	if uint64(n) > uint64(len(b)) || !validName(b[:n]) {
		return "", nil, false
	}
	return string(b[:n]), b[n:], true
}

// matchContexts picks what the queries ask for, each context once. With list, a
// query may be a wildcard: a namespace ("lunar:") or a kind ("lunar:changed:");
// no query at all stands for everything.
func matchContexts(all []metaContext, queries []string, list bool) []metaContext {
	exact := make(map[string]bool, len(queries))
	var wild []string
	for _, q := range queries {
		if exact[q] = true; list && isWildcard(q) && !slices.Contains(wild, q) {
			wild = append(wild, q)
		}
	}
	if list && len(queries) == 0 {
		wild = []string{""}
	}
	var found []metaContext
	for _, c := range all {
		wanted := slices.ContainsFunc(wild, func(q string) bool { return strings.HasPrefix(c.name, q) })
		switch {
		case exact[c.name] || wanted && c.age < maxListedSnapshots:
			found = append(found, c)
		case wanted && c.age == maxListedSnapshots:
			found = append(found, metaContext{name: strings.TrimSuffix(c.name, c.since)})
		}
	}
	return found
}

// isWildcard reports whether a query of LIST_META_CONTEXT stands for all names
// that begin with it. A snapshot's name never does: it has no colon at its end.
func isWildcard(q string) bool {
	switch q {
	case "base:", "lunar:", "qemu:", prefixChanged, prefixDirtyBitmap:
		return true
	}
	return false
}
