// Package lun tells the stories of a pool: LUNs, snapshots, rollback, clones,
// the data path of a volume, checkpoint and recovery, the cleaner and the checks.
//
// A Pool joins the four layers below it: the log of blocks (store/segment), the
// index (store/index), the version tree and page maps (cow), and the numbers
// (reservation). A Volume is one open handle of a LUN or snapshot; it satisfies
// nbd.Device without importing it.
//
// Locks, top to bottom, never taken upwards while a lower one is held:
// admin (structural operations, one at a time) → checkpoint → write gate →
// page (ascending page number within a view) → overlay, ledger, log, counters.
package lun
