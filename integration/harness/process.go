package harness

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const clockTick = 10 * time.Millisecond // USER_HZ is 100 on Linux

// CPUTime is what a process has used, user and system.
func CPUTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	used, err := ProcessCPU(pid)
	if err != nil {
		t.Fatal(err)
	}
	return used
}

// ProcessCPU reads /proc/PID/stat.
func ProcessCPU(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold spaces; utime and stime are the 12th and 13th field after it.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * clockTick, err
}

// FreePort is a TCP port of 127.0.0.1 that nobody listens on.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// ProcessRSS reads the peak and the present resident memory of a process, in bytes.
func ProcessRSS(pid int) (peak, now int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for _, line := range strings.Split(string(text), "\n") {
		name, rest, _ := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if (name != "VmHWM" && name != "VmRSS") || len(fields) == 0 {
			continue
		}
		kib, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return 0, 0, err
		}
		if name == "VmHWM" {
			peak = kib << 10
		} else {
			now = kib << 10
		}
	}
	return peak, now, nil
}

// OpenFiles is how many a process has.
func OpenFiles(t testing.TB, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// LimitMemory puts a process into a control group of its own with so much memory, of either version, until the test
// ends. It says where; "" if there is no such hierarchy to write to, as in a container.
func LimitMemory(t testing.TB, pid int, bytes int64) (group string) {
	t.Helper()
	name := fmt.Sprintf("lunar-test-%d", pid)
	group, file := filepath.Join("/sys/fs/cgroup/memory", name), "memory.limit_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		group, file = filepath.Join("/sys/fs/cgroup", name), "memory.max"
		os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory"), 0o644)
	}
	if err := os.Mkdir(group, 0o755); err != nil {
		return ""
	}
	t.Cleanup(func() { os.Remove(group) })
	for _, x := range [][2]string{{file, fmt.Sprint(bytes)}, {"cgroup.procs", fmt.Sprint(pid)}} {
		if err := os.WriteFile(filepath.Join(group, x[0]), []byte(x[1]), 0o644); err != nil {
			return ""
		}
	}
	return group
}

// Inject makes system calls of a running process slow or fail until stop is called, as strace's -e inject= has it,
// e.g. "fdatasync:error=EIO:when=2". It returns when the process is being watched.
func Inject(t testing.TB, pid int, what ...string) (stop func()) {
	t.Helper()
	args := []string{"strace", "-f", "-qq", "-p", strconv.Itoa(pid), "-o", "/dev/null"}
	for _, w := range what {
		calls, _, _ := strings.Cut(w, ":")
		args = append(args, "-e", "trace="+calls, "-e", "inject="+w)
	}
	cmd := asRoot(args...)
	var out strings.Builder
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: run `make tools`", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for deadline := time.Now().Add(20 * time.Second); !traced(pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("strace does not watch process %d: %s", pid, out.String())
		}
	}
	stop = sync.OnceFunc(func() {
		cmd.Process.Signal(os.Interrupt)
		<-ended
	})
	t.Cleanup(stop)
	return stop
}

// traced says whether every thread of a process has a tracer.
func traced(pid int) bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, path := range tasks {
		text, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(text), "TracerPid:\t0\n") {
			return false
		}
	}
	return len(tasks) > 0
}
