package lun

import (
	"archive/tar"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// unpack puts a pool of testdata/format into a folder of its own. These were
// written by the first program of their format and killed; they are never made
// anew.
func unpack(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata/format", name))
	must(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	must(t, err)
	dir := t.TempDir()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return filepath.Join(dir, "pool")
		}
		must(t, err)
		path := filepath.Join(dir, filepath.Clean(h.Name))
		if h.Typeflag == tar.TypeDir {
			must(t, os.MkdirAll(path, 0o755))
			continue
		}
		b, err := io.ReadAll(r)
		must(t, err)
		must(t, os.WriteFile(path, b, 0o644))
	}
}

// A pool of format 1, with a crash, branches, a clone and a deleted snapshot that
// waits, opens as format 2 with its content, its accounts and exact unique sizes.
func TestOpensFormat1(t *testing.T) {
	dir := unpack(t, "1.tgz")
	o := Options{Dir: dir, FS: vfs.Default, Manual: true}
	p, err := Open(bg, o)
	must(t, err)
	look := func() {
		t.Helper()
		clean(t, p)
		for block, b := range map[int]byte{0: 1, 2: 7, 3: 7, 5: 1, 15: 8, 16: 9, 17: 9, 30: 11, 601: 2} {
			expect(t, p, "a", block, b, "a")
		}
		for block, b := range map[int]byte{0: 1, 1: 10, 5: 3, 8: 4, 10: 6, 12: 6, 30: 12, 601: 2} {
			expect(t, p, "c", block, b, "c")
		}
		s, err := p.Snapshot("a", "s5")
		must(t, err)
		if s.UniqueBytes != blockSize {
			t.Errorf("unique of s5 is %d bytes, want one block", s.UniqueBytes)
		}
	}
	look()
	must(t, p.Close())
	if p, err = Open(bg, o); err != nil {
		t.Fatal(err)
	}
	look()
	must(t, p.Reclaim())
	look()
	for _, s := range []string{"s1", "s4", "s5"} {
		_, err := p.DeleteSnapshots(bg, []SnapshotRef{{LUN: "a", Name: s}}, DeleteOptions{Wait: true})
		must(t, err)
		clean(t, p)
	}
	must(t, p.Close())
}
