// Package segment is Lunar's append-only log of blocks: segment files that
// hold records, and nothing else. It knows sequence numbers, locations and
// checksums; it knows no LUN, no snapshot and no index.
//
// The nouns:
//
//   - A segment is a preallocated file of fixed size, named by a number.
//   - A record is one header block and the payload blocks behind it. It never
//     spans segments; the first record of a segment lies at its block 0.
//   - An entry is one change in a record: data, a zero or trim range, a
//     structural change, a moved copy, a mark. Entries carry consecutive
//     sequence numbers (Seq), and that chain is the order of the log.
//   - A location (Loc) is a block of a segment. Location 0 is none.
//
// The basics. A writer calls Admit, outside of any lock: that is where it waits,
// for memory and for prepared segment room. Append then only reserves: it takes
// the log's mutex for some tens of nanoseconds, and copies after letting it go.
// It never waits and does no I/O. The record goes out when it is full, when Sync
// needs it, or after a few milliseconds. Until it is in the file, Read serves its
// blocks from memory. Sync is a group commit: one caller writes and syncs for
// all that came before it.
//
// Three locks, taken top to bottom: the leadership of a sync (Log.group), ioMu
// (one record is written at a time, in order; held across the write), mu (the
// reservation; never held across I/O, a callback or a copy). Sealing has a mutex
// of its own (sealMu), taken before a segment's syncMu.
//
// The caveats. A failed write or sync is terminal: the log takes nothing more
// and says so (ErrFailed), and goes on reading. Admission is the caller's duty:
// credit that is neither appended nor given back (Unadmit) is lost. Read trusts
// its caller that a segment is not released under it, and leaves the comparison
// of checksums to its caller, who holds them in its maps.
//
// The layout in bytes, what each checksum covers and what a crash can leave is in
// docs/FORMAT.md.
package segment
