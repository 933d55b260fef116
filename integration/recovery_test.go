package integration

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"lunar/integration/harness"
)

// TestRecoveryTime: so much is written to a LUN, kill -9, and the server is ready again in under 2 s: what is replayed is what was
// written since the last checkpoint, at most some 2 GiB. In the long form 1 and 16 GiB; lun's TestOpenAfterKill has larger pools.
func TestRecoveryTime(t *testing.T) {
	sizes := []int64{gib / 4}
	if harness.Long() {
		sizes = []int64{gib, 16 * gib}
	}
	for _, size := range sizes {
		t.Run(fmt.Sprintf("%dMiB", size/mib), func(t *testing.T) {
			s := harness.Start(t, "--capacity", "24G")
			s.Lunar("lun", "create", "d", fmt.Sprint(size))
			c := s.Dial("d")
			mapAll(t, c, size)
			random, p := rand.New(rand.NewPCG(1, 1)), make([]byte, 4096)
			last := int64(0)
			for i := range uint64(20_000) {
				last = random.Int64N(size/4096) * 4096
				fill(p, i)
				if err := c.Write(p, last, false); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
			s.Kill()
			began := time.Now()
			s.Start()
			took := time.Since(began)
			t.Logf("%d MiB written, kill -9: ready again after %v", size/mib, took.Round(time.Millisecond))
			if took > harness.Within(2*time.Second) {
				t.Errorf("the start took %v", took)
			}
			got := make([]byte, 4096)
			if err := s.Dial("d").Read(got, last); err != nil || string(got) != string(p) {
				t.Errorf("the last write is not there (%v)", err)
			}
		})
	}
}
