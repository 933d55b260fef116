package index

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"
)

// Format is the version of everything this package lays out: the key table, the comparer, the merger. What is in the values
// has versions of its own.
// 2 has longer counters (lun).
const Format = 2

// markerName names the file that holds Format. It is a file and not a key, since a newer format may have another comparer,
// with which this program could not even open the database to look.
const markerName = "lunar-index"

// prepareDir makes the folder and its marker, or checks the marker that is there. The marker is durable before the first file
// of Pebble exists, so tables without a marker are a damage, and a marker without tables is a creation that a crash cut short.
func prepareDir(fsys vfs.FS, o Options) error {
	desc, err := describe(fsys, o.Dir)
	if err != nil {
		return err
	}
	value, err := readMarker(fsys, o.Dir)
	if err != nil {
		return err
	}
	switch {
	case value == "" && desc.Exists:
		return fmt.Errorf("%w: %s has tables but no file that names their format: run pool repair", ErrCorrupt, o.Dir)
	case value != "":
		if err := checkFormat(o.Dir, value); err != nil {
			return err
		}
		if value != strconv.Itoa(Format) && desc.Exists && !o.ReadOnly {
			value = "" // an older program must not open it any more
		}
	}
	if !desc.Exists {
		if err := checkEmpty(fsys, o.Dir); err != nil {
			return err
		}
		if o.MustExist {
			return fmt.Errorf("%w: there is none in %s: run pool repair", ErrMissing, o.Dir)
		}
	}
	if value != "" {
		return nil
	}
	return makeDir(fsys, o.Dir)
}

func describe(fsys vfs.FS, dir string) (*pebble.DBDesc, error) {
	if _, err := fsys.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return &pebble.DBDesc{}, nil
	}
	desc, err := pebble.Peek(dir, fsys)
	if err != nil {
		return nil, openError(dir, err)
	}
	return desc, nil
}

// checkEmpty refuses to make an index over the rest of one: Pebble would remove its tables.
func checkEmpty(fsys vfs.FS, dir string) error {
	names, err := fsys.List(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("index: cannot list %s: %w", dir, err)
	}
	for _, name := range names {
		if isTable(name) || strings.HasSuffix(name, ".log") {
			return fmt.Errorf("%w: %s has %s, but no list of its tables: run pool repair", ErrCorrupt, dir, name)
		}
	}
	return nil
}

func readMarker(fsys vfs.FS, dir string) (string, error) {
	value, err := atomicfs.ReadMarker(fsys, dir, markerName)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", openError(dir, err)
	}
	return value, nil
}

func checkFormat(dir, value string) error {
	have, err := strconv.ParseUint(value, 10, 32)
	if err != nil || have == 0 {
		return fmt.Errorf("%w: the format of %s reads %q: run pool repair", ErrCorrupt, dir, value)
	}
	if have > Format {
		return fmt.Errorf("%w: %s has format %d, this program knows up to %d: use the lunar that wrote it, or a newer one",
			ErrNewerFormat, dir, have, Format)
	}
	return nil
}

// makeDir makes the folder, its entry in the folder above, and the marker durable.
func makeDir(fsys vfs.FS, dir string) error {
	if err := fsys.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("index: cannot make %s: %w", dir, err)
	}
	if err := syncDir(fsys, fsys.PathDir(dir)); err != nil {
		return err
	}
	return writeMarker(fsys, dir)
}

func writeMarker(fsys vfs.FS, dir string) error {
	m, _, err := atomicfs.LocateMarker(fsys, dir, markerName)
	if err != nil {
		return fmt.Errorf("index: cannot read %s: %w", dir, err)
	}
	if err := errors.Join(m.Move(strconv.Itoa(Format)), m.Close()); err != nil {
		return fmt.Errorf("index: cannot write the format of %s: %w", dir, err)
	}
	return nil
}

func syncDir(fsys vfs.FS, dir string) error {
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("index: cannot open %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("index: cannot sync %s: %w", dir, err)
	}
	return nil
}
