package index

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// fuseFS is the file system that Pebble sees: the real one, behind the fuse. It minds the files of one folder; what a backup
// writes elsewhere may fail without harm.
type fuseFS struct {
	vfs.FS
	fuse *fuse
	room *room
	dir  string
	lock io.Closer // of the folder, once it is held
}

func newFuseFS(fs vfs.FS, dir string, f *fuse, r *room) *fuseFS {
	return &fuseFS{FS: fs, fuse: f, room: r, dir: fs.PathJoin(dir)}
}

// Unwrap returns the file system below.
func (fs *fuseFS) Unwrap() vfs.FS { return fs.FS }

func (fs *fuseFS) isOurs(name string) bool {
	return name == fs.dir || fs.PathJoin(name) == fs.dir || fs.PathDir(name) == fs.dir
}

// isTable says whether Pebble can go on when it cannot write the file.
func isTable(name string) bool {
	return strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, ".blob")
}

// change runs an operation that changes the folder, unless the fuse has blown; its failure blows it. It reports whether the
// operation was done: nobody but Commit is to hear of it otherwise.
func (fs *fuseFS) change(what, name string, do func() error) bool {
	if fs.fuse.isBlown() {
		return false
	}
	if err := do(); err != nil {
		fs.fuse.blow(fmt.Errorf("%s %s: %w", what, name, err))
		return false
	}
	return true
}

// make opens a new file for writing with one of the ways there are.
func (fs *fuseFS) make(what, name string, do func() (vfs.File, error)) (vfs.File, error) {
	switch {
	case !fs.isOurs(name):
		return do()
	case isTable(name):
		if err := fs.room.pause(); err != nil {
			return nil, err
		}
		f, err := do()
		if err != nil {
			return nil, err
		}
		return &tableFile{File: f, fuse: fs.fuse}, nil
	}
	var f vfs.File
	if !fs.change(what, name, func() (err error) { f, err = do(); return err }) {
		f = void{}
	}
	return &logFile{File: f, fs: fs, name: name}, nil
}

// Create is part of vfs.FS, as the functions below are.
func (fs *fuseFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return fs.make("create", name, func() (vfs.File, error) { return fs.FS.Create(name, category) })
}

func (fs *fuseFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return fs.make("reuse", newname, func() (vfs.File, error) { return fs.FS.ReuseForWrite(oldname, newname, category) })
}

func (fs *fuseFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return fs.make("open", name, func() (vfs.File, error) { return fs.FS.OpenReadWrite(name, category, opts...) })
}

func (fs *fuseFS) OpenDir(name string) (vfs.File, error) {
	f, err := fs.FS.OpenDir(name)
	if err != nil || !fs.isOurs(name) {
		return f, err
	}
	return &logFile{File: f, fs: fs, name: name}, nil
}

// Lock remembers the lock: Pebble counts its users, and would not give that of an abandoned database back.
func (fs *fuseFS) Lock(name string) (io.Closer, error) {
	lock, err := fs.FS.Lock(name)
	fs.lock = lock
	return lock, err
}

// Remove fails without harm: what is in the way is removed when the index is opened again.
func (fs *fuseFS) Remove(name string) error {
	if fs.isOurs(name) && fs.fuse.isBlown() {
		return nil
	}
	return fs.FS.Remove(name)
}

func (fs *fuseFS) Rename(oldname, newname string) error {
	if !fs.isOurs(newname) {
		return fs.FS.Rename(oldname, newname)
	}
	fs.change("rename", newname, func() error { return fs.FS.Rename(oldname, newname) })
	return nil
}

// tableFile is a table that is being written.
type tableFile struct {
	vfs.File
	fuse *fuse
}

func (f *tableFile) Write(p []byte) (int, error) {
	if err := f.fuse.err(); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *tableFile) Sync() error {
	if err := f.fuse.err(); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *tableFile) SyncData() error {
	if err := f.fuse.err(); err != nil {
		return err
	}
	return f.File.SyncData()
}

// logFile is a file whose failed write leaves open what is durable.
type logFile struct {
	vfs.File
	fs   *fuseFS
	name string
}

func (f *logFile) Write(p []byte) (int, error) {
	f.fs.change("write", f.name, func() error { _, err := f.File.Write(p); return err })
	return len(p), nil
}

func (f *logFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.change("write", f.name, func() error { _, err := f.File.WriteAt(p, off); return err })
	return len(p), nil
}

func (f *logFile) Sync() error {
	f.fs.change("sync", f.name, f.File.Sync)
	return nil
}

func (f *logFile) SyncData() error {
	f.fs.change("sync", f.name, f.File.SyncData)
	return nil
}

// SyncTo says that all is synced when nothing will be.
func (f *logFile) SyncTo(length int64) (full bool, err error) {
	if !f.fs.change("sync", f.name, func() (err error) { full, err = f.File.SyncTo(length); return err }) {
		return true, nil
	}
	return full, nil
}

// Preallocate is an optimisation: the write that follows is what counts.
func (f *logFile) Preallocate(offset, length int64) error {
	if !f.fs.fuse.isBlown() {
		_ = f.File.Preallocate(offset, length)
	}
	return nil
}

// Stat is asked for the size of a recycled log, which is a statistic.
func (f *logFile) Stat() (vfs.FileInfo, error) {
	info, err := f.File.Stat()
	if err != nil {
		f.fs.fuse.blow(fmt.Errorf("stat %s: %w", f.name, err))
		return noInfo{}, nil
	}
	return info, nil
}

func (f *logFile) Close() error {
	if err := f.File.Close(); err != nil {
		f.fs.fuse.blow(fmt.Errorf("close %s: %w", f.name, err))
	}
	return nil
}

// void is a file that a blown fuse did not make.
type void struct{}

func (void) Close() error                            { return nil }
func (void) Read([]byte) (int, error)                { return 0, io.EOF }
func (void) ReadAt([]byte, int64) (int, error)       { return 0, io.EOF }
func (void) Write(p []byte) (int, error)             { return len(p), nil }
func (void) WriteAt(p []byte, _ int64) (int, error)  { return len(p), nil }
func (void) Preallocate(int64, int64) error          { return nil }
func (void) Stat() (vfs.FileInfo, error)             { return noInfo{}, nil }
func (void) Sync() error                             { return nil }
func (void) SyncTo(int64) (fullSync bool, err error) { return true, nil }
func (void) SyncData() error                         { return nil }
func (void) Prefetch(int64, int64) error             { return nil }
func (void) Fd() uintptr                             { return vfs.InvalidFd }

// noInfo describes the void.
type noInfo struct{ os.FileInfo }

func (noInfo) Size() int64            { return 0 }
func (noInfo) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }
