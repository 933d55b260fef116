package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lunar/integration/harness"
)

const (
	bootTimeout = 90 * time.Second
	shellPort   = 7000
	// HostAddress is where the guest finds the host's 127.0.0.1.
	HostAddress = "10.0.2.2"
)

// Options say what a guest is given.
type Options struct {
	Files   map[string]string // path in the guest to path here, executable
	Disks   []string          // raw images, /dev/vda and on
	Forward []int             // guest TCP ports that the host wants to reach
	Qemu    []string          // more arguments of qemu
	Append  string            // more words of the kernel's command line; lunar.root=/dev/vda boots from that disk
}

// Guest is a running virtual machine.
type Guest struct {
	BootTime time.Duration

	t       testing.TB
	cmd     *exec.Cmd
	done    chan struct{}
	console *console
	ports   map[int]int // guest port to host port
}

// console collects the serial console.
type console struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// initramfs images are built once for each set of files.
var images struct {
	sync.Mutex
	dir  string
	path map[string]string
}

func initramfs(files map[string]string) (string, error) {
	images.Lock()
	defer images.Unlock()
	key := fmt.Sprint(files)
	if path, ok := images.path[key]; ok {
		return path, nil
	}
	if images.dir == "" {
		dir, err := os.MkdirTemp("", "lunar-guest")
		if err != nil {
			return "", err
		}
		images.dir, images.path = dir, map[string]string{}
	}
	path := filepath.Join(images.dir, fmt.Sprintf("initramfs-%d", len(images.path)))
	if err := buildInitramfs(path, files); err != nil {
		return "", err
	}
	images.path[key] = path
	return path, nil
}

// RemoveImages removes what was built for the guests of this process.
func RemoveImages() {
	if images.dir != "" {
		os.RemoveAll(images.dir)
	}
}

// Boot starts a guest and waits until commands can run in it. It is killed at the end of the test.
func Boot(t testing.TB, o Options) *Guest {
	t.Helper()
	image, _, err := kernel()
	if err != nil {
		t.Fatal(err)
	}
	initrd, err := initramfs(o.Files)
	if err != nil {
		t.Fatal(err)
	}
	g := &Guest{t: t, console: &console{}, done: make(chan struct{}), ports: map[int]int{}}
	network := "user,model=virtio-net-pci"
	for _, port := range append([]int{shellPort}, o.Forward...) {
		g.ports[port] = harness.FreePort(t)
		network += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", g.ports[port], port)
	}
	args := []string{"-accel", accelerator(), "-cpu", "max", "-smp", "1", "-m", "512", "-no-reboot", "-nodefaults", "-display", "none", "-serial", "stdio",
		"-kernel", image, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable random.trust_cpu=on " + o.Append, "-nic", network}
	args = append(args, o.Qemu...)
	for _, disk := range o.Disks {
		// writeback: what the guest's kernel has written stays in the host's page cache, which outlives qemu, and the
		// guest's flushes reach the host's disk. The guest's own page cache is what a power cut takes.
		args = append(args, "-drive", "file="+disk+",format=raw,if=virtio,cache=writeback,discard=unmap")
	}
	g.cmd = exec.Command("qemu-system-x86_64", args...)
	g.cmd.Stdout, g.cmd.Stderr = g.console, g.console
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	if err := g.cmd.Start(); err != nil {
		t.Fatalf("%v: run `make tools`", err)
	}
	go func() {
		g.cmd.Wait()
		close(g.done)
	}()
	t.Cleanup(func() {
		g.PowerCut()
		if t.Failed() {
			t.Logf("--- serial console:\n%s", g.Console())
		}
	})
	if err := g.waitReady(); err != nil {
		t.Fatalf("%v\n%s", err, g.Console())
	}
	g.BootTime = time.Since(began)
	return g
}

// accelerator is software emulation unless GUEST_ACCEL says otherwise: CI machines have no /dev/kvm.
func accelerator() string {
	if accel := os.Getenv("GUEST_ACCEL"); accel != "" {
		return accel
	}
	return "tcg"
}

func (g *Guest) waitReady() error {
	for deadline := time.Now().Add(bootTimeout); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if !g.Running() {
			return errors.New("qemu ended before the guest was up")
		}
		if !strings.Contains(g.Console(), "GUEST-READY") {
			continue
		}
		if _, code, err := g.Try("true"); err == nil && code == 0 {
			return nil
		}
	}
	return fmt.Errorf("the guest was not up after %v", bootTimeout)
}

// Running says whether qemu is there.
func (g *Guest) Running() bool {
	select {
	case <-g.done:
		return false
	default:
		return true
	}
}

// Console is all that came over the serial line.
func (g *Guest) Console() string { return g.console.String() }

// Address is where the host reaches a forwarded port of the guest.
func (g *Guest) Address(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(g.ports[port]))
}

// PowerCut kills qemu with SIGKILL: the guest's memory and its page cache are gone.
func (g *Guest) PowerCut() {
	g.cmd.Process.Kill()
	<-g.done
}

var exitLine = regexp.MustCompile(`(?s)^(.*?)\n?exit-status=(\d+)\n$`)

// Try runs a shell script in the guest and returns what it printed and its exit status.
func (g *Guest) Try(script string) (out string, status int, err error) {
	conn, err := net.DialTimeout("tcp", g.Address(shellPort), 10*time.Second)
	if err != nil {
		return "", 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Minute))
	if _, err := fmt.Fprintf(conn, "(\n%s\n) </dev/null 2>&1; s=$?; echo; echo exit-status=$s; exit\n", script); err != nil {
		return "", 0, err
	}
	text, err := io.ReadAll(conn)
	match := exitLine.FindStringSubmatch(string(text))
	if match == nil {
		return string(text), 0, errors.Join(errors.New("the guest's shell was cut off"), err)
	}
	status, _ = strconv.Atoi(match[2])
	return match[1], status, nil
}

// Run runs a script that must succeed; it stops at the first command that fails.
func (g *Guest) Run(script string) string {
	g.t.Helper()
	began := time.Now()
	out, status, err := g.Try("set -e\n" + script)
	if os.Getenv("GUEST_TRACE") != "" {
		g.t.Logf("%v: %s", time.Since(began).Round(time.Millisecond), script)
	}
	if err != nil || status != 0 {
		g.t.Fatalf("in the guest: %s\nstatus %d, %v\n%s", script, status, err, out)
	}
	return out
}
