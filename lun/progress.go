package lun

import (
	"sync"
	"sync/atomic"
	"time"

	"lunar/cow"
)

// ReclaimInfo is how far the giving back of deleted versions has come. Pages are
// of 2 MiB of address space; the total is what the versions looked at so far had,
// and as much for each of those that are left.
type ReclaimInfo struct {
	Running    bool      `json:"running"`
	Pending    int       `json:"pending"` // deleted versions that wait, or are being worked on
	Hidden     int       `json:"hidden"`  // deleted versions that more than one needs
	PagesDone  int64     `json:"pages_done"`
	PagesTotal int64     `json:"pages_total"`
	FreedBytes int64     `json:"freed_bytes"`
	Since      time.Time `json:"since,omitzero"`
	ETASeconds *float64  `json:"eta_seconds"`
}

// reclaiming is the progress of the round that runs, and its pace.
type reclaiming struct {
	urgent      atomic.Int32 // somebody waits for the space
	done, total atomic.Int64 // pages, of the versions looked at so far
	versions    atomic.Int64 // looked at, or being worked on
	planned     atomic.Int64 // versions of the round
	freed       atomic.Int64 // blocks
	mu          sync.Mutex
	running     bool
	since       time.Time
	bounds      map[cow.VersionID]int64 // what a look at a hidden version left; guarded by mu
	owed        time.Duration           // worked since the last rest; guarded by Pool.reclaimMu
}

// shortestRest is the least that pace waits: a shorter one takes longer than it says.
const shortestRest = 10 * time.Millisecond

func (r *reclaiming) seen(id cow.VersionID) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bounds[id]
}

// reconsider forgets what was seen of the versions above those that a change
// touches: with fewer lines below, more may be replaced on all of them. Called
// before the change is applied.
func (r *reclaiming) reconsider(t *cow.Tree, c cow.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.bounds) == 0 {
		return
	}
	passed := map[cow.VersionID]bool{}
	up := func(ids []cow.VersionID) {
		for _, id := range ids {
			for v := t.Version(t.Canonical(id)); v != nil && !passed[v.ID]; v = t.Version(v.Parent) {
				passed[v.ID] = true
				delete(r.bounds, v.ID)
			}
		}
	}
	up(c.DropVersions)
	for i := range c.Versions {
		up([]cow.VersionID{c.Versions[i].ID})
	}
	for i := range c.Marks {
		up(c.Marks[i].IDs)
	}
}

func (r *reclaiming) note(id cow.VersionID, bound int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bounds == nil {
		r.bounds = map[cow.VersionID]int64{}
	}
	r.bounds[id] = bound
}

func (r *reclaiming) begin(planned int, now time.Time) {
	r.versions.Store(0)
	r.planned.Store(int64(planned))
	r.done.Store(0)
	r.total.Store(0)
	r.freed.Store(0)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running, r.since = true, now
}

func (r *reclaiming) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = false
}

// pace keeps background merging to half of the time, so that structural
// operations and the disk are not held up; nothing is held back while somebody
// waits for space.
func (r *reclaiming) pace(worked time.Duration, quit <-chan struct{}) {
	if r.urgent.Load() > 0 {
		r.owed = 0
		return
	}
	if r.owed += min(worked, 20*time.Millisecond); r.owed < shortestRest {
		return
	}
	select {
	case <-time.After(r.owed):
	case <-quit:
	}
	r.owed = 0
}

// Reclaiming describes what is being given back now.
func (p *Pool) Reclaiming() ReclaimInfo {
	r := &p.reclaiming
	r.mu.Lock()
	out := ReclaimInfo{Running: r.running}
	if r.running {
		out.Since = r.since.UTC()
	}
	r.mu.Unlock()
	out.PagesDone, out.PagesTotal, out.FreedBytes = r.done.Load(), r.total.Load(), r.freed.Load()*blockSize
	if v, n := r.versions.Load(), r.planned.Load(); v > 0 && n > v {
		out.PagesTotal += out.PagesTotal / v * (n - v)
	}
	p.treeMu.RLock()
	for _, id := range p.tree.Deleted() {
		if len(p.tree.Children(id)) > 1 {
			out.Hidden++
		} else {
			out.Pending++
		}
	}
	out.Pending += p.tree.MergingCount()
	p.treeMu.RUnlock()
	if out.Running && out.PagesDone > 0 && out.PagesTotal > 0 {
		eta := time.Since(out.Since).Seconds() / float64(out.PagesDone) * float64(out.PagesTotal-out.PagesDone)
		out.ETASeconds = &eta
	}
	return out
}
