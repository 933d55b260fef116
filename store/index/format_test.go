package index

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"
)

// made returns a file system with an index in it: a table, and a log that adds to what the table has.
func made(t *testing.T) *vfs.MemFS {
	t.Helper()
	mem := vfs.NewMem()
	x := openTest(t, Options{FS: mem})
	err := errors.Join(writeRound(x, 1), x.Flush(), writeRound(x, 2), x.Close())
	if err != nil {
		t.Fatal(err)
	}
	return mem
}

func files(t *testing.T, fs vfs.FS, part string) (names []string) {
	t.Helper()
	all, err := fs.List("index")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if strings.Contains(name, part) {
			names = append(names, "index/"+name)
		}
	}
	if len(names) == 0 {
		t.Fatalf("no %q among %v", part, all)
	}
	return names
}

func moveMarker(t *testing.T, fs vfs.FS, name, value string) {
	t.Helper()
	m, _, err := atomicfs.LocateMarker(fs, "index", name)
	if err == nil {
		err = errors.Join(m.Move(value), m.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func wantOpenError(t *testing.T, fs vfs.FS, kind error, words ...string) {
	t.Helper()
	x, err := Open(Options{FS: fs, Dir: "index", MergePages: toyMerge})
	if err == nil {
		x.Close()
	}
	if !errors.Is(err, kind) {
		t.Errorf("Open says %v, want %v", err, kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func TestNewerFormat(t *testing.T) {
	noLeaks(t)
	mem := made(t)
	moveMarker(t, mem, markerName, "7")
	wantOpenError(t, mem, ErrNewerFormat, "format 7", "up to 2", "use the lunar")
	moveMarker(t, mem, markerName, "1")
	if err := openTest(t, Options{FS: mem}).Close(); err != nil {
		t.Fatal(err)
	}
	moveMarker(t, mem, "format-version", "999")
	wantOpenError(t, mem, ErrNewerFormat, "999", "use the newer lunar")
}

func TestDamage(t *testing.T) {
	noLeaks(t)
	remove := func(part string) func(t *testing.T, mem *vfs.MemFS) {
		return func(t *testing.T, mem *vfs.MemFS) {
			for _, name := range files(t, mem, part) {
				if err := mem.Remove(name); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	flip := func(part string, at int) func(t *testing.T, mem *vfs.MemFS) {
		return func(t *testing.T, mem *vfs.MemFS) {
			// Pebble may have left an older or an empty one beside the one in use.
			names := files(t, mem, part)
			for i := len(names) - 1; i >= 0; i-- {
				data, err := mem.UnsafeGetFileDataBuffer(names[i])
				if err != nil {
					t.Fatal(err)
				}
				if len(data) > 0 {
					data[(at+len(data))%len(data)] ^= 0x55
					return
				}
			}
			t.Fatalf("no %s file holds anything", part)
		}
	}
	for name, damage := range map[string]func(t *testing.T, mem *vfs.MemFS){
		"no format":        remove("marker.lunar-index"),
		"unread format":    func(t *testing.T, mem *vfs.MemFS) { moveMarker(t, mem, markerName, "one") },
		"format 0":         func(t *testing.T, mem *vfs.MemFS) { moveMarker(t, mem, markerName, "0") },
		"no manifest":      remove("MANIFEST-"),
		"bad manifest":     flip("MANIFEST-", 20),
		"no tables":        remove(".sst"),
		"no pebble format": remove("marker.format-version"),
	} {
		t.Run(name, func(t *testing.T) {
			mem := made(t)
			damage(t, mem)
			wantOpenError(t, mem, ErrCorrupt, "pool repair")
		})
	}
	t.Run("bad table", func(t *testing.T) {
		mem := made(t)
		flip(".sst", 10)(t, mem)
		x := openTest(t, Options{FS: mem})
		if _, _, err := x.Page(1, 3, 1, nil); !errors.Is(err, ErrCorrupt) || !errors.Is(err, syscall.EIO) {
			t.Errorf("a read says %v", err)
		}
		if _, _, _, err := x.NewestPage(1, 3, 1, nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("a read of the newest says %v", err)
		}
		if err := x.Check(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("Check says %v", err)
		}
		if err := x.Err(); err != nil {
			t.Errorf("it ended writing: %v", err)
		}
	})
	t.Run("lost all", func(t *testing.T) {
		_, err := Open(Options{FS: vfs.NewMem(), Dir: "index", MergePages: toyMerge, MustExist: true})
		if !errors.Is(err, ErrMissing) {
			t.Errorf("a pool whose index is gone opens with %v", err)
		}
	})
}

func TestCheckFindsLostTwins(t *testing.T) {
	noLeaks(t)
	for what, key := range map[string][]byte{
		"page": appendPageKey(nil, 1, 3, 1), "change": appendChangeKey(nil, 1, 1, 3),
	} {
		x := openTest(t, Options{FS: made(t)})
		if err := errors.Join(x.Check(), x.db.Delete(key, pebble.Sync)); err != nil {
			t.Fatal(err)
		}
		if err := x.Check(); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "page 3, version 1") {
			t.Errorf("without its %s, Check says %v", what, err)
		}
	}
	x := openTest(t, Options{FS: made(t)})
	if err := x.db.Set([]byte("unknown"), nil, pebble.Sync); err != nil {
		t.Fatal(err)
	}
	if err := x.Check(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("with a foreign key, Check says %v", err)
	}
}

func TestBadPageValue(t *testing.T) {
	noLeaks(t)
	x := openTest(t, Options{FS: made(t)})
	commit(t, x, func(b *Batch) { b.MergePage(1, 3, 1, []byte("odd")) })
	if _, _, err := x.Page(1, 3, 1, nil); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "half a pair") {
		t.Errorf("a page that cannot be merged reads with %v", err)
	}
	if err := x.Check(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Check says %v", err)
	}
	if _, ok, err := x.Page(1, 4, 1, nil); !ok || err != nil {
		t.Errorf("its neighbour: %v %v", ok, err)
	}
}

func TestReadOnly(t *testing.T) {
	noLeaks(t)
	if _, err := Open(Options{FS: vfs.NewMem(), Dir: "index", MergePages: toyMerge, ReadOnly: true}); !errors.Is(err, ErrMissing) {
		t.Errorf("an index that is not there opens read-only with %v", err)
	}
	mem := made(t)
	before, _ := mem.List("index")
	x := openTest(t, Options{FS: mem, ReadOnly: true})
	if round := wantRound(t, x); round != 2 {
		t.Errorf("round %d; what is in the log only is missing", round)
	}
	if err := writeRound(x, 4); !errors.Is(err, ErrReadOnly) {
		t.Errorf("a commit says %v", err)
	}
	if err := x.Flush(); !errors.Is(err, ErrReadOnly) {
		t.Errorf("a flush says %v", err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if after, _ := mem.List("index"); len(after) != len(before) {
		t.Errorf("the files went from %v to %v", before, after)
	}
}

func TestLocked(t *testing.T) {
	noLeaks(t)
	mem := vfs.NewMem()
	x := openTest(t, Options{FS: mem})
	if _, err := Open(Options{FS: mem, Dir: "index", MergePages: toyMerge}); err == nil || !strings.Contains(err.Error(), "locked") && !strings.Contains(err.Error(), "lock") {
		t.Errorf("a second Open says %v", err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	openTest(t, Options{FS: mem})
}

func TestBackup(t *testing.T) {
	noLeaks(t)
	mem := vfs.NewCrashableMem()
	x := openTest(t, Options{FS: mem})
	if err := errors.Join(writeRound(x, 1), x.Flush(), writeRound(x, 2), x.Backup("copy"), writeRound(x, 3)); err != nil {
		t.Fatal(err)
	}
	if err := x.Backup("copy"); err == nil {
		t.Error("a backup over another succeeded")
	}
	if round := wantRound(t, openTest(t, Options{FS: mem, Dir: "copy", ReadOnly: true})); round != 2 {
		t.Errorf("the backup has round %d", round)
	}
	after := mem.CrashClone(vfs.CrashCloneCfg{})
	if round := wantRound(t, openTest(t, Options{FS: after, Dir: "copy", MustExist: true})); round != 2 {
		t.Errorf("the backup has round %d after a power cut", round)
	}
}

func TestRealFiles(t *testing.T) {
	noLeaks(t)
	dir := t.TempDir() + "/index"
	x := openTest(t, Options{Dir: dir})
	if err := errors.Join(writeRound(x, 1), x.Backup(dir+"-copy"), writeRound(x, 2), x.Close()); err != nil {
		t.Fatal(err)
	}
	wantRound(t, openTest(t, Options{Dir: dir, MustExist: true}))
	if round := wantRound(t, openTest(t, Options{Dir: dir + "-copy"})); round != 1 {
		t.Errorf("the backup has round %d", round)
	}
	if _, err := Open(Options{Dir: "/proc/index", MergePages: toyMerge}); err == nil || errors.Is(err, ErrCorrupt) {
		t.Errorf("a folder that cannot be made: %v", err)
	}
}
