package lun

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"lunar/store/index"
)

// The copies of the index (docs/adr/0008). Two slots are written in turn; a
// segment is used again only when neither slot needs it.

const (
	backupDir    = "index-backup"
	backupNote   = "backup.json" // in a slot: written last, so a slot without it is none
	sessionsFile = "sessions.json"
	frozenDir    = "frozen" // hard links to the index of one checkpoint, while they are copied
)

// note is what a slot says of itself.
type note struct {
	Index    string    `json:"index"` // the index that it is a copy of
	Epoch    uint64    `json:"epoch"`
	Position uint64    `json:"position"` // where replay begins
	Created  time.Time `json:"created"`
	Bytes    int64     `json:"bytes"`
}

// compare orders copies by age. What the clock showed counts only where the log cannot tell: it may have been set.
func (n note) compare(o note) int {
	return cmp.Or(cmp.Compare(n.Epoch, o.Epoch), cmp.Compare(n.Position, o.Position), n.Created.Compare(o.Created))
}

// session is one opening of the pool: its records have this epoch, and entries
// from From on.
type session struct {
	Epoch uint64 `json:"epoch"`
	From  uint64 `json:"from"`
	After uint64 `json:"after"` // the last entry of the one before that was replayed
}

// slot is one of the two copies. gen counts the commits of the index up to the
// one that it holds; 0 is before this process.
type slot struct {
	note
	valid bool
	gen   uint64
}

type backups struct {
	one sync.Mutex // a backup is being made

	mu       sync.Mutex
	slots    [2]slot
	making   uint64 // the commit that is being copied; 0: none
	lost     uint64 // counts how often they were given up
	sessions []session
	now      session // of this process
	given    time.Time
	logAt    atomic.Int64 // bytes of the log when the newest was made
	took     atomic.Int64 // nanoseconds, of the last attempt
}

// BackupInfo describes a copy of the index.
type BackupInfo struct {
	Created  time.Time `json:"created"`
	Position uint64    `json:"position"` // the log's entry from which a repair would replay
	Bytes    int64     `json:"bytes"`
}

// Backups lists the copies of the index that a repair could use, newest first.
func (p *Pool) Backups() []BackupInfo {
	b := &p.backups
	b.mu.Lock()
	defer b.mu.Unlock()
	out := []BackupInfo{}
	slots := b.slots
	slices.SortFunc(slots[:], func(x, y slot) int { return y.compare(x.note) })
	for _, s := range slots {
		if s.valid {
			out = append(out, BackupInfo{s.Created, s.Position, s.note.Bytes})
		}
	}
	return out
}

// needs returns the newest commit of which no copy has anything: what died later
// is still pinned.
func (b *backups) needs() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := uint64(math.MaxUint64)
	for _, s := range b.slots {
		if s.valid {
			n = min(n, s.gen)
		}
	}
	if b.making != 0 {
		n = min(n, b.making)
	}
	return n
}

// bytes is what the copies take.
func (b *backups) bytes() (n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.slots {
		if s.valid {
			n += s.note.Bytes
		}
	}
	return n
}

func (p *Pool) slotPath(i int) string { return p.path(backupDir, strconv.Itoa(i+1)) }

// readSlots reads the slots and the list of sessions as they are.
func (p *Pool) readSlots() (slots [2]slot, sessions []session) {
	for i := range slots {
		body, err := readFile(p.fs, p.fs.PathJoin(p.slotPath(i), backupNote))
		if err == nil {
			slots[i].valid = json.Unmarshal(body, &slots[i].note) == nil && slots[i].Index != ""
		}
	}
	if body, err := readFile(p.fs, p.path(backupDir, sessionsFile)); err == nil {
		if json.Unmarshal(body, &sessions) != nil {
			sessions = nil
		}
	}
	return slots, sessions
}

