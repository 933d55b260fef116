package lun

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"lunar/cow"
)

// objectSet are the catalogue entries that changed since the last checkpoint.
type objectSet struct {
	luns     map[cow.LUNID]bool
	versions map[cow.VersionID]bool
	branches map[cow.BranchID]bool
	forwards map[cow.VersionID]bool // forgotten ids
}

func newObjectSet() objectSet {
	return objectSet{map[cow.LUNID]bool{}, map[cow.VersionID]bool{}, map[cow.BranchID]bool{}, map[cow.VersionID]bool{}}
}

// note adds what a change touches of a tree that it was not applied to yet.
func (o *objectSet) note(t *cow.Tree, c cow.Change) {
	dropped := map[cow.VersionID]bool{}
	for _, id := range c.DropVersions {
		dropped[id] = true
	}
	for _, id := range c.DropVersions {
		o.forwards[id] = true
		if dropped[t.Canonical(id)] { // it is freed: what led to it ends
			for _, x := range t.Forwarded(id) {
				o.forwards[x] = true
			}
		}
	}
	for _, l := range c.LUNs {
		o.luns[l.ID] = true
	}
	for _, id := range c.DropLUNs {
		o.luns[id] = true
	}
	for _, v := range c.Versions {
		o.versions[v.ID] = true
	}
	for _, m := range c.Marks {
		for _, id := range m.IDs {
			o.versions[id] = true
		}
	}
	for _, id := range c.DropVersions {
		o.versions[id] = true
	}
	for _, b := range c.Branches {
		o.branches[b.ID] = true
	}
	for _, id := range c.DropBranches {
		o.branches[id] = true
	}
}

// maxStructBytes bounds one structural change: it must fit one log record.
const maxStructBytes = 128 * blockSize

// commit makes a planned change real: one record in the log and the new tree,
// both under the gate's write side, with effect (which must not wait) in the
// same instant. It answers when the record is durable. Called with adminMu.
func (p *Pool) commit(c cow.Change, effect func()) error {
	if err := p.reserveIDs(c); err != nil {
		return err
	}
	return p.commitHeld(c, effect)
}

// reserveIDs makes sure that a crash cannot hand out the change's identifiers
// again: they lie below the durable mark, which each checkpoint moves on.
func (p *Pool) reserveIDs(c cow.Change) error {
	if c.Next > p.state.idReserved() {
		return p.Checkpoint()
	}
	return nil
}

// commitHeld is commit for those who hold the checkpoint too.
func (p *Pool) commitHeld(c cow.Change, effect func()) error {
	if err := p.writable(); err != nil {
		return err
	}
	body, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if len(body) > maxStructBytes {
		return Errorf(ErrRefused, "the change needs a log record of %d bytes, %d are possible; do it for fewer LUNs or snapshots at a time", len(body), maxStructBytes)
	}
	n := (len(body) + blockSize - 1) / blockSize
	ctx, cancel := context.WithTimeout(background(), p.spaceWait())
	defer cancel()
	if err := p.log.AdmitReserved(ctx, n, 1); err != nil {
		return p.logError(err)
	}
	p.gate.lock()
	seq, err := p.appendStruct(body)
	if err == nil {
		p.applyLocked(c, effect)
	}
	p.gate.unlock()
	if err != nil {
		p.log.Unadmit(n, 1)
		return err
	}
	p.noteAppend(n, 1)
	return p.sync(seq)
}

// applyLocked installs a change. Called under the gate's write side.
func (p *Pool) applyLocked(c cow.Change, effect func()) {
	p.treeMu.Lock()
	p.freezeSums(c)
	p.reclaiming.reconsider(p.tree, c)
	p.objects.note(p.tree, c)
	p.tree.Apply(c)
	p.treeState++
	p.followHeads(c)
	p.treeMu.Unlock()
	if effect != nil {
		effect()
	}
}

// followHeads keeps the views of heads true to the tree: a view moves on with
// its LUN's head along a branch; a head on another branch gets a new view and
// the old one is dead. Called with the gate's write side and treeMu.
func (p *Pool) followHeads(c cow.Change) {
	p.viewMu.Lock()
	defer p.viewMu.Unlock()
	for _, l := range c.LUNs {
		h := p.tree.Version(l.Head)
		if h == nil {
			continue
		}
		v := p.heads[l.ID]
		if v == nil || v.branch != h.Branch {
			if v != nil {
				p.retireLocked(v)
			}
			v = &view{pool: p, branch: h.Branch, lun: l.ID}
			p.heads[l.ID], p.tips[h.Branch] = v, v
		}
		if v.version != h.ID {
			v.version, v.ctr = h.ID, p.counter.of(h.ID)
		}
		v.size = h.Size
	}
	for _, id := range c.DropLUNs {
		if v := p.heads[id]; v != nil {
			p.retireLocked(v)
			delete(p.heads, id)
		}
	}
}

