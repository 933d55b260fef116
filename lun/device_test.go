package lun_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"lunar/lun"
	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

// backend offers a pool to the protocol's suite, the way the server does.
type backend struct{ p *lun.Pool }

func (b backend) Exports(context.Context, nbd.Client) (out []nbd.ExportInfo, err error) {
	for _, e := range b.p.Exports(func(lun.Access) bool { return true }) {
		out = append(out, nbd.ExportInfo{Name: e.Name, Description: e.Description})
	}
	return out, nil
}

func (b backend) Open(_ context.Context, name string, _ nbd.Client) (nbd.Device, error) {
	l, snap, _ := strings.Cut(name, "@")
	v, err := b.p.OpenVolume(l, snap)
	if errors.Is(err, lun.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", nbd.ErrUnknownExport, err)
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

// suitePool makes a pool with one LUN of an odd size, and a snapshot of it.
func suitePool(t *testing.T, thick bool) backend {
	p, err := lun.Open(context.Background(), lun.Options{Dir: filepath.Join(t.TempDir(), "pool"), Capacity: 1 << 30, SegmentBytes: 1 << 20, RecordBlocks: 64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		rep, err := p.Check(context.Background(), nil)
		if err != nil || !rep.OK {
			t.Errorf("pool check: %+v, %v", rep.Problems, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := p.CreateLUN(context.Background(), lun.CreateLUN{Name: "vol", SizeBytes: 9<<20 + 1536, Thick: thick}); err != nil {
		t.Fatal(err)
	}
	v, err := p.OpenVolume("vol", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(v.WriteAt(make([]byte, 100000), 12345, true), v.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateSnapshots(context.Background(), []lun.SnapshotRequest{{LUN: "vol", Name: "s"}}, lun.SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	return backend{p}
}

func TestProtocolSuite(t *testing.T) {
	for _, kind := range []string{"thin", "thick"} {
		t.Run(kind, func(t *testing.T) {
			nbdtest.Suite(t, func(t *testing.T) (nbd.Backend, string) { return suitePool(t, kind == "thick"), "vol" })
		})
	}
	t.Run("snapshot", func(t *testing.T) {
		nbdtest.Suite(t, func(t *testing.T) (nbd.Backend, string) { return suitePool(t, false), "vol@s" })
	})
}
