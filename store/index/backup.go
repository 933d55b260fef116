package index

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// CopyFolder copies the files of a closed index, or of what Backup wrote, to a folder that must not exist, and makes them durable.
// Tables are read and their checksums verified on the way: a damaged one is ErrCorrupt. A table that the folder keep has already, if one
// is given, is linked from there: that must be an earlier copy of the same index, in which a table's name says what is in it.
// progress, if given, hears how many bytes are copied. It returns the bytes that the copy holds; after an error nothing is left of it.
func CopyFolder(fsys vfs.FS, from, to, keep string, progress func(bytes int64)) (size int64, err error) {
	names, err := fsys.List(from)
	if err != nil {
		return 0, fmt.Errorf("index: copy of %s: %w", from, err)
	}
	if err := fsys.MkdirAll(to, 0o755); err != nil {
		return 0, fmt.Errorf("index: copy to %s: %w", to, err)
	}
	for _, name := range names {
		if name == "LOCK" {
			continue
		}
		var n int64
		if n, err = copyFile(fsys, from, to, keep, name); err != nil {
			err = fmt.Errorf("index: copy of %s: %w", fsys.PathJoin(from, name), err)
			break
		}
		if size += n; progress != nil {
			progress(n)
		}
	}
	if err == nil {
		err = errors.Join(syncDir(fsys, to), syncDir(fsys, fsys.PathDir(to)))
	}
	if err != nil {
		return 0, errors.Join(err, fsys.RemoveAll(to))
	}
	return size, nil
}

func copyFile(fsys vfs.FS, from, to, keep, name string) (int64, error) {
	src, dst := fsys.PathJoin(from, name), fsys.PathJoin(to, name)
	info, err := fsys.Stat(src)
	if err != nil {
		return 0, err
	}
	if info.IsDir() {
		return 0, nil
	}
	if keep != "" && isTable(name) {
		old := fsys.PathJoin(keep, name)
		if have, err := fsys.Stat(old); err == nil && have.Size() == info.Size() && fsys.Link(old, dst) == nil {
			return info.Size(), nil
		}
	}
	if err := vfs.Copy(fsys, src, dst); err != nil {
		return 0, err
	}
	if strings.HasSuffix(name, ".sst") {
		return info.Size(), verifyTable(fsys, dst)
	}
	return info.Size(), nil
}

// VerifyTables reads the tables of a folder and compares their checksums; nothing has to be open. It returns the first damage of
// each damaged table.
func VerifyTables(fsys vfs.FS, dir string) (damaged []error, err error) {
	names, err := fsys.List(dir)
	if err != nil {
		return nil, fmt.Errorf("index: %s: %w", dir, err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".sst") {
			if err := verifyTable(fsys, fsys.PathJoin(dir, name)); err != nil {
				damaged = append(damaged, err)
			}
		}
	}
	return damaged, nil
}

// verifyTable reads a whole table. A panic of the reader about bytes that make no sense is a damage like any other.
func verifyTable(fsys vfs.FS, path string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: table %s: %v", ErrCorrupt, path, r)
		}
	}()
	f, err := fsys.Open(path)
	if err != nil {
		return err
	}
	readable, err := sstable.NewSimpleReadable(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	o := pebble.Options{Comparer: comparer, Merger: pagesMerger(func(newer, _ []byte) ([]byte, error) { return newer, nil })}
	o.EnsureDefaults()
	r, err := sstable.NewReader(context.Background(), readable, o.MakeReaderOptions())
	if err != nil {
		return fmt.Errorf("%w: table %s: %v", ErrCorrupt, path, errors.Join(err, readable.Close()))
	}
	err = r.ValidateBlockChecksums()
	if err = errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("%w: table %s: %v", ErrCorrupt, path, err)
	}
	return nil
}
