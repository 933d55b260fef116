package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// SmallFS is a file system of its own in a loop-mounted image, so that it can be filled without harm.
type SmallFS struct {
	Kind string // ext4 or xfs
	Dir  string // where it is mounted
	t    testing.TB
}

const smallPrefix = "lunarfs-" // then the process that mounted it, then a number

var sweepOnce sync.Once

// Small makes a file system, mounts it, and takes it away at the end of the test, whatever comes of it. The image has no
// name any more once it is mounted: with the mount, all of it is gone. Mounting needs root, or sudo without a password.
func Small(t testing.TB, kind string, size int64) *SmallFS {
	t.Helper()
	Need(t, "mkfs."+kind, "mount", "umount")
	sweepOnce.Do(sweepSmall)
	dir, err := os.MkdirTemp("", smallPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		t.Fatal(err)
	}
	fs := &SmallFS{Kind: kind, Dir: dir, t: t}
	t.Cleanup(fs.remove)
	image := dir + ".img"
	defer os.Remove(image)
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	mkfs := map[string][]string{"ext4": {"mkfs.ext4", "-q", "-F", "-m", "0", image}, "xfs": {"mkfs.xfs", "-q", image}}[kind]
	Tool(t, mkfs[0], mkfs[1:]...)
	if out, err := asRoot("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Fatalf("mounting a file system of %d bytes: %v: %s\nThese tests mount loop devices: run them as root, or where sudo asks for no password", size, err, out)
	}
	if os.Getuid() != 0 {
		if out, err := asRoot("chown", strconv.Itoa(os.Getuid()), dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	return fs
}

func asRoot(args ...string) *exec.Cmd {
	if os.Getuid() != 0 {
		args = append([]string{"sudo", "-n"}, args...)
	}
	return exec.Command(args[0], args[1:]...)
}

// remove unmounts; a process that the test killed may hold the file system for a moment.
func (fs *SmallFS) remove() {
	var out []byte
	var err error
	for range 50 {
		if !mounted(fs.Dir) {
			os.Remove(fs.Dir)
			return
		}
		if out, err = asRoot("umount", fs.Dir).CombinedOutput(); err != nil {
			time.Sleep(100 * time.Millisecond)
		}
	}
	asRoot("umount", "-l", fs.Dir).Run()
	os.Remove(fs.Dir)
	fs.t.Errorf("umount %s: %v: %s", fs.Dir, err, out)
}

func mounted(dir string) bool {
	text, err := os.ReadFile("/proc/self/mounts")
	return err == nil && strings.Contains(string(text), " "+dir+" ")
}

// sweepSmall takes away what a test run that was killed has left mounted.
func sweepSmall() {
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), smallPrefix+"*-*"))
	for _, dir := range left {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), smallPrefix), "-")
		if n, err := strconv.Atoi(pid); err != nil || syscall.Kill(n, 0) != syscall.ESRCH {
			continue
		}
		asRoot("umount", "-l", dir).Run()
		os.Remove(dir)
	}
}

// Usage is what the file system has and what is left of it for ordinary users, in bytes.
func (fs *SmallFS) Usage() (used, free int64) {
	fs.t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(fs.Dir, &st); err != nil {
		fs.t.Fatal(err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize, int64(st.Bavail) * st.Bsize
}

// Serve starts a server with a new pool on the file system. Its NBD socket is elsewhere: sockets are not what fills it.
func (fs *SmallFS) Serve(args ...string) *Server {
	fs.t.Helper()
	s := New(fs.t, filepath.Join(fs.Dir, "pool"), filepath.Join(TempDir(fs.t), "nbd.sock"), args...)
	s.Start()
	return s
}

// Eat is a foreign program: it takes n bytes of the file system with a file that TakeBack removes. Where n is more than
// there is, it takes all, to the last block.
func (fs *SmallFS) Eat(n int64) (taken int64) {
	fs.t.Helper()
	name := filepath.Join(fs.Dir, fmt.Sprintf("foreign-%d", time.Now().UnixNano()))
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		fs.t.Fatal(err)
	}
	defer f.Close()
	// Large pieces first, then ever smaller ones as they do not fit any more.
	for piece := int64(64 << 20); piece >= 4096; {
		if taken >= n {
			return taken
		}
		piece = min(piece, max((n-taken)&^4095, 4096))
		err := syscall.Fallocate(int(f.Fd()), 0, taken, piece)
		switch err {
		case nil:
			taken += piece
		case syscall.EINTR:
		case syscall.ENOSPC:
			piece /= 2
			piece &^= 4095
		default:
			fs.t.Fatalf("taking space of the file system: %v", err)
		}
	}
	return taken
}

// TakeBack removes all that Eat took, and returns when it is free again: file systems free large files in the background.
func (fs *SmallFS) TakeBack() {
	fs.t.Helper()
	files, err := filepath.Glob(filepath.Join(fs.Dir, "foreign-*"))
	if err != nil {
		fs.t.Fatal(err)
	}
	_, least := fs.Usage()
	for _, name := range files {
		if info, err := os.Stat(name); err == nil {
			least += info.Size() * 9 / 10
		}
		if err := os.Remove(name); err != nil {
			fs.t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, free := fs.Usage(); free >= least/10*8 {
			return
		}
	}
	_, free := fs.Usage()
	fs.t.Fatalf("%d MiB are free after foreign files were removed, want %d", free/mib, least/mib)
}

const mib = 1 << 20

// Fail breaks the file system as a damaged disk does: ext4 finds an error in itself and goes read-only, xfs shuts down.
func (fs *SmallFS) Fail() {
	fs.t.Helper()
	if fs.Kind == "xfs" {
		fs.root("xfs_io", "-x", "-c", "shutdown", fs.Dir)
		return
	}
	fs.root("mount", "-o", "remount,errors=remount-ro", fs.Dir)
	fs.root("sh", "-c", "echo 1 >/sys/fs/ext4/"+filepath.Base(fs.device())+"/trigger_fs_error")
}

// Mend unmounts the file system, lets its own tool repair it, and mounts it again. Nobody may use it meanwhile.
func (fs *SmallFS) Mend() {
	fs.t.Helper()
	device := fs.device()
	// The loop device goes with its last user: another one keeps the image, which has no name any more.
	hold, err := os.Open(device)
	if err != nil {
		fs.t.Fatal(err)
	}
	defer hold.Close()
	fs.root("umount", fs.Dir)
	if fs.Kind == "ext4" {
		if out, err := asRoot("e2fsck", "-fy", device).CombinedOutput(); err != nil && err.(*exec.ExitError).ExitCode() > 1 {
			fs.t.Fatalf("e2fsck: %v: %s", err, out)
		}
	}
	fs.root("mount", device, fs.Dir)
}

// device is the loop device that is mounted.
func (fs *SmallFS) device() string {
	fs.t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	before, _, found := strings.Cut(string(text), " "+fs.Dir+" ")
	if err != nil || !found {
		fs.t.Fatalf("%s is not mounted (%v)", fs.Dir, err)
	}
	return before[strings.LastIndexByte(before, '\n')+1:]
}

func (fs *SmallFS) root(args ...string) {
	fs.t.Helper()
	if out, err := asRoot(args...).CombinedOutput(); err != nil {
		fs.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}
