// Package crashfs is a file system in memory, behind Pebble's vfs.FS, that can be crashed, and whose operations can be made
// to fail. It is for tests: it remembers each write that was not synced and each change of a folder that was
// not synced, so that an Image may hold any part of them, and the same part again for the same seed.
//
// The nouns:
//
//	FS     the file system; safe for concurrent use
//	Image  another FS: what a power cut leaves, as a Loss says
//	Op     one operation that changes or syncs something, as the Hook sees it before it is done
//
// What a crash may do to what was not synced: lose it, keep it, keep any part of the writes of a file, keep some
// sectors or the first bytes of a write, keep the size but not the data; keep the changes of folders up to some point, all
// alike or each by itself, but for removals, any of which may be lost; of a rename it keeps nothing, the new name, or both names.
// Never does it harm what was synced, or bytes beside a write; and never does a folder have a later name without an
// earlier one: file systems that journal do not, and Pebble relies on it (its manifest is named before the
// marker that points at it, and both are synced by one sync of the folder).
//
// A failed sync behaves as on Linux: what was not synced is marked clean. It is read until the cache is dropped, no later
// sync makes it durable, and no later sync fails because of it.
package crashfs

import (
	"cmp"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// FS is a file system in memory.
type FS struct {
	mu      sync.Mutex
	root    *dir
	changes []*change // of folders, not synced, in order
	locked  map[string]bool
	ops     int
	hook    Hook
	usage   vfs.DiskUsage
}

var _ vfs.FS = (*FS)(nil)

// New makes an empty file system.
func New() *FS {
	return &FS{root: newDir(), locked: map[string]bool{}}
}

// node is a file or a folder.
type node any

// dir is a folder: its names as they are, and as they were last synced.
type dir struct {
	live, durable map[string]node
}

func newDir() *dir { return &dir{live: map[string]node{}, durable: map[string]node{}} }

// change is a change of one or two folders that was not synced: a new name (from is
// nil), a removed one (to is nil), or a rename. Of a rename, each side is synced by itself.
type change struct {
	from, to         *dir
	fromName, toName string
	n                node // under the new name
	linked, unlinked bool // is durable
}

// Ops is how many operations there were so far.
func (fs *FS) Ops() int {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.ops
}

// SetHook sets what is called before each operation; nil for nothing.
func (fs *FS) SetHook(h Hook) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.hook = h
}

// SetDiskUsage sets what GetDiskUsage answers. It is not supported before.
func (fs *FS) SetDiskUsage(u vfs.DiskUsage) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.usage = u
}

// begin counts an operation and asks the hook.
func (fs *FS) begin(kind Kind, name string, off, n int64) error {
	fs.mu.Lock()
	fs.ops++
	op := Op{N: fs.ops, Kind: kind, Path: name, Offset: off, Length: n}
	hook := fs.hook
	fs.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(op)
}

func pathError(op, name string, err error) error { return &os.PathError{Op: op, Path: name, Err: err} }

