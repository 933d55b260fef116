package checker

import (
	"fmt"

	"lunar/integration/client"
)

// RingBlocks is how many blocks of a device a writer of increasing numbers goes round: number n is in block n % RingBlocks.
const RingBlocks = 64

// Newest reads such a device. It returns the newest number on it, 0 for none, having made sure that all that it
// must still hold of the numbers before is there.
func Newest(c *client.Conn) (uint64, error) {
	p := make([]byte, RingBlocks*BlockSize)
	if err := c.Read(p, 0); err != nil {
		return 0, err
	}
	var held [RingBlocks]uint64
	newest := uint64(0)
	for i := range held {
		r, err := decode(p[i*BlockSize:(i+1)*BlockSize], uint64(i))
		if err != nil {
			return 0, err
		}
		held[i] = r.gen
		newest = max(newest, r.gen)
	}
	for n := newest; n > 0 && n+RingBlocks > newest; n-- {
		if got := held[n%RingBlocks]; got != n {
			return 0, fmt.Errorf("number %d is there and %d is not: block %d holds %d", newest, n, n%RingBlocks, got)
		}
	}
	return newest, nil
}
