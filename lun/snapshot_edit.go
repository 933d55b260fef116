package lun

import (
	"context"
	"maps"
	"time"

	"lunar/cow"
)

// updateSnapshot replaces what the user may change of a snapshot.
func (p *Pool) updateSnapshot(lun, name string, edit func(*cow.Version) error) (SnapshotInfo, error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	l, s, err := p.snapshotOf(lun, name)
	if err != nil {
		return SnapshotInfo{}, err
	}
	n := *s
	if err := edit(&n); err != nil {
		return SnapshotInfo{}, err
	}
	c, err := p.tree.PlanUpdateSnapshot(n)
	if err != nil {
		return SnapshotInfo{}, apiErr(err)
	}
	if err := p.commit(c, nil); err != nil {
		return SnapshotInfo{}, err
	}
	p.takeAll()
	return p.snapshotInfo(l, p.tree.Version(n.ID))
}

// RenameSnapshot gives a snapshot another name.
func (p *Pool) RenameSnapshot(_ context.Context, lun, name, to string) (SnapshotInfo, error) {
	if err := CheckName("snapshot", to); err != nil {
		return SnapshotInfo{}, err
	}
	return p.updateSnapshot(lun, name, func(v *cow.Version) error {
		if len(p.attached(lun+"@"+name)) > 0 {
			return Errorf(ErrBusy, "%s@%s has clients attached; disconnect them first", lun, name)
		}
		v.Name = to
		return nil
	})
}

// ProtectSnapshot sets or ends the protection of a snapshot: it is neither
// deleted nor recycled, for the given time or, if that is 0, until it is ended.
func (p *Pool) ProtectSnapshot(_ context.Context, lun, name string, on bool, d time.Duration) (SnapshotInfo, error) {
	if d < 0 || d > 0 && !on {
		return SnapshotInfo{}, Errorf(ErrInvalid, "protection for %s: want a positive time, and only where protection is set", d)
	}
	return p.updateSnapshot(lun, name, func(v *cow.Version) error {
		v.Protected, v.ProtectedUntil = on, time.Time{}
		if d > 0 {
			v.ProtectedUntil = p.now().UTC().Add(d)
		}
		return nil
	})
}

// SetSnapshot changes description, labels and time to live of a snapshot. A new
// time to live counts from now.
func (p *Pool) SetSnapshot(_ context.Context, lun, name string, r SetSnapshot) (SnapshotInfo, error) {
	if r.TTL != nil && *r.TTL < 0 {
		return SnapshotInfo{}, Errorf(ErrInvalid, "ttl %s: want a positive time, or 0 for ever", *r.TTL)
	}
	return p.updateSnapshot(lun, name, func(v *cow.Version) error {
		if r.Description != nil {
			v.Description = *r.Description
		}
		labels := maps.Clone(v.Labels) // versions in the tree are immutable
		for _, k := range r.DropLabels {
			if _, ok := labels[k]; !ok {
				return Errorf(ErrNotFound, "snapshot %s@%s has no label %q", lun, name, k)
			}
			delete(labels, k)
		}
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, r.Labels)
		v.Labels = labels
		if r.TTL != nil {
			v.Expires = time.Time{}
			if *r.TTL > 0 {
				v.Expires = p.now().UTC().Add(*r.TTL)
			}
		}
		return nil
	})
}