func split(name string) []string {
	var parts []string
	for _, p := range strings.Split(path.Clean("/"+name), "/") {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return parts
}

// folderLocked finds a folder.
func (fs *FS) folderLocked(parts []string) (*dir, error) {
	d := fs.root
	for _, p := range parts {
		next, ok := d.live[p]
		if !ok {
			return nil, syscall.ENOENT
		}
		if d, ok = next.(*dir); !ok {
			return nil, syscall.ENOTDIR
		}
	}
	return d, nil
}

// parentLocked finds the folder of a name, and the last part of it.
func (fs *FS) parentLocked(name string) (*dir, string, error) {
	parts := split(name)
	if len(parts) == 0 {
		return nil, "", syscall.EINVAL
	}
	last := len(parts) - 1
	d, err := fs.folderLocked(parts[:last])
	return d, parts[last], err
}

func (fs *FS) findLocked(name string) (node, error) {
	parts := split(name)
	if len(parts) == 0 {
		return fs.root, nil
	}
	d, last, err := fs.parentLocked(name)
	if err != nil {
		return nil, err
	}
	n, ok := d.live[last]
	if !ok {
		return nil, syscall.ENOENT
	}
	return n, nil
}

func (fs *FS) linkLocked(d *dir, name string, n node) {
	d.live[name] = n
	fs.changes = append(fs.changes, &change{to: d, toName: name, n: n, unlinked: true})
}

func (fs *FS) unlinkLocked(d *dir, name string) {
	delete(d.live, name)
	fs.changes = append(fs.changes, &change{from: d, fromName: name, linked: true})
}

// syncDirLocked makes the changes of a folder durable. A name does not go before the
// file has its new one.
func (fs *FS) syncDirLocked(d *dir) {
	for i, c := range fs.changes {
		if c.from == d && !c.linked && c.to != d {
			fs.settleLocked(fs.changes[:i+1], c.to)
		}
	}
	fs.settleLocked(fs.changes, d)
	fs.changes = slices.DeleteFunc(fs.changes, func(c *change) bool { return c.linked && c.unlinked })
}

func (fs *FS) settleLocked(changes []*change, d *dir) {
	for _, c := range changes {
		if c.to == d && !c.linked {
			d.durable[c.toName], c.linked = c.n, true
		}
		if c.from == d && !c.unlinked {
			delete(d.durable, c.fromName)
			c.unlinked = true
		}
	}
}

// Create is part of vfs.FS, as the functions below are.
func (fs *FS) Create(name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	if err := fs.begin(OpCreate, name, 0, 0); err != nil {
		return nil, pathError("create", name, err)
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.createLocked(name)
}

func (fs *FS) createLocked(name string) (vfs.File, error) {
	d, last, err := fs.parentLocked(name)
	if err != nil {
		return nil, pathError("create", name, err)
	}
	if old, ok := d.live[last]; ok {
		if _, isDir := old.(*dir); isDir {
			return nil, pathError("create", name, syscall.EISDIR)
		}
		fs.unlinkLocked(d, last)
	}
	f := &file{modified: time.Now()}
	fs.linkLocked(d, last, f)
	return &handle{fs: fs, f: f, name: name, write: true}, nil
}

func (fs *FS) Link(oldname, newname string) error {
	if err := fs.begin(OpLink, newname, 0, 0); err != nil {
		return pathError("link", newname, err)
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n, err := fs.findLocked(oldname)
	if err != nil {
		return pathError("link", oldname, err)
	}
	d, last, err := fs.parentLocked(newname)
	if err == nil && d.live[last] != nil {
		err = syscall.EEXIST
	}
	if err != nil {
		return pathError("link", newname, err)
	}
	fs.linkLocked(d, last, n)
	return nil
}

func (fs *FS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	fs.mu.Lock()
	n, err := fs.findLocked(name)
	fs.mu.Unlock()
	if err != nil {
		return nil, pathError("open", name, err)
	}
	h := &handle{fs: fs, name: name}
	switch n := n.(type) {
	case *file:
		h.f = n
	case *dir:
		h.d = n
	}
	for _, o := range opts {
		o.Apply(h)
	}
	return h, nil
}

func (fs *FS) OpenReadWrite(name string, _ vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	fs.mu.Lock()
	n, err := fs.findLocked(name)
	fs.mu.Unlock()
	var made vfs.File
	switch f, isFile := n.(*file); {
	case isFile:
		made = &handle{fs: fs, f: f, name: name, write: true}
	case err == nil:
		return nil, pathError("open", name, syscall.EISDIR)
	case !errors.Is(err, syscall.ENOENT):
		return nil, pathError("open", name, err)
	default:
		if made, err = fs.Create(name, ""); err != nil {
			return nil, err
		}
	}
	for _, o := range opts {
		o.Apply(made)
	}
	return made, nil
}

func (fs *FS) OpenDir(name string) (vfs.File, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	d, err := fs.folderLocked(split(name))
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return &handle{fs: fs, d: d, name: name}, nil
}

func (fs *FS) Remove(name string) error {
	if err := fs.begin(OpRemove, name, 0, 0); err != nil {
		return pathError("remove", name, err)
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	d, last, err := fs.parentLocked(name)
	if err != nil {
		return pathError("remove", name, err)
	}
	n, ok := d.live[last]
	if !ok {
		return pathError("remove", name, syscall.ENOENT)
	}
	if sub, isDir := n.(*dir); isDir && len(sub.live) > 0 {
		return pathError("remove", name, syscall.ENOTEMPTY)
	}
	fs.unlinkLocked(d, last)
	return nil
}

func (fs *FS) RemoveAll(name string) error {
	names, err := fs.List(name)
	if err == nil {
		for _, n := range names {
			if err := fs.RemoveAll(path.Join(name, n)); err != nil {
				return err
			}
		}
	}
	if err := fs.Remove(name); err != nil && !errors.Is(err, syscall.ENOENT) {
		return err
	}
	return nil
}

func (fs *FS) Rename(oldname, newname string) error {
	if err := fs.begin(OpRename, newname, 0, 0); err != nil {
		return pathError("rename", newname, err)
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.renameLocked(oldname, newname)
}

func (fs *FS) renameLocked(oldname, newname string) error {
	from, fromName, err := fs.parentLocked(oldname)
	if err == nil && from.live[fromName] == nil {
		err = syscall.ENOENT
	}
	if err != nil {
		return pathError("rename", oldname, err)
	}
	to, toName, err := fs.parentLocked(newname)
	if err != nil {
		return pathError("rename", newname, err)
	}
	n := from.live[fromName]
	if from == to && fromName == toName {
		return nil
	}
	delete(from.live, fromName)
	to.live[toName] = n
	fs.changes = append(fs.changes, &change{from: from, to: to, fromName: fromName, toName: toName, n: n})
	return nil
}

func (fs *FS) ReuseForWrite(oldname, newname string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	if err := fs.Rename(oldname, newname); err != nil {
		return nil, err
	}
	return fs.OpenReadWrite(newname, "")
}

func (fs *FS) MkdirAll(name string, _ os.FileMode) error {
	parts := split(name)
	fs.mu.Lock()
	_, err := fs.folderLocked(parts)
	fs.mu.Unlock()
	if err == nil {
		return nil
	}
	if err := fs.begin(OpMkdir, name, 0, 0); err != nil {
		return pathError("mkdir", name, err)
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	d := fs.root
	for _, p := range parts {
		next, ok := d.live[p]
		if !ok {
			next = newDir()
			fs.linkLocked(d, p, next)
		}
		if d, ok = next.(*dir); !ok {
			return pathError("mkdir", name, syscall.ENOTDIR)
		}
	}
	return nil
}

// Lock makes the file; who holds it is not part of an image.
func (fs *FS) Lock(name string) (io.Closer, error) {
	if err := fs.begin(OpCreate, name, 0, 0); err != nil {
		return nil, pathError("lock", name, err)
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.locked[name] {
		return nil, syscall.EAGAIN
	}
	if n, _ := fs.findLocked(name); n == nil {
		if _, err := fs.createLocked(name); err != nil {
			return nil, err
		}
	}
	fs.locked[name] = true
	return lock{fs, name}, nil
}

type lock struct {
	fs   *FS
	name string
}

func (l lock) Close() error {
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	delete(l.fs.locked, l.name)
	return nil
}

func (fs *FS) List(name string) ([]string, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	d, err := fs.folderLocked(split(name))
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return namesOf(d.live), nil
}

func namesOf(m map[string]node) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.SortFunc(names, cmp.Compare[string])
	return names
}

func (fs *FS) Stat(name string) (vfs.FileInfo, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n, err := fs.findLocked(name)
	if err != nil {
		return nil, pathError("stat", name, err)
	}
	return statLocked(name, n), nil
}

func (fs *FS) PathBase(p string) string        { return path.Base(p) }
func (fs *FS) PathJoin(parts ...string) string { return path.Join(parts...) }
func (fs *FS) PathDir(p string) string         { return path.Dir(p) }
func (fs *FS) Unwrap() vfs.FS                  { return nil }

func (fs *FS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.usage == (vfs.DiskUsage{}) {
		return fs.usage, vfs.ErrUnsupported
	}
	return fs.usage, nil
}
