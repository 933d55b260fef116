package main

import (
	"context"

	"lunar/lun"
	"lunar/nbd"
)

// livePool makes lun.Pool a pool: a method that returns *lun.Volume is not one
// that returns a volume.
type livePool struct{ *lun.Pool }

func (p livePool) OpenVolume(lunName, snapshot string) (volume, error) {
	v, err := p.Pool.OpenVolume(lunName, snapshot)
	if err != nil {
		return nil, err
	}
	return &liveVolume{v, lun.SnapshotRef{LUN: lunName, Name: snapshot}.String()}, nil
}

// liveVolume is a lun.Volume with all that it has to offer beyond nbd.Device.
type liveVolume struct {
	*lun.Volume
	name string
}

func (v *liveVolume) Name() string { return v.name }

func lunOptions(o poolOptions) lun.Options {
	c := o.Config
	return lun.Options{
		Dir: c.Data, Capacity: c.Capacity, SegmentBytes: c.SegmentBytes, IndexCache: c.IndexCache,
		Defaults: c.Area, SnapshotsPerLUN: c.PerLUN, ListSnapshots: c.ListSnaps, Preallocate: c.Preallocate, WriteBehind: c.WriteBehind, NoDefragment: !c.Defragment,
		BackUpEvery: c.BackUpEvery, OpenFiles: o.Files, ScrubEvery: c.ScrubEvery, ScrubPace: c.ScrubPace, ReadOnly: o.ReadOnly, Logger: o.Logger, Events: o.Events,
	}
}

func openLivePool(ctx context.Context, o poolOptions) (pool, error) {
	p, err := lun.Open(ctx, lunOptions(o))
	if err != nil {
		return nil, err
	}
	return livePool{p}, nil
}

func newLiveNBD(o nbd.Options) (nbdServer, error) { return nbd.NewServer(o) }

func repairLivePool(ctx context.Context, o poolOptions, r lun.RepairOptions) ([]string, error) {
	return lun.Repair(ctx, lunOptions(o), r)
}
