package cow

import (
	"testing"
	"time"
)

// TestNextExpiry: the next look at times to live is due when the first of them ends, not before, and never for what is protected
// for ever.
func TestNextExpiry(t *testing.T) {
	at := func(n int) time.Time { return time.Unix(int64(n), 0) }
	for _, c := range []struct {
		name     string
		versions []Version
		want     time.Time
	}{
		{"none", []Version{{}, {Protected: true}}, time.Time{}},
		{"the earliest", []Version{{Expires: at(30)}, {Expires: at(20)}, {Expires: at(40)}}, at(20)},
		{"protected for ever", []Version{{Expires: at(30)}, {Expires: at(20), Protected: true}}, at(30)},
		{"protected for longer", []Version{{Expires: at(20), Protected: true, ProtectedUntil: at(25)}, {Expires: at(30)}}, at(25)},
		{"protected for less", []Version{{Expires: at(20), Protected: true, ProtectedUntil: at(5)}}, at(20)},
	} {
		tree := NewTree(1)
		var change Change
		for i, v := range c.versions {
			v.ID, v.Branch, v.State = VersionID(i+1), 1, Snapshot
			change.Versions = append(change.Versions, v)
		}
		tree.Apply(change)
		got := tree.NextExpiry()
		if !got.Equal(c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if !got.IsZero() && (len(tree.Expired(got)) == 0 || len(tree.Expired(got.Add(-time.Second))) > 0) {
			t.Errorf("%s: at %v %v are due, a second before %v", c.name, got, tree.Expired(got), tree.Expired(got.Add(-time.Second)))
		}
	}
}
