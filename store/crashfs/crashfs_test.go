package crashfs

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"sort"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tree is everything there is, as text.
func tree(fs vfs.FS, dir string) string {
	var out strings.Builder
	names := must(fs.List(dir))
	sort.Strings(names)
	for _, n := range names {
		p := fs.PathJoin(dir, n)
		if must(fs.Stat(p)).IsDir() {
			out.WriteString(p + "/\n" + tree(fs, p))
			continue
		}
		f := must(fs.Open(p))
		b := must(io.ReadAll(f))
		fmt.Fprintf(&out, "%s %d %x\n", p, len(b), crc32.ChecksumIEEE(b))
		f.Close()
	}
	return out.String()
}

// TestAsMemFS does the same random things to Pebble's file system: it reads the
// same at any time, and after a crash that keeps nothing.
func TestAsMemFS(t *testing.T) {
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 7))
		ours, theirs := New(), vfs.NewCrashableMem()
		both := func(do func(fs vfs.FS) error) {
			t.Helper()
			a, b := do(ours), do(theirs)
			if (a == nil) != (b == nil) {
				t.Fatalf("seed %d: ours says %v, MemFS %v", seed, a, b)
			}
		}
		both(func(fs vfs.FS) error { return fs.MkdirAll("/a/b", 0o755) })
		dirs := []string{"/", "/a", "/a/b"}
		for i := range 120 {
			dir, other := dirs[rng.IntN(3)], dirs[rng.IntN(3)]
			name, name2 := fmt.Sprintf("f%d", rng.IntN(4)), fmt.Sprintf("f%d", rng.IntN(4))
			off, data := rng.Int64N(9000), bytes.Repeat([]byte{byte(rng.IntN(256))}, 1+rng.IntN(6000))
			kind := rng.IntN(12)
			both(func(fs vfs.FS) error {
				p, p2 := fs.PathJoin(dir, name), fs.PathJoin(other, name2)
				switch kind {
				case 0, 1:
					f, err := fs.Create(p, "")
					check(t, err)
					f.Write(bytes.Clone(data))
					return f.Close()
				case 2, 3, 4:
					f, err := fs.OpenReadWrite(p, "")
					check(t, err)
					f.WriteAt(bytes.Clone(data), off)
					return f.Close()
				case 5, 6:
					f, err := fs.OpenReadWrite(p, "")
					check(t, err)
					return f.Sync()
				case 7, 8:
					d, err := fs.OpenDir(dir)
					check(t, err)
					return d.Sync()
				case 9:
					return fs.Remove(p)
				case 10:
					if p == p2 {
						return nil
					}
					if _, err := fs.Stat(p); err != nil {
						return nil
					}
					return fs.Rename(p, p)
				default:
					return fs.Link(p, p2)
				}
			})
			if i%10 > 0 {
				continue
			}
			if a, b := tree(ours, "/"), tree(theirs, "/"); a != b {
				t.Fatalf("seed %d: ours\n%s\nMemFS\n%s", seed, a, b)
			}
		}
		clone := theirs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0, RNG: rng})
		if a, b := tree(ours.Image(LoseAll()), "/"), tree(clone, "/"); a != b {
			t.Errorf("seed %d, keeping nothing: ours\n%s\nMemFS\n%s", seed, a, b)
		}
		if a, b := tree(ours.Image(KeepAll()), "/"), tree(ours, "/"); a != b {
			t.Errorf("seed %d, keeping everything:\n%s\nof\n%s", seed, a, b)
		}
		if a, b := tree(ours.Fork(), "/"), tree(ours, "/"); a != b {
			t.Errorf("seed %d: a fork is\n%s\nof\n%s", seed, a, b)
		}
		if a, b := tree(ours.Fork().Image(LoseAll()), "/"), tree(ours.Image(LoseAll()), "/"); a != b {
			t.Errorf("seed %d: a fork loses\n%s\nwhere the original loses\n%s", seed, a, b)
		}
	}
}

// folder is a file system with one synced file in it.
func folder(t *testing.T) (*FS, vfs.File) {
	fs := New()
	f := must(fs.Create("f", ""))
	must(f.Write(bytes.Repeat([]byte{'.'}, 8192)))
	check(t, f.Sync())
	check(t, must(fs.OpenDir("/")).Sync())
	return fs, f
}

// outcomes counts what 400 seeds make of a state. Each seed must give the same twice.
func outcomes(t *testing.T, fs *FS, show func(*FS) string) map[string]int {
	got := map[string]int{}
	for seed := range uint64(400) {
		a, b := show(fs.Image(KeepSome(seed))), show(fs.Image(KeepSome(seed)))
		if a != b {
			t.Fatalf("seed %d gives %q and then %q", seed, a, b)
		}
		got[a]++
	}
	return got
}

