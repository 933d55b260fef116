package lun

import (
	"fmt"
	"slices"
	"testing"

	"lunar/cow"
)

// The planner of recycling goes over the lists of changes once; what it says must be what a dry run of each prefix says, which
// goes over all of them anew. (Where a deleted version still has two children, the last drop may give more than planned.)
func TestRecyclePlanAgreesWithDryRuns(t *testing.T) {
	plans, sharing := 0, 0
	for seed := range uint64(4) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			m := newModel(t, seed+100)
			defer func() { m.p.Abandon() }()
			for step := range 160 {
				m.step()
				if step%8 == 0 {
					k, s := m.comparePlans()
					plans, sharing = plans+k, sharing+s
				}
			}
		})
	}
	if plans < 40 || sharing == 0 {
		t.Errorf("%d plans with something to drop, %d of them with blocks that several snapshots share: too few to show anything", plans, sharing)
	}
}

func (m *model) comparePlans() (plans, sharing int) {
	p := m.p
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	hidden := slices.ContainsFunc(p.tree.Versions(), func(v *cow.Version) bool {
		return v.State == cow.Deleted && len(p.tree.Children(v.ID)) > 1
	})
	for _, l := range p.tree.LUNs() {
		cand, err := p.candidates(l, 1<<60)
		m.check(err, "candidates")
		var prefix []cow.VersionID
		sum := int64(0)
		for _, c := range cand {
			if !c.Able() {
				continue
			}
			prefix, sum = append(prefix, cow.VersionID(c.ID)), sum+c.Frees
			want, err := p.wouldFree(prefix)
			m.check(err, "wouldFree")
			if sum > want || sum < want && !hidden {
				m.t.Fatalf("LUN %s: dropping its oldest %d is planned to give %d blocks, a dry run says %d; %+v", l.Name, len(prefix), sum, want, cand)
			}
			if c.Frees > 0 {
				plans++
			}
			if len(c.With) > 0 {
				sharing++
			}
		}
	}
	return plans, sharing
}
