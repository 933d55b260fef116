package main

// mutant is a change that is wrong on purpose. Where a fault has two lines of defence, each of which holds alone, it removes both.
type mutant struct {
	name  string
	edits []edit
}

// edit is a change of one file.
type edit struct {
	file string
	old  string // occurs once
	new  string
}

func one(name, file, old, new string) mutant { return mutant{name, []edit{{file, old, new}}} }

var mutants = []mutant{
	one("FLUSH does not sync", "store/segment/sync.go",
		"for _, s := range *l.liveSet.Load() {\n\t\tif err := s.sync(); err != nil {", "for _, s := range *l.liveSet.Load() {\n\t\tif err := error(nil); err != nil {"),
	one("FLUSH syncs the open segment only", "store/segment/sync.go",
		"for _, s := range *l.liveSet.Load() {\n", "for i, s := range *l.liveSet.Load() {\n\t\tif i+1 < len(*l.liveSet.Load()) {\n\t\t\tcontinue\n\t\t}\n"),
	one("a waiter is released by a sync that began before its record", "store/segment/sync.go",
		"l.mu.Lock()\n\tl.counts.syncs++", "covered = l.written.Load()\n\tl.mu.Lock()\n\tl.counts.syncs++"),
	one("a failed sync is tried again", "store/segment/openseg.go",
		"s.broken = syncData(s.h.f)", "if s.broken = syncData(s.h.f); s.broken != nil {\n\t\t\ts.broken = syncData(s.h.f)\n\t\t}"),
	one("FUA is dropped", "lun/write.go", "if err == nil && fua {\n\t\terr = v.pool.sync(w.last)", "if err == nil && fua {\n\t\terr = nil"),
	one("a structural change is answered before its sync", "lun/catalog.go",
		"p.noteAppend(n, 1)\n\treturn p.sync(seq)", "p.noteAppend(n, 1)\n\t_ = seq\n\treturn nil"),
	one("no sync of the log before a checkpoint", "lun/checkpoint.go",
		"err := p.log.Sync(p.log.Next() - 1)", "var err error"),
	one("the index commits without a sync", "store/index/batch.go", "x.db.Apply(b.b, pebble.Sync)", "x.db.Apply(b.b, pebble.NoSync)"),
	one("a checkpoint's position is chosen too late", "lun/checkpoint.go",
		"\tgen := p.overlay.swap()\n\t// Everything", "\tgen := p.overlay.swap()\n\tpend.position = uint64(p.log.Next())\n\t// Everything"),
	one("a checkpoint's position is one too high", "lun/checkpoint.go",
		"pend := p.takeObjects(uint64(p.log.Next()))\n\tp.gate.unlock()", "pend := p.takeObjects(uint64(p.log.Next()) + 1)\n\tp.gate.unlock()"),
	one("the folder is not synced for a new segment", "store/segment/keep.go",
		"err = syncFolder(l.opts.FS, l.opts.Dir)", "err = nil"),
	one("a segment is used again before replay is past it", "lun/checkpoint.go",
		"u.stored, u.row, u.dead = 0, false, old", "u.stored, u.row, u.dead = 0, false, u.sealed"),
	one("a segment is used again before the checkpoint", "lun/checkpoint.go",
		"\tgen := p.overlay.swap()\n\t// Everything", "\tgen := p.overlay.swap()\n\tp.space.mu.Lock()\n\tfor _, u := range p.space.segs {\n\t\tu.dead = u.sealed\n\t}\n\tp.space.mu.Unlock()\n\tp.releaseSegments()\n\t// Everything"),
	one("replay applies what the index has already", "lun/replaypages.go", "case pg.Applied >= uint64(x.seq):", "case false:"),
	one("replay applies the cleaner's copies", "lun/replay.go", "case segment.Moved, segment.Mark:\n", "case segment.Moved:\n\t\tif v := p.replayView(cow.VersionID(e.Version)); v != nil {\n\t\t\treturn p.replayData(v, e, seq, loc)\n\t\t}\n\t\treturn nil\n\tcase segment.Mark:\n"),
	one("the epoch is not raised", "lun/open.go", "\tp.state.Epoch++\n", ""),
	one("sequence numbers behind a tear are used again", "store/segment/recover.go",
		"Next: max(r.top+1, r.from, r.synced+1)", "Next: max(r.last+1, r.from)"),
	one("recovery goes on behind a torn record", "store/segment/recover.go",
		"r.tear(c, at, r.h.First)\n\t\treturn nil", "return nil"),
	one("payload behind the synced mark is not checked", "store/segment/recover.go",
		"if r.h.Last() > r.synced && !r.intact(at) {", "if false {"),
	one("a header's checksum is not checked", "store/segment/format.go", "if binary.LittleEndian.Uint32(b[offCRC:]) != headerCRC(b) {", "if false {"),
	one("recovery does not sync what a killed process left", "store/segment/recover.go", "err = syncData(f)", "err = nil"),
	one("recovery reads the page cache after a failed sync", "store/segment/recover.go", "err = dropCache(f)", "err = nil"),
	one("identifiers are used again after a crash", "lun/checkpoint.go",
		"IDs: max(p.state.IDs, pend.nextID+idMargin)", "IDs: pend.nextID"),
	one("a trim leaves no tombstone in the index", "cow/page.go",
		"p.changed.Add(i)\n\tp.Dirty, p.Has", "if loc != 0 {\n\t\tp.changed.Add(i)\n\t}\n\tp.Dirty, p.Has"),
	one("holes are dropped although ancestors have something", "lun/overlay.go", "r.Full && v != nil && v.Parent == 0 && !p.tree.Joining(pg.Head)", "r.Full && v != nil"),
	one("replay forgets trims", "lun/replay.go",
		"return p.replayRange(v, e, seq, 0)", "return nil"),
	{"a merge does not wait for a checkpoint that is under way", []edit{
		{"lun/reclaim.go", "\tif err := p.Checkpoint(); err != nil {\n\t\treturn false, err\n\t}\n\tp.mergeNew", "\tp.mergeNew"},
		{"lun/changes.go", "func (p *Pool) takeAll() {\n\tp.ckptMu.Lock()\n\tdefer p.ckptMu.Unlock()\n", "func (p *Pool) takeAll() {\n"},
	}},
	one("a merge ends before the checkpoint of what it moved", "lun/reclaim.go",
		"\tif err := p.Checkpoint(); err != nil {\n\t\treturn false, err\n\t}\n\tif err := p.finishReclaim", "\tif err := p.finishReclaim"),
	one("the checksum of a block is not compared", "lun/read.go",
		"if segment.Checksum(at[k*blockSize:(k+1)*blockSize]) != e.crc[i+k] {", "if false {"),
	one("headers do not carry the synced mark", "store/segment/write.go", "Synced: l.Synced(),", ""),
	one("a pool's identity is not synced", "lun/backup.go", "\treturn syncDir(p.fs, dir)\n}\n\n// BackUp copies", "\treturn nil\n}\n\n// BackUp copies"),
}
