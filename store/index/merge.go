package index

import (
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2"
)

// mergerName is in every table, and part of the format: MergePages must go on to understand what was ever stored.
const mergerName = "lunar.pages.1"

// mergePages is Options.MergePages.
type mergePages = func(newer, older []byte) ([]byte, error)

// pagesMerger turns MergePages into Pebble's merger.
func pagesMerger(merge mergePages) *pebble.Merger {
	return &pebble.Merger{Name: mergerName, Merge: func(key, value []byte) (pebble.ValueMerger, error) {
		// Pebble keeps both slices, so the first operand is copied; MergePages returns memory of its own.
		return &pageValue{merge: merge, key: append([]byte(nil), key...), value: append([]byte(nil), value...)}, nil
	}}
}

// pageValue combines the operands of one page as they come. Pebble hands them over newest first, so that deltas are
// combined with each other before the one big base comes in.
type pageValue struct {
	merge mergePages
	key   []byte
	value []byte
}

func (v *pageValue) MergeNewer(newer []byte) error { return v.set(v.merge(newer, v.value)) }
func (v *pageValue) MergeOlder(older []byte) error { return v.set(v.merge(v.value, older)) }

func (v *pageValue) set(value []byte, err error) error {
	if err != nil {
		return fmt.Errorf("%w: key %x: %v", ErrCorrupt, v.key, err)
	}
	v.value = value
	return nil
}

// Finish leaves a value without its base as it is: MergePages can combine it with the base later.
func (v *pageValue) Finish(bool) ([]byte, io.Closer, error) { return v.value, nil, nil }
