package index

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A copy opens and is independent of what it was made from; tables that an
// earlier copy has are taken from there; a damaged table is no copy at all.
func TestCopyFolder(t *testing.T) {
	noLeaks(t)
	mem := vfs.NewCrashableMem()
	x := openTest(t, Options{FS: mem})
	if err := errors.Join(writeRound(x, 1), x.Flush(), x.Backup("frozen")); err != nil {
		t.Fatal(err)
	}
	said := int64(0)
	size, err := CopyFolder(mem, "frozen", "one", "", func(n int64) { said += n })
	if err != nil || size == 0 || size != said {
		t.Fatalf("copied %d bytes, said %d: %v", size, said, err)
	}
	if damaged, err := VerifyTables(mem, "one"); err != nil || len(damaged) != 0 {
		t.Fatalf("%v %v", damaged, err)
	}
	flipTables(t, mem, "frozen")
	if round := wantRound(t, openTest(t, Options{FS: mem, Dir: "one", ReadOnly: true})); round != 1 {
		t.Errorf("the copy has round %d", round)
	}
	if _, err := CopyFolder(mem, "frozen", "two", "", nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("copy of a damaged table: %v", err)
	}
	if _, err := mem.Stat("two"); err == nil {
		t.Error("something is left of the copy that failed")
	}
	if damaged, err := VerifyTables(mem, "frozen"); err != nil || len(damaged) == 0 {
		t.Errorf("%v %v", damaged, err)
	}
	if _, err := CopyFolder(mem, "frozen", "three", "one", nil); err != nil {
		t.Errorf("copy beside an older one: %v", err)
	}
	after := mem.CrashClone(vfs.CrashCloneCfg{})
	if round := wantRound(t, openTest(t, Options{FS: after, Dir: "three", MustExist: true})); round != 1 {
		t.Errorf("the copy has round %d after a power cut", round)
	}
}

func flipTables(t *testing.T, mem *vfs.MemFS, dir string) {
	t.Helper()
	names, err := mem.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range names {
		if strings.HasSuffix(name, ".sst") {
			b, err := mem.UnsafeGetFileDataBuffer(mem.PathJoin(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)/3] ^= 1
			n++
		}
	}
	if n == 0 {
		t.Fatal("no table")
	}
}