// loadBackups finds the copies of the last time. One of another index, or of a
// session from which the log cannot be followed to this one, is none.
func (p *Pool) loadBackups() {
	b := &p.backups
	slots, sessions := p.readSlots()
	sessions = slices.DeleteFunc(sessions, func(s session) bool { return s.Epoch > p.state.Epoch })
	if n := len(sessions); n == 0 || sessions[n-1].Epoch != p.state.Epoch {
		sessions = nil
	}
	for i := range slots {
		s := &slots[i]
		s.valid = s.valid && s.Index == p.state.Index && slices.ContainsFunc(sessions, func(x session) bool { return x.Epoch == s.Epoch })
	}
	b.slots, b.sessions = slots, sessions
}

// noteSession writes down with which entry the epoch of this opening begins,
// before the index says so. Where that fails, the copies of former sessions are
// of no use from now on.
func (p *Pool) noteSession(next, last uint64) {
	b := &p.backups
	if p.state.Index == "" {
		p.state.Index = uuid.NewString()
	}
	b.now = session{p.state.Epoch, next, last}
	oldest := uint64(math.MaxUint64)
	for _, s := range b.slots {
		if s.valid {
			oldest = min(oldest, s.Epoch)
		}
	}
	b.sessions = slices.DeleteFunc(b.sessions, func(s session) bool { return s.Epoch < oldest || s.Epoch >= b.now.Epoch })
	if oldest == math.MaxUint64 {
		b.sessions = nil
		return
	}
	if err := p.writeSessions(append(b.sessions, b.now)); err != nil {
		b.slots, b.sessions = [2]slot{}, nil
		p.event("index-backup", "", "the copies of the index can be used no more: "+err.Error())
	}
}

func (p *Pool) writeSessions(s []session) error {
	b := &p.backups
	if slices.Equal(s, b.sessions) {
		return nil
	}
	body, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := p.replaceFile(p.path(backupDir), sessionsFile, body); err != nil {
		return err
	}
	b.sessions = s
	return nil
}

// replaceFile writes a file of a folder so that it is the old or the new one.
func (p *Pool) replaceFile(dir, name string, body []byte) error {
	tmp := p.fs.PathJoin(dir, name+".tmp")
	if err := writeFile(p.fs, tmp, body); err != nil {
		return err
	}
	if err := p.fs.Rename(tmp, p.fs.PathJoin(dir, name)); err != nil {
		return err
	}
	return syncDir(p.fs, dir)
}

// BackUp copies the index, as a checkpoint now leaves it, to the older slot. The
// checkpoint waits for hard links only; the copying goes on beside everything.
func (p *Pool) BackUp() error {
	b := &p.backups
	b.one.Lock()
	defer b.one.Unlock()
	began := time.Now()
	defer func() { b.took.Store(int64(time.Since(began))) }()
	if err := p.roomForBackup(); err != nil {
		return err
	}
	if err := p.makeBackupDir(); err != nil {
		return err
	}
	s, lost, err := p.freeze()
	if err == nil {
		err = p.copySlot(s, lost)
	}
	err = errors.Join(err, p.removeAll(p.path(backupDir, frozenDir)))
	b.mu.Lock()
	b.making = 0
	b.mu.Unlock()
	if errors.Is(err, index.ErrCorrupt) {
		return Errorf(ErrCorrupt, "the index is damaged: %w; the older copies are kept; stop the server and run `lunar pool repair`", err)
	}
	if err != nil {
		return fmt.Errorf("copying the index: %w", err)
	}
	return nil
}

