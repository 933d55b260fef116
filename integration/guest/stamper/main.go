// Command stamper runs in a guest. It writes increasing numbers to several block devices, always in the order in which
// they are named: a number goes to a device only when the device before it has answered. A database does the same
// with its log and its tables. Writes go around the page cache, and are flushed every 16th round.
package main

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"lunar/integration/checker"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "stamper:", err)
		os.Exit(1)
	}
}

func run(names []string) error {
	var devices []*os.File
	for _, name := range names {
		f, err := os.OpenFile(name, os.O_WRONLY|syscall.O_DIRECT, 0)
		if err != nil {
			return err
		}
		devices = append(devices, f)
	}
	block := aligned()
	for n := uint64(1); ; n++ {
		for _, f := range devices {
			at := n % checker.RingBlocks
			checker.Stamp(block, at, n, 0)
			if _, err := f.WriteAt(block, int64(at)*checker.BlockSize); err != nil {
				return err
			}
			if n%16 == 0 {
				if err := f.Sync(); err != nil {
					return err
				}
			}
		}
	}
}

// aligned is a block as O_DIRECT wants it.
func aligned() []byte {
	raw := make([]byte, 2*checker.BlockSize)
	skip := -uintptr(unsafe.Pointer(&raw[0])) % checker.BlockSize
	return raw[skip : skip+checker.BlockSize]
}
