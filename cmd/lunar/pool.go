package main

import (
	"context"
	"log/slog"
	"time"

	"lunar/lun"
	"lunar/nbd"
)

// pool is what the server needs of lun.Pool; tests have one in memory.
type pool interface {
	CreateLUN(context.Context, lun.CreateLUN) (lun.LUNInfo, error)
	LUNs() []lun.LUNInfo
	LUN(name string) (lun.LUNInfo, error)
	SetLUN(ctx context.Context, name string, set lun.SetLUN) (lun.LUNInfo, error)
	ResizeLUN(ctx context.Context, name string, size int64, force bool) (lun.LUNInfo, error)
	RenameLUN(ctx context.Context, from, to string) (lun.LUNInfo, error)
	DeleteLUN(ctx context.Context, name string, force bool) (lun.LUNInfo, error)
	SetOnline(ctx context.Context, name string, online bool) (lun.LUNInfo, error)

	CreateSnapshots(context.Context, []lun.SnapshotRequest, lun.SnapshotOptions) ([]lun.SnapshotInfo, error)
	Snapshots(lunName string) ([]lun.SnapshotInfo, error)
	Labelled(label string) []lun.SnapshotRef
	Snapshot(lunName, name string) (lun.SnapshotInfo, error)
	RenameSnapshot(ctx context.Context, lunName, from, to string) (lun.SnapshotInfo, error)
	ProtectSnapshot(ctx context.Context, lunName, name string, on bool, d time.Duration) (lun.SnapshotInfo, error)
	SetSnapshot(ctx context.Context, lunName, name string, set lun.SetSnapshot) (lun.SnapshotInfo, error)
	DeleteSnapshots(context.Context, []lun.SnapshotRef, lun.DeleteOptions) (lun.DeleteReport, error)
	Rollback(ctx context.Context, lunName, snapshot string, o lun.RollbackOptions) (lun.RollbackInfo, error)
	Clone(ctx context.Context, lunName, snapshot, newName string, thick bool) (lun.LUNInfo, error)
	Diff(ctx context.Context, from, to lun.SnapshotRef, fn func(lun.DiffRange) error) error

	Reservations() []lun.ReservationInfo
	Reservation(lunName string) (lun.ReservationInfo, []string, error)
	SetReservation(ctx context.Context, lunName string, set lun.SetReservation) (lun.ReservationInfo, []string, error)

	Status() lun.PoolStatus
	Warnings() []lun.Warning
	Check(context.Context, func(done, total int64)) (lun.CheckReport, error)
	Scrub(context.Context, lun.ScrubOptions, func(done, total int64)) (lun.ScrubReport, error)
	Clean(context.Context) (lun.PoolStatus, error)
	SetCapacity(ctx context.Context, bytes int64) error

	OpenVolume(lunName, snapshot string) (volume, error)
	Access(lunName string) (lun.Access, bool)
	Exports(visible func(lun.Access) bool) []lun.Export
	SetClients(lun.ClientControl)
	Close() error
}

// volume is an open LUN or snapshot: what NBD connections, import and export
// read and write. It knows the name of its export, which a client that asks for
// the empty one does not.
type volume interface {
	nbd.Device
	nbd.Namer
	nbd.ChangeReporter
	nbd.Prefetcher
	nbd.FastZeroer
	nbd.TryWriter
	nbd.Settler
}

// poolOptions is how this program opens a pool.
type poolOptions struct {
	Config   *config
	ReadOnly bool // for pool check --offline
	Files    int  // open files of the segments, and of the index; 0 is the default
	Logger   *slog.Logger
	Events   func(lun.Event)
}
