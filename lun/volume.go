package lun

import (
	"errors"
	"syscall"

	"lunar/cow"
	"lunar/store/segment"
)

const blockSize = segment.BlockSize

var (
	errIO     = syscall.EIO
	errClosed = Errorf(ErrRefused, "the pool is closed: %w", syscall.ESHUTDOWN)
	errGone   = Errorf(ErrRefused, "the LUN was rolled back, deleted or taken offline: %w", syscall.ESHUTDOWN)
	errBounds = Errorf(ErrInvalid, "request beyond the end of the device")
	errRO     = Errorf(ErrReadOnly, "the export is read-only")
)

// Volume is one open handle of a LUN's head or of a snapshot: an nbd.Device.
// Calls may run at the same time. It is bound to the line of versions that was
// the head when it was opened: after a rollback it answers ESHUTDOWN.
type Volume struct {
	pool  *Pool
	view  *view
	name  string
	desc  string
	ro    bool
	shard uint32
	bases bases
}

// Size returns the size of the device in bytes.
func (v *Volume) Size() int64 {
	v.pool.treeMu.RLock()
	defer v.pool.treeMu.RUnlock()
	return v.view.size
}

// ReadOnly says whether writes are refused with EPERM.
func (v *Volume) ReadOnly() bool { return v.ro }

// Description is the LUN's or snapshot's description.
func (v *Volume) Description() string { return v.desc }

// Buffer returns a page-aligned buffer of n bytes for WriteOwned.
func (v *Volume) Buffer(n int) []byte { return v.pool.buffers().Get(n) }

// Discard gives back a buffer that was not handed over.
func (v *Volume) Discard(b []byte) { v.pool.buffers().Put(b) }

// OpenVolume opens LUN name, or its snapshot if snap is not empty.
func (p *Pool) OpenVolume(name, snap string) (*Volume, error) {
	p.treeMu.RLock()
	l, err := p.tree.LUNByName(name)
	var ver *cow.Version
	if err == nil && snap != "" {
		ver, err = p.tree.SnapshotByName(l, snap)
	}
	p.treeMu.RUnlock()
	if err != nil {
		return nil, apiErr(err)
	}
	if l.Offline && snap == "" {
		return nil, Errorf(ErrRefused, "LUN %q is offline; `lunar lun online %s` puts it back", name, name)
	}
	out := &Volume{pool: p, name: name, desc: l.Description, shard: p.shardNext.Add(1)}
	out.ro = l.ReadOnly || ver != nil || p.opts.ReadOnly
	if ver != nil {
		out.name, out.desc = name+"@"+snap, ver.Description
		if out.view, err = p.openFrozen(ver); err != nil {
			return nil, err
		}
		// From here on it is not merged; it must not have been deleted before.
		p.treeMu.RLock()
		now := p.tree.Version(ver.ID)
		p.treeMu.RUnlock()
		if now == nil || now.State != cow.Snapshot {
			p.closeView(out.view)
			return nil, Errorf(ErrNotFound, "snapshot %s is gone", out.name)
		}
		return out, nil
	}
	p.viewMu.Lock()
	defer p.viewMu.Unlock()
	out.view = p.heads[l.ID]
	if out.view == nil {
		return nil, Errorf(ErrNotFound, "LUN %q is gone", name)
	}
	out.view.opens++
	return out, nil
}

// openFrozen returns the shared view of a frozen version.
func (p *Pool) openFrozen(ver *cow.Version) (*view, error) {
	p.viewMu.Lock()
	defer p.viewMu.Unlock()
	w := p.frozen[ver.ID]
	if w == nil {
		w = &view{pool: p, branch: ver.Branch, version: ver.ID, lun: ver.LUN, size: ver.Size, frozen: true, still: true, ctr: p.counter.of(ver.ID)}
		p.frozen[ver.ID] = w
	}
	w.opens++
	return w, nil
}

// Close gives the handle back.
func (v *Volume) Close() error {
	v.bases.close()
	v.pool.closeView(v.view)
	return nil
}

// closeView drops the caller's hold of a view; the view of a frozen version
// goes with the last one.
func (p *Pool) closeView(w *view) {
	p.viewMu.Lock()
	w.opens--
	last := w.opens == 0 && p.frozen[w.version] == w
	if last {
		delete(p.frozen, w.version)
	}
	p.viewMu.Unlock()
	if last {
		w.drop()
	}
}

// opened says whether anybody reads a frozen version now.
func (p *Pool) opened(id cow.VersionID) bool {
	p.viewMu.Lock()
	defer p.viewMu.Unlock()
	return p.frozen[id] != nil
}

// Flush makes everything that was answered so far durable.
func (v *Volume) Flush() error {
	if v.ro {
		return nil
	}
	if err := v.pool.writable(); err != nil {
		return err
	}
	return v.pool.sync(v.pool.log.Next() - 1)
}

// Settle hands what was written so far to the operating system, unless the pool
// is to do that behind the writes: see ADR 0009.
func (v *Volume) Settle() {
	if v.pool.opts.WriteBehind {
		return
	}
	_ = v.pool.log.Push() // where it fails the log has failed, and Flush fails from then on
}

// sync waits until everything up to seq is durable.
func (p *Pool) sync(seq segment.Seq) error {
	if err := p.log.Sync(seq); err != nil {
		return p.logError(err)
	}
	p.noteHeaders()
	return nil
}

// logError turns an error of the log into one that says what to do.
func (p *Pool) logError(err error) error {
	if err == nil {
		return nil
	}
	// A log that failed stays so: its ENOSPC is not one that passes.
	if errors.Is(err, syscall.ENOSPC) && !errors.Is(err, segment.ErrFailed) {
		return Errorf(ErrNoSpace, "pool %s is full: %w; delete snapshots or LUNs, or raise --capacity", p.opts.Dir, err)
	}
	return Errorf(ErrReadOnly, "writing the log failed: %w", errors.Join(err, errIO))
}

// bounds checks a request against the device.
func (v *Volume) bounds(off, n int64) error {
	if size := v.Size(); off < 0 || n < 0 || off > size || n > size-off {
		return errBounds
	}
	return nil
}
