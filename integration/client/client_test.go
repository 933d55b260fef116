package client

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestAgainstNbdkit: the client is right about the protocol, as an independent server sees it.
func TestAgainstNbdkit(t *testing.T) {
	dir, err := os.MkdirTemp("", "lc")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("nbdkit", "-f", "-U", socket, "memory", "16M")
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: run `make tools`", err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nbdkit does not listen")
		}
	}
	c, err := Dial("unix", socket, "any")
	if err != nil {
		t.Fatal(err)
	}
	if c.Size != 16<<20 || c.Flags&(FlagFlush|FlagFUA|FlagTrim|FlagZeroes|FlagMultiConn) != FlagFlush|FlagFUA|FlagTrim|FlagZeroes|FlagMultiConn || c.Flags&FlagReadOnly != 0 {
		t.Errorf("size %d, flags %#x", c.Size, c.Flags)
	}
	var calls sync.WaitGroup
	for i := range 64 {
		calls.Go(func() {
			p := bytes.Repeat([]byte{byte(i + 1)}, 4096)
			if err := c.Write(p, int64(i)*4096, i%2 == 0); err != nil {
				t.Error(err)
			}
			q := make([]byte, 4096)
			if err := c.Read(q, int64(i)*4096); err != nil || !bytes.Equal(p, q) {
				t.Errorf("block %d reads back wrong: %v", i, err)
			}
		})
	}
	calls.Wait()
	p := make([]byte, 8192)
	if err := errors.Join(c.Trim(4096, 4096, false), c.Zero(8192, 4096, true, true), c.Flush(), c.Read(p, 4096)); err != nil || !bytes.Equal(p, make([]byte, 8192)) {
		t.Errorf("after trim and zero: %v", err)
	}
	if err := c.Read(p, 16<<20); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a read beyond the end: %v, want EINVAL", err)
	}
	if err := c.Read(p, 0); err != nil {
		t.Errorf("after a refused request: %v", err)
	}
	cmd.Process.Kill()
	if err := c.Flush(); !errors.Is(err, ErrClosed) {
		t.Errorf("after the server was killed: %v, want %v", err, ErrClosed)
	}
}
