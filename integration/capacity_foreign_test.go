package integration

import (
	"fmt"
	"testing"
	"time"

	"lunar/integration/harness"
)

// TestForeignPreallocated: another program takes all that the file system has left. With `preallocate` the pool starts on the
// full file system, a thick LUN is written to its last byte, and a thin one goes on.
func TestForeignPreallocated(t *testing.T) {
	harness.Need(t, "fio")
	onSmall(t, func(t *testing.T, fs *harness.SmallFS) {
		const thick = 192 * mib
		s := fs.Serve("--preallocate")
		s.Lunar("lun", "create", "thick", fmt.Sprint(thick), "--thick", "--reserve", "0")
		s.Lunar("lun", "create", "thin", "8G")
		for deadline := time.Now().Add(30 * time.Second); len(events(t, s, "is preallocated")) == 0; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the pool is not preallocated after 30 s\n%s", s.Log())
			}
		}
		offered := s.Pool().FreeBytes
		eaten := fs.Eat(smallSize)
		if eaten > smallSize/8 {
			t.Fatalf("a foreign program could take %d MiB beside a pool with preallocate", eaten/mib)
		}
		s.Restart()
		if err := fioVerify(s, "thick", thick, 1); err != nil {
			t.Fatalf("a thick LUN: %v\n%s", err, s.Log())
		}
		thin := s.Dial("thin")
		most := offered / 2
		if harness.Long() {
			most = 8 * gib
		}
		written := fillUp(t, thin, 0, most, 1)
		t.Logf("a foreign program took %d MiB; of %d MiB offered, %d were written", eaten/mib, offered/mib, written/mib)
		if min(offered, most)-written > 64*mib {
			t.Errorf("ENOSPC after %d of %d MiB", written/mib, offered/mib)
		}
		checkFilled(t, thin, 0, written, 1)
		thin.Disconnect()
		s.Restart() // with what the ballast keeps for the index
		if n := len(events(t, s, "is preallocated")); n > 1 {
			t.Errorf("%d events say that the capacity is preallocated", n)
		}
		if err := fioVerify(s, "thick", thick, 2); err != nil {
			t.Fatalf("a thick LUN after a start with everything full: %v\n%s", err, s.Log())
		}
		checkFilled(t, s.Dial("thin"), 0, written, 1)
	})
}

// TestForeign: without `preallocate` another program can take what was promised. The server says so, writers wait, and all
// of them are served once the space is back.
func TestForeign(t *testing.T) {
	onSmall(t, func(t *testing.T, fs *harness.SmallFS) {
		const size, left = 512 * mib, 96 * mib
		s := fs.Serve()
		s.Lunar("lun", "create", "d", fmt.Sprint(size), "--thick", "--reserve", "0")
		c := s.Dial("d")
		fillUp(t, c, 0, 16*mib, 1)
		_, free := fs.Usage()
		fs.Eat(free - left)
		var said []string
		for deadline := time.Now().Add(30 * time.Second); len(said) == 0; time.Sleep(50 * time.Millisecond) {
			if said = events(t, s, "file system"); time.Now().After(deadline) {
				t.Fatalf("no event says that the file system is fuller than promised\n%s", s.Log())
			}
		}
		wrote := make(chan error, 1)
		progress := make(chan int64, size/mib)
		var at []time.Time // of each MiB
		go func() {
			p := make([]byte, mib)
			for off := int64(0); off < size; off += mib {
				fill(p, uint64(off)+2)
				if err := c.Write(p, off, false); err != nil {
					wrote <- fmt.Errorf("at %d MiB: %w", off/mib, err)
					return
				}
				progress <- off
			}
			wrote <- c.Flush()
		}()
		// Until nothing comes any more.
		reached := int64(0)
		for idle := false; !idle; {
			select {
			case reached = <-progress:
				at = append(at, time.Now())
			case err := <-wrote:
				t.Fatalf("a writer that lacks space on the file system did not wait: %v\n%s", err, s.Log())
			case <-time.After(4 * time.Second):
				idle = true
			}
		}
		// Writers are slowed down long before the end: what is left is made to last.
		const end = 16
		if len(at) <= 2*end {
			t.Fatalf("%d MiB were written with %d MiB left\n%s", len(at), left/mib, s.Log())
		}
		first, last := at[end].Sub(at[0]), at[len(at)-1].Sub(at[len(at)-1-end])
		t.Logf("with %d MiB left, %d MiB were written: the first %d MiB in %v, the last in %v; the server said %q", left/mib, reached/mib, end, first, last, said)
		if last < time.Second {
			t.Errorf("the last %d MiB before the file system was full were written in %v: writers were not slowed down", end, last)
		}
		if check := s.Run("status", "--check"); check.Status != 1 && check.Status != 2 {
			t.Errorf("status --check: %d while the file system is full\n%s", check.Status, check.Stdout)
		}
		checkFilled(t, s.Dial("d"), 0, reached, 2)
		fs.TakeBack()
		if err := <-wrote; err != nil {
			t.Errorf("the space is back, and a writer that waited got %v\n%s", err, s.Log())
		}
		checkFilled(t, c, 0, size, 2)
	})
}
