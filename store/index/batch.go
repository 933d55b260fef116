package index

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Batch collects changes that Commit makes durable together, in their order. 4 MiB is a good size: several smaller
// commits cost a sync each, and one beyond half a memtable is written to a table of its own.
type Batch struct {
	x   *Index
	b   *pebble.Batch
	err error // the first refusal; Commit returns it
	key []byte
}

// NewBatch returns an empty batch, to be closed.
func (x *Index) NewBatch() *Batch {
	if err := x.use(); err != nil {
		return &Batch{x: x, err: err}
	}
	return &Batch{x: x, b: x.db.NewBatch(), key: make([]byte, 0, 64)}
}

// SetPage stores the whole record that version has of a page.
func (b *Batch) SetPage(branch, page, version uint64, rec []byte) {
	b.set(appendPageKey(b.key[:0], branch, page, version), rec)
	b.set(appendChangeKey(b.key[:0], branch, version, page), nil)
}

// MergePage stores a delta: reads see Options.MergePages of it and what was there, if anything.
func (b *Batch) MergePage(branch, page, version uint64, delta []byte) {
	b.MovePage(branch, page, version, delta)
	b.set(appendChangeKey(b.key[:0], branch, version, page), nil)
}

// MovePage is MergePage for a page that version has already, so that it is on the list of what version changed: half of
// what a small delta would take.
func (b *Batch) MovePage(branch, page, version uint64, delta []byte) {
	if b.ready() {
		b.note(b.b.Merge(appendPageKey(b.key[:0], branch, page, version), delta, nil))
	}
}

// DeletePage forgets what version has of a page.
func (b *Batch) DeletePage(branch, page, version uint64) {
	b.delete(appendPageKey(b.key[:0], branch, page, version))
	b.delete(appendChangeKey(b.key[:0], branch, version, page))
}

// SetObject stores an object of the catalogue.
func (b *Batch) SetObject(kind uint8, id uint64, value []byte) {
	b.set(appendObjectKey(b.key[:0], kind, id), value)
}

// DeleteObject forgets it.
func (b *Batch) DeleteObject(kind uint8, id uint64) { b.delete(appendObjectKey(b.key[:0], kind, id)) }

// SetCounter stores the counters of a version.
func (b *Batch) SetCounter(version uint64, value []byte) {
	b.set(appendCounterKey(b.key[:0], version), value)
}

// DeleteCounter forgets them.
func (b *Batch) DeleteCounter(version uint64) { b.delete(appendCounterKey(b.key[:0], version)) }

// SetSegment stores what is known of a segment.
func (b *Batch) SetSegment(number uint64, value []byte) {
	b.set(appendSegmentKey(b.key[:0], number), value)
}

// DeleteSegment forgets it.
func (b *Batch) DeleteSegment(number uint64) { b.delete(appendSegmentKey(b.key[:0], number)) }

// SetMeta stores a fact about the whole pool.
func (b *Batch) SetMeta(name string, value []byte) { b.set(appendMetaKey(b.key[:0], name), value) }

// Size is what the batch takes in memory and in Pebble's log.
func (b *Batch) Size() int {
	if b.b == nil {
		return 0
	}
	return b.b.Len()
}

// Empty says whether there is nothing to commit.
func (b *Batch) Empty() bool { return b.b == nil || b.b.Empty() }

// Commit makes the changes durable and visible, all or none, and uses the batch up. After an error that is not ErrDead
// nothing has changed. After ErrDead it is open whether they will be there when the index is opened again.
func (b *Batch) Commit() (err error) {
	if b.err != nil {
		return b.err
	}
	if b.b == nil {
		return fmt.Errorf("%w: the batch was used up", ErrClosed)
	}
	x := b.x
	x.commitMu.Lock()
	defer x.commitMu.Unlock()
	if err := x.use(); err != nil {
		return err
	}
	if x.opts.ReadOnly {
		return ErrReadOnly
	}
	if err := x.Err(); err != nil {
		return err
	}
	if err := x.room.wait(b.Size()); err != nil {
		return err
	}
	defer b.Close()
	defer x.changes.Add(1)
	defer x.fuse.catch(&err)
	if err := x.db.Apply(b.b, pebble.Sync); err != nil {
		return fmt.Errorf("index: commit: %w", err)
	}
	return x.Err() // Pebble was told that all went well
}

// Close gives the batch's memory back. It may be called more than once, and after Commit.
func (b *Batch) Close() {
	if b.b != nil && !b.x.fuse.isStuck() { // then Pebble may still hold it
		b.note(b.b.Close())
	}
	b.b = nil
}

func (b *Batch) set(key, value []byte) {
	if b.ready() {
		b.note(b.b.Set(key, value, nil))
	}
}

func (b *Batch) delete(key []byte) {
	if b.ready() {
		b.note(b.b.Delete(key, nil))
	}
}

func (b *Batch) ready() bool {
	if b.b == nil && b.err == nil {
		b.err = fmt.Errorf("%w: the batch was used up", ErrClosed)
	}
	return b.err == nil
}

func (b *Batch) note(err error) {
	if b.err == nil {
		b.err = err
	}
}