func TestWritesAreKeptInPart(t *testing.T) {
	fs, f := folder(t)
	must(f.(*handle).WriteAt(bytes.Repeat([]byte{'a'}, 2048), 1024))
	must(f.(*handle).WriteAt(bytes.Repeat([]byte{'b'}, 512), 8192)) // behind the end
	got := outcomes(t, fs, func(fs *FS) string {
		b := must(io.ReadAll(must(fs.Open("f"))))
		if bytes.Count(b[:1024], []byte{'.'}) != 1024 || bytes.Count(b[3072:8192], []byte{'.'}) != 8192-3072 {
			t.Fatal("bytes beside a write were harmed")
		}
		sectors := ""
		for at := 1024; at < 3072; at += 512 {
			sectors += string(b[at])
			if b[at] != b[at+511] {
				sectors += "/"
			}
		}
		return fmt.Sprintf("%s %d %q", sectors, len(b), bytes.Trim(b[8192:], "b"))
	})
	for _, want := range []string{`.... 8192 ""`, `aaaa 8192 ""`, `.... 8704 ""`, `aaaa 8704 ""`} {
		if got[want] == 0 {
			t.Errorf("no seed of 400 leaves %s; there are %v", want, got)
		}
	}
	torn, inside, sizeOnly := 0, 0, 0
	for k, n := range got {
		if strings.Contains(k, "/") {
			inside += n
		} else if s := k[:4]; s != "...." && s != "aaaa" {
			torn += n
		}
		if strings.Contains(k, `8704 "\x00`) {
			sizeOnly += n
		}
	}
	if torn == 0 || inside == 0 || sizeOnly == 0 {
		t.Errorf("of 400 seeds %d tear at sectors, %d inside of one, %d keep the size only: %v", torn, inside, sizeOnly, got)
	}
}

func TestNamesAreKeptInPart(t *testing.T) {
	fs, _ := folder(t)
	check(t, fs.Rename("f", "g"))
	must(fs.Create("h", ""))
	got := outcomes(t, fs, func(fs *FS) string { return strings.Join(must(fs.List("/")), " ") })
	for _, want := range []string{"f", "g", "f g", "g h", "f g h"} {
		if got[want] == 0 {
			t.Errorf("no seed of 400 leaves %q; there are %v", want, got)
		}
	}
	if got["h"]+got[""]+got["f h"] > 0 {
		t.Errorf("a rename lost the file, or a later name is there without it: %v", got)
	}
	check(t, must(fs.OpenDir("/")).Sync())
	if got := outcomes(t, fs, func(fs *FS) string { return strings.Join(must(fs.List("/")), " ") }); got["g h"] != 400 {
		t.Errorf("after the sync of the folder there are %v", got)
	}
}

func TestFailedSync(t *testing.T) {
	fs, f := folder(t)
	read := func(fs *FS) string {
		b := make([]byte, 2)
		must(must(fs.Open("f")).ReadAt(b, 0))
		return string(b)
	}
	must(f.(*handle).WriteAt([]byte("x"), 0))
	fs.SetHook(func(op Op) error {
		if op.Syncs() {
			return syscall.EIO
		}
		return nil
	})
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the sync says %v", err)
	}
	fs.SetHook(nil)
	must(f.(*handle).WriteAt([]byte("y"), 1))
	check(t, f.Sync())
	if a, b := read(fs), read(fs.Image(LoseAll())); a != "xy" || b != ".y" {
		t.Errorf("after a failed sync and a good one %q is read and %q durable", a, b)
	}
	check(t, f.(*handle).DropCache())
	if got := read(fs); got != ".y" {
		t.Errorf("with the cache dropped %q is read", got)
	}
}

func TestShortWrite(t *testing.T) {
	fs, f := folder(t)
	fs.SetHook(func(op Op) error { return &Short{2, syscall.ENOSPC} })
	if n, err := f.(*handle).WriteAt([]byte("xxxx"), 0); n != 2 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%d bytes, %v", n, err)
	}
	fs.SetHook(func(op Op) error { return &Short{1, nil} })
	if n, err := f.(*handle).Pwritev([][]byte{{'y'}, {'y'}}, 0); n != 1 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	b := make([]byte, 4)
	must(f.ReadAt(b, 0))
	if string(b) != "yx.." {
		t.Errorf("%q", b)
	}
}

func TestDamage(t *testing.T) {
	fs, _ := folder(t)
	image := fs.Image(LoseAll())
	check(t, image.Damage("f", 8190, 2, func(b []byte) { b[1] ^= 1 }))
	for _, c := range []struct {
		fs   *FS
		want string
	}{{fs, ".."}, {image, "./"}, {image.Image(LoseAll()), "./"}} {
		if got := must(io.ReadAll(must(c.fs.Open("f")))); len(got) != 8192 || string(got[8190:]) != c.want {
			t.Errorf("%d bytes that end in %q, want %q", len(got), got[8190:], c.want)
		}
	}
	if image.Damage("nothing", 0, 1, func([]byte) {}) == nil {
		t.Error("a file that is not there was damaged")
	}
}
