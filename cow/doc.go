// Package cow holds the versions of a pool: the tree of heads and snapshots,
// and the page maps that say which block of which version lives where.
//
// Nouns: a Tree has LUNs, Versions and Branches; a structural operation is
// planned as a Change (plain puts and drops), written to the log, and applied;
// replaying the Changes in order gives the same Tree. A Record is what one
// version owns of one page (512 blocks); a Page is the flattened view that a
// reader or writer of one version sees, built from the records on its path.
//
// Everything here is pure: no I/O, no clock, no goroutine, no lock. Callers
// serialise changes of a Tree or a Page; package lun does it with the write
// gate and the page lock.
package cow
