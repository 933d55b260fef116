package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// exportTarget takes the content of an export in ascending order; what it is not
// given is zero.
type exportTarget interface {
	setSize(n int64) error
	writeAt(p []byte, off int64) error
	finish() error // everything is there: make it so under its name
	abort()        // leave nothing behind; after finish it does nothing
}

// openExportTarget opens FILE, or stdout for "-". Nothing exists under the final
// name before finish.
func openExportTarget(file string, force bool, stdout io.Writer) (exportTarget, error) {
	if file == "-" {
		return stdoutTarget(stdout), nil
	}
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// A link to nothing exists too.
		if _, err := os.Lstat(file); err == nil && !force {
			return nil, existsError(file)
		}
		return newFileTarget(file, 0o666&^currentUmask(), force)
	case err != nil:
		return nil, fmt.Errorf("export: %w", err)
	case info.IsDir():
		return nil, fmt.Errorf("export: %s is a folder; name a file in it", file)
	case !force:
		return nil, existsError(file)
	case !info.Mode().IsRegular():
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("export: %w", err)
		}
		return &streamTarget{w: f, close: f.Close}, nil
	}
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	return newFileTarget(real, info.Mode().Perm(), force)
}

func existsError(file string) error {
	return fmt.Errorf("export: %s exists already; name another file or give --force to replace it", file)
}

// fileTarget writes a sparse file beside the final one and renames it at the end.
type fileTarget struct {
	path  string
	f     *os.File
	force bool
	perm  os.FileMode
}

func newFileTarget(path string, perm os.FileMode, force bool) (*fileTarget, error) {
	dir, name := filepath.Split(path)
	if len(name) > 200 {
		name = name[:200]
	}
	f, err := os.CreateTemp(filepath.Clean(dir+"."), "."+name+".lunar-*")
	if err != nil {
		return nil, fmt.Errorf("export: no file can be made beside %s: %w", path, err)
	}
	return &fileTarget{path: path, f: f, force: force, perm: perm}, nil
}

func (t *fileTarget) setSize(n int64) error {
	if err := t.f.Truncate(n); err != nil {
		return fmt.Errorf("export: %s cannot have %d bytes: %w", t.path, n, err)
	}
	return nil
}

func (t *fileTarget) writeAt(p []byte, off int64) error {
	if _, err := t.f.WriteAt(p, off); err != nil {
		return fmt.Errorf("export: %s: %w", t.path, err)
	}
	return nil
}

func (t *fileTarget) finish() error {
	err := t.f.Chmod(t.perm)
	if err == nil {
		err = t.f.Sync()
	}
	if err == nil {
		err = t.rename()
	}
	if err != nil {
		return fmt.Errorf("export: %s: %w", t.path, err)
	}
	err = t.f.Close()
	t.f = nil
	return errors.Join(err, syncDir(filepath.Dir(t.path)))
}

// rename never replaces a file that came into being meanwhile, unless by force.
func (t *fileTarget) rename() error {
	if t.force {
		return os.Rename(t.f.Name(), t.path)
	}
	err := unix.Renameat2(unix.AT_FDCWD, t.f.Name(), unix.AT_FDCWD, t.path, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EEXIST):
		return errors.New("it exists by now; name another file or give --force to replace it")
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return os.Rename(t.f.Name(), t.path) // the file system has no such rename
	}
	return err
}

func (t *fileTarget) abort() {
	if t.f != nil {
		t.f.Close()
		_ = os.Remove(t.f.Name())
		t.f = nil
	}
}

// currentUmask reads the umask, which can only be read by setting it; a command
// that exports makes no other files meanwhile.
func currentUmask() os.FileMode {
	mask := unix.Umask(0o077)
	unix.Umask(mask)
	return os.FileMode(mask)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// stdoutTarget is sparse if stdout is a file with nothing behind its position.
func stdoutTarget(stdout io.Writer) exportTarget {
	f, ok := stdout.(*os.File)
	if !ok {
		return &streamTarget{w: stdout}
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return &streamTarget{w: f}
	}
	at, err := f.Seek(0, io.SeekCurrent)
	flags, flagsErr := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil || flagsErr != nil || flags&unix.O_APPEND != 0 || at < info.Size() {
		return &streamTarget{w: f}
	}
	return &seekTarget{f: f, base: at}
}

// streamTarget writes everything, zeros too.
type streamTarget struct {
	w     io.Writer
	at    int64
	size  int64
	close func() error
}

func (t *streamTarget) setSize(n int64) error {
	t.size = n
	return nil
}

func (t *streamTarget) writeAt(p []byte, off int64) error {
	if err := t.zeros(off - t.at); err != nil {
		return err
	}
	n, err := t.w.Write(p)
	t.at += int64(n)
	return exportWriteError(err)
}

var zeroMegabyte [1 << 20]byte

func (t *streamTarget) zeros(n int64) error {
	for n > 0 {
		m, err := t.w.Write(zeroMegabyte[:min(n, int64(len(zeroMegabyte)))])
		t.at, n = t.at+int64(m), n-int64(m)
		if err != nil {
			return exportWriteError(err)
		}
	}
	return nil
}

func exportWriteError(err error) error {
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

func (t *streamTarget) finish() error {
	if err := t.zeros(t.size - t.at); err != nil {
		return err
	}
	if f, ok := t.w.(*os.File); ok && t.close != nil {
		// Pipes and terminals cannot be synced, disks can.
		if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
			return exportWriteError(err)
		}
	}
	t.abort()
	return nil
}

func (t *streamTarget) abort() {
	if t.close != nil {
		_ = t.close()
		t.close = nil
	}
}

// seekTarget writes into a file that the shell opened, leaving out zeros.
type seekTarget struct {
	f    *os.File
	base int64
	size int64
}

func (t *seekTarget) setSize(n int64) error {
	t.size = n
	return exportWriteError(t.f.Truncate(t.base + n))
}

func (t *seekTarget) writeAt(p []byte, off int64) error {
	_, err := t.f.WriteAt(p, t.base+off)
	return exportWriteError(err)
}

func (t *seekTarget) finish() error {
	_, err := t.f.Seek(t.base+t.size, io.SeekStart)
	return exportWriteError(err)
}

func (t *seekTarget) abort() {}
