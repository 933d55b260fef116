// Package guest boots a real Linux in qemu, with nothing but an initramfs that it builds itself from what Debian
// installs here: the cloud kernel, its modules, busybox, nbd-client and the tools of ext4 and xfs. Commands run in it
// through a socket, and killing qemu is the power cut.
package guest

import (
	"bufio"
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

//go:embed init.sh
var initScript []byte

//go:embed load.sh
var loadScript []byte

// modules are loaded in this order, each after what it depends on: "boot" by init, the others when a test asks, since
// xfs alone takes more than a second here. What the kernel has built in (ext4) is left out.
var modules = map[string][]string{
	"boot": {"virtio_pci", "virtio_blk", "virtio_net", "nbd"},
	"xfs":  {"crc32c_generic", "xfs"},
}

// programs are copied with their libraries.
var programs = []string{"nbd-client", "mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_repair"}

// kernel is a kernel that is installed here and its version.
func kernel() (image, version string, err error) {
	images, _ := filepath.Glob("/boot/vmlinuz-*-cloud-amd64")
	if len(images) == 0 {
		return "", "", errors.New("no /boot/vmlinuz-*-cloud-amd64: run `make tools`")
	}
	sort.Strings(images)
	image = images[len(images)-1]
	return image, strings.TrimPrefix(filepath.Base(image), "vmlinuz-"), nil
}

// buildInitramfs writes an initramfs with some more files in it (path in the guest to path here).
func buildInitramfs(to string, extra map[string]string) error {
	_, version, err := kernel()
	if err != nil {
		return err
	}
	a := archive{}
	a.device("dev/console", 5, 1)
	for _, dir := range []string{"proc", "sys", "tmp", "mnt", "pool", "etc", "run"} {
		a.dir(dir)
	}
	a.symlink("etc/mtab", "/proc/mounts")
	a.file("init", 0o755, initScript)
	a.file("bin/load", 0o755, loadScript)
	if err := a.copy("bin/busybox", "/bin/busybox", 0o755); err != nil {
		return fmt.Errorf("%w: run `make tools` (busybox-static)", err)
	}
	a.symlink("bin/sh", "busybox")
	if err := addModules(a, version); err != nil {
		return err
	}
	for _, program := range programs {
		if err := addProgram(a, program); err != nil {
			return err
		}
	}
	for name, from := range extra {
		if err := a.copy(name, from, 0o755); err != nil {
			return err
		}
	}
	var b bytes.Buffer
	if err := a.write(&b); err != nil {
		return err
	}
	return os.WriteFile(to, b.Bytes(), 0o644)
}

// addModules adds the modules and, for each group, the list in which they are loaded.
func addModules(a archive, version string) error {
	top := filepath.Join("/lib/modules", version)
	depends, err := moduleTable(filepath.Join(top, "modules.dep"))
	if err != nil {
		return err
	}
	var order []string
	var add func(path string) error
	add = func(path string) error {
		name := filepath.Base(path)
		if slices.Contains(order, name) {
			return nil
		}
		for _, needed := range depends[path] {
			if err := add(needed); err != nil {
				return err
			}
		}
		order = append(order, name)
		return a.copy("modules/"+name, filepath.Join(top, path), 0o644)
	}
	for group, names := range modules {
		order = nil
		for _, name := range names {
			for path := range depends {
				if filepath.Base(path) != name+".ko" {
					continue
				}
				if err := add(path); err != nil {
					return err
				}
			}
		}
		a.file("modules/order."+group, 0o644, []byte(strings.Join(order, "\n")+"\n"))
	}
	return nil
}

// moduleTable reads modules.dep: a module's path to those it needs, the nearest first.
func moduleTable(path string) (map[string][]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	table := map[string][]string{}
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		if name, needed, ok := strings.Cut(scanner.Text(), ":"); ok {
			table[name] = strings.Fields(needed)
		}
	}
	return table, scanner.Err()
}

// addProgram adds a program and the libraries that ldd names.
func addProgram(a archive, program string) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return fmt.Errorf("%w: run `make tools`", err)
	}
	if err := a.copy("bin/"+program, path, 0o755); err != nil {
		return err
	}
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", path, err)
	}
	for _, line := range strings.Split(string(out), "\n") {
		for _, word := range strings.Fields(line) {
			if !strings.HasPrefix(word, "/") {
				continue
			}
			if _, ok := a[strings.TrimPrefix(word, "/")]; ok {
				continue
			}
			if err := a.copy(word, word, 0o755); err != nil {
				return err
			}
		}
	}
	return nil
}