// removeAll removes a folder, if it is there.
func (p *Pool) removeAll(dir string) error {
	if err := p.fs.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (p *Pool) makeBackupDir() error {
	dir := p.path(backupDir)
	if err := p.fs.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := p.removeAll(p.path(backupDir, frozenDir)); err != nil {
		return err
	}
	return syncDir(p.fs, p.opts.Dir)
}

// freeze checkpoints and links the index as that leaves it.
func (p *Pool) freeze() (s slot, lost uint64, err error) {
	b := &p.backups
	p.ckptMu.Lock()
	defer p.ckptMu.Unlock()
	if err := p.checkpointHeld(); err != nil {
		return s, 0, err
	}
	if err := p.index.Backup(p.path(backupDir, frozenDir)); err != nil {
		return s, 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.making, lost = p.commits, b.lost
	b.logAt.Store(int64(p.log.Stats().Bytes))
	s = slot{valid: true, gen: p.commits, note: note{Index: p.state.Index, Epoch: p.state.Epoch, Position: p.state.Position, Created: p.now().UTC()}}
	if !slices.Contains(b.sessions, b.now) {
		err = p.writeSessions(append(slices.Clone(b.sessions), b.now))
	}
	return s, lost, err
}

// copySlot copies what is frozen and puts the copy in the place of the older slot.
func (p *Pool) copySlot(s slot, lost uint64) error {
	b := &p.backups
	b.mu.Lock()
	i := 0
	if b.slots[0].valid && (!b.slots[1].valid || b.slots[1].compare(b.slots[0].note) < 0) {
		i = 1
	}
	keep := ""
	if b.slots[i].valid {
		keep = p.slotPath(i)
	}
	b.mu.Unlock()
	made, old := p.slotPath(i)+".new", p.slotPath(i)+".old"
	for _, dir := range []string{made, old} {
		if err := p.removeAll(dir); err != nil {
			return err
		}
	}
	size, err := index.CopyFolder(p.fs, p.path(backupDir, frozenDir), made, keep, nil)
	if err != nil {
		return err
	}
	s.note.Bytes = size
	body, err := json.Marshal(s.note)
	if err == nil {
		err = p.replaceFile(made, backupNote, body)
	}
	if err == nil {
		err = p.swapSlot(i, s, lost, made, old)
	}
	for _, dir := range []string{made, old} {
		err = errors.Join(err, p.removeAll(dir))
	}
	return err
}

func (p *Pool) swapSlot(i int, s slot, lost uint64, made, old string) error {
	b := &p.backups
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lost != lost {
		return Errorf(ErrNoSpace, "the space was needed meanwhile")
	}
	b.slots[i].valid = false
	if err := p.fs.Rename(p.slotPath(i), old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := p.fs.Rename(made, p.slotPath(i)); err != nil {
		return err
	}
	if err := syncDir(p.fs, p.path(backupDir)); err != nil {
		return err
	}
	b.slots[i] = s
	return nil
}

// roomForBackup refuses a backup that the pool or its file system has no room for.
func (p *Pool) roomForBackup() error {
	if err := p.writable(); err != nil {
		return err
	}
	need := int64(p.index.DiskBytes())
	free := p.ledger.Totals().Free * blockSize
	if d := p.look(); d.ok {
		free = min(free, d.avail-p.indexRoom())
	}
	if free < need {
		return Errorf(ErrNoSpace, "a copy of the index takes up to %s, %s are free", human(need), human(max(free, 0)))
	}
	return nil
}

// giveUpBackups makes the copies invalid, so that the segments that only they
// need come back with the next checkpoint. It says whether there were any.
func (p *Pool) giveUpBackups(why string) bool {
	b := &p.backups
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lost++
	b.making = 0
	b.given = p.now()
	any := false
	for i := range b.slots {
		if !b.slots[i].valid {
			continue
		}
		err := p.fs.Remove(p.fs.PathJoin(p.slotPath(i), backupNote))
		if err == nil {
			err = syncDir(p.fs, p.slotPath(i))
		}
		if err != nil {
			p.event("index-backup", "", "a copy of the index could not be given up: "+err.Error())
			continue
		}
		b.slots[i].valid = false
		any = true
	}
	if any {
		p.event("index-backup", "", "the copies of the index are given up: "+why+"; they are made again when there is room")
	}
	return any
}
