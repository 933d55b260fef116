package index

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestDiskBytes: what the index says that it takes is what it takes, the logs that are allocated ahead included.
func TestDiskBytes(t *testing.T) {
	noLeaks(t)
	dir := filepath.Join(t.TempDir(), "index")
	x := openTest(t, Options{FS: vfs.Default, Dir: dir, MemTableBytes: 2 << 20})
	for round := range byte(5) {
		if err := writeRound(x, round+1); err != nil {
			t.Fatal(err)
		}
		if err := x.Flush(); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		var onDisk int64
		for _, name := range files {
			var st syscall.Stat_t
			if err := syscall.Lstat(name, &st); err != nil {
				continue // removed meanwhile
			}
			onDisk += st.Blocks * 512
		}
		// A log may not be allocated before its first write, and blocks are rounded up.
		if says := int64(x.DiskBytes()); says < onDisk-256<<10 || says > onDisk+x.opts.logBytes()+256<<10 {
			t.Errorf("round %d: the index takes %d bytes of the disk and says %d", round, onDisk, says)
		}
	}
}
