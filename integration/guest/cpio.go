package guest

import (
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"strings"
)

// File types of a cpio entry.
const (
	modeDir     = 0o040000
	modeFile    = 0o100000
	modeSymlink = 0o120000
	modeChar    = 0o020000
)

// archive is an initramfs under construction: path (without a leading slash) to entry.
type archive map[string]entry

type entry struct {
	mode         uint32
	data         []byte
	major, minor int // of a device
}

func (a archive) file(name string, mode uint32, data []byte) {
	a[strings.TrimPrefix(name, "/")] = entry{mode: modeFile | mode, data: data}
}

func (a archive) copy(name, from string, mode uint32) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	a.file(name, mode, data)
	return nil
}

func (a archive) symlink(name, target string) {
	a[strings.TrimPrefix(name, "/")] = entry{mode: modeSymlink | 0o777, data: []byte(target)}
}

func (a archive) dir(name string) {
	a[strings.TrimPrefix(name, "/")] = entry{mode: modeDir | 0o755}
}

func (a archive) device(name string, major, minor int) {
	a[name] = entry{mode: modeChar | 0o600, major: major, minor: minor}
}

// write writes the archive in the "newc" format that the kernel unpacks, parents before their children.
func (a archive) write(w io.Writer) error {
	for name := range a {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := a[dir]; !ok {
				a.dir(dir)
			}
		}
	}
	names := make([]string, 0, len(a))
	for name := range a {
		names = append(names, name)
	}
	sort.Strings(names)
	out := &padded{w: w}
	for i, name := range names {
		out.entry(i+1, name, a[name])
	}
	out.entry(0, "TRAILER!!!", entry{})
	out.align(512)
	return out.err
}

// padded writes entries, each part aligned to 4 bytes.
type padded struct {
	w   io.Writer
	n   int64
	err error
}

func (p *padded) entry(inode int, name string, e entry) {
	p.bytes([]byte(fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		inode, e.mode, 0, 0, 1, 0, len(e.data), 0, 0, e.major, e.minor, len(name)+1, 0)))
	p.bytes(append([]byte(name), 0))
	p.align(4)
	p.bytes(e.data)
	p.align(4)
}

func (p *padded) bytes(b []byte) {
	if p.err == nil {
		var n int
		n, p.err = p.w.Write(b)
		p.n += int64(n)
	}
}

func (p *padded) align(to int64) {
	if rest := p.n % to; rest != 0 {
		p.bytes(make([]byte, to-rest))
	}
}