// retireLocked ends a head view. What it holds unsaved must have been encoded
// (takeDirty) in the same gate entry or be of no interest any more.
func (p *Pool) retireLocked(v *view) {
	v.dead.Store(true)
	v.frozen = true
	if p.tips[v.branch] == v {
		delete(p.tips, v.branch)
	}
}

// apiErr gives a planning error its kind.
func apiErr(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, cow.ErrNotFound):
		return Errorf(ErrNotFound, "%w", err)
	case errors.Is(err, cow.ErrExists):
		return Errorf(ErrExists, "%w; choose another name, or remove it first", err)
	case errors.Is(err, cow.ErrRefused):
		return Errorf(ErrRefused, "%w", err)
	}
	return err
}

func (p *Pool) createLUN(r CreateLUN) (LUNInfo, error) {
	if err := errors.Join(CheckName("LUN", r.Name), CheckLUNSize(r.SizeBytes)); err != nil {
		return LUNInfo{}, err
	}
	l, err := p.newLUN(r)
	if err != nil {
		return LUNInfo{}, err
	}
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	c, err := p.tree.PlanCreate(l)
	if err != nil {
		return LUNInfo{}, apiErr(err)
	}
	if err := p.addLUN(c); err != nil {
		return LUNInfo{}, err
	}
	p.event("lun-create", r.Name, "LUN "+r.Name+" made, "+kindName(r.Thick)+", "+human(r.SizeBytes))
	return p.lunInfo(r.Name)
}

// addLUN takes the promise of the change's new LUN and commits the change.
func (p *Pool) addLUN(c cow.Change) error {
	l := c.LUNs[len(c.LUNs)-1]
	a, err := p.account(&l)
	if err != nil {
		return err
	}
	if err := p.ledger.Add(uint64(l.ID), a); err != nil {
		return Errorf(ErrNoSpace, "LUN %q: %w", l.Name, err)
	}
	if err := p.commit(c, nil); err != nil {
		p.ledger.Remove(uint64(l.ID))
		return err
	}
	return nil
}

// newLUN fills in the defaults of a request.
func (p *Pool) newLUN(r CreateLUN) (cow.LUN, error) {
	allow, err := ParseAllow(r.Allow)
	if err = errors.Join(err, checkQoS(r.QoS)); err != nil {
		return cow.LUN{}, err
	}
	l := cow.LUN{
		Allow: allow, QoS: r.QoS,
		UUID: uuid.NewString(), Name: r.Name, Thick: r.Thick, Size: r.SizeBytes, ReadOnly: r.ReadOnly,
		Description: r.Description, Created: p.now().UTC(), MaxSnapshots: p.opts.SnapshotsPerLUN,
		Reserve: "0", Limit: "none", OnFull: OnFullRecycle,
	}
	d := p.opts.Defaults
	if r.Thick {
		l.Reserve = "20%"
		if d.Reserve != nil {
			l.Reserve = d.Reserve.String()
		}
	}
	if d.Limit != nil {
		l.Limit = d.Limit.String()
	}
	if d.OnFull != "" {
		l.OnFull = d.OnFull
	}
	if r.Reserve != nil {
		l.Reserve = r.Reserve.String()
	}
	if r.Limit != nil {
		l.Limit = r.Limit.String()
	}
	if r.OnFull != "" {
		l.OnFull = r.OnFull
	}
	return l, checkPolicy(l)
}

func checkPolicy(l cow.LUN) error {
	if l.OnFull != OnFullRecycle && l.OnFull != OnFullFreeze {
		return Errorf(ErrInvalid, "on-full %q: want recycle or freeze", l.OnFull)
	}
	if l.Reserve == "none" {
		return Errorf(ErrInvalid, "reserve none: want a size or a percentage; 0 keeps nothing back")
	}
	return nil
}

func (p *Pool) tryUpdate(name string, edit func(*cow.LUN) error) (LUNInfo, error) {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	l, err := p.tree.LUNByName(name)
	if err != nil {
		return LUNInfo{}, apiErr(err)
	}
	n := *l
	if err := edit(&n); err != nil {
		return LUNInfo{}, err
	}
	c, err := p.tree.PlanUpdate(n)
	if err != nil {
		return LUNInfo{}, apiErr(err)
	}
	old, err := p.account(l)
	if err != nil {
		return LUNInfo{}, err
	}
	a, err := p.account(&n)
	if err != nil {
		return LUNInfo{}, err
	}
	if err := p.repromise(l.ID, old, a); err != nil {
		return LUNInfo{}, Errorf(ErrNoSpace, "LUN %q: %w", name, err)
	}
	if err := p.commit(c, nil); err != nil {
		return LUNInfo{}, errors.Join(err, p.repromise(l.ID, a, old))
	}
	return p.lunInfo(n.Name)
}

