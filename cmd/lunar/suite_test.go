package main

import (
	"path/filepath"
	"testing"

	"lunar/lun"
	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

// The protocol's suite on what the server really offers: LUNs and snapshots of a
// real pool as backend wraps them, with and without limits.
func TestProtocolSuite(t *testing.T) {
	for name, c := range map[string]struct {
		export string
		qos    lun.QoS
	}{"LUN": {"vol", lun.QoS{}}, "limited": {"vol", lun.QoS{IOPS: 1e6, BytesPerSecond: 1 << 40}}, "snapshot": {"vol@s", lun.QoS{}}} {
		t.Run(name, func(t *testing.T) {
			nbdtest.Suite(t, func(t *testing.T) (nbd.Backend, string) {
				p, err := lun.Open(t.Context(), lun.Options{Dir: filepath.Join(t.TempDir(), "pool"), Capacity: 1 << 30, SegmentBytes: 1 << 20})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := p.Close(); err != nil {
						t.Error(err)
					}
				})
				if _, err := p.CreateLUN(t.Context(), lun.CreateLUN{Name: "vol", SizeBytes: 9<<20 + 512, QoS: c.qos}); err != nil {
					t.Fatal(err)
				}
				if _, err := p.CreateSnapshots(t.Context(), []lun.SnapshotRequest{{LUN: "vol", Name: "s"}}, lun.SnapshotOptions{}); err != nil {
					t.Fatal(err)
				}
				return &backend{pool: livePool{p}}, c.export
			})
		})
	}
}