// SetLUN changes what a LUN's request names.
func (p *Pool) SetLUN(_ context.Context, name string, r SetLUN) (LUNInfo, error) {
	if r.MaxSnapshots != nil && *r.MaxSnapshots < 0 {
		return LUNInfo{}, Errorf(ErrInvalid, "max-snapshots %d: want 0 (no limit) or more", *r.MaxSnapshots)
	}
	return p.update(name, func(l *cow.LUN) (err error) {
		if r.Allow != nil {
			if l.Allow, err = ParseAllow(*r.Allow); err != nil {
				return err
			}
		}
		if l.QoS, err = mergeQoS(l.QoS, r.QoSIOPS, r.QoSBytesPerSecond, r.QoSBurstMS); err != nil {
			return err
		}
		if r.Description != nil {
			l.Description = *r.Description
		}
		if r.ReadOnly != nil {
			l.ReadOnly = *r.ReadOnly
		}
		if r.MaxSnapshots != nil {
			l.MaxSnapshots = *r.MaxSnapshots
		}
		return nil
	})
}

// RenameLUN gives a LUN another name. Attached clients stay attached.
func (p *Pool) RenameLUN(_ context.Context, name, to string) (LUNInfo, error) {
	if err := CheckName("LUN", to); err != nil {
		return LUNInfo{}, err
	}
	return p.update(name, func(l *cow.LUN) error {
		if c := p.attached(name); len(c) > 0 {
			return Errorf(ErrBusy, "LUN %q has %d clients attached; disconnect them first (`lunar client list`)", name, len(c))
		}
		l.Name = to
		return nil
	})
}

// SetOnline puts a LUN off line (clients are disconnected, the export is
// refused) or back on line.
func (p *Pool) SetOnline(_ context.Context, name string, online bool) (LUNInfo, error) {
	info, err := p.update(name, func(l *cow.LUN) error { l.Offline = !online; return nil })
	if err == nil && !online {
		p.clientControl().Disconnect(name)
		info.Clients = 0
	}
	return info, err
}

// DeleteLUN removes a LUN. Its clones stay.
func (p *Pool) DeleteLUN(_ context.Context, name string, force bool) (LUNInfo, error) {
	info, err := p.LUN(name)
	if err != nil {
		return info, err
	}
	if !force && info.Snapshots > 0 {
		return info, Errorf(ErrRefused, "LUN %q has %d snapshots; delete them first, or use --force", name, info.Snapshots)
	}
	if err := p.fence(name, force); err != nil {
		return info, err
	}
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	l, err := p.tree.LUNByName(name)
	if err != nil {
		return info, apiErr(err)
	}
	for _, s := range p.tree.Snapshots(l.ID) {
		p.clientControl().Disconnect(name + "@" + s.Name)
	}
	c, err := p.tree.PlanDeleteLUN(l.ID)
	if err != nil {
		return info, apiErr(err)
	}
	id := l.ID
	err = p.commitRetiring(c, id, func() {
		p.ledger.Dissolve(uint64(id))
		p.ledger.SetShared(p.payerTotals()[0])
	})
	if err != nil {
		return info, err
	}
	p.event("lun-delete", name, "LUN "+name+" deleted")
	p.janitor.kick(jobReclaim)
	return info, nil
}

// commitRetiring commits a change that ends the head view of a LUN: what the
// view holds unsaved is taken in the same instant.
func (p *Pool) commitRetiring(c cow.Change, id cow.LUNID, effect func()) error {
	if err := p.reserveIDs(c); err != nil {
		return err
	}
	p.ckptMu.Lock()
	defer p.ckptMu.Unlock()
	p.viewMu.Lock()
	v := p.heads[id]
	p.viewMu.Unlock()
	if v != nil {
		p.takeDirty(v)
	}
	err := p.commitHeld(c, func() {
		if v != nil {
			p.takeDirty(v)
		}
		if effect != nil {
			effect()
		}
	})
	if err == nil && v != nil {
		v.drop()
	}
	return err
}

// fence makes sure that nobody is attached to an export: with force clients are
// disconnected, otherwise their presence is a refusal that names them.
func (p *Pool) fence(export string, force bool) error {
	c := p.attached(export)
	if len(c) == 0 {
		return nil
	}
	if force {
		if err := p.writable(); err != nil {
			return err
		}
		p.clientControl().Disconnect(export)
		return nil
	}
	return Errorf(ErrBusy, "%s has %d clients attached (%s); detach them, or use --force", export, len(c), nameClients(c))
}

// nameClients names the first of some clients by what `lunar client list` shows of them.
func nameClients(clients []ClientInfo) string {
	const most = 8
	var names []string
	for i, c := range clients {
		if i == most {
			names = append(names, fmt.Sprintf("%d more", len(clients)-most))
			break
		}
		names = append(names, fmt.Sprintf("client %d from %s", c.ID, c.Address))
	}
	return strings.Join(names, ", ")
}
