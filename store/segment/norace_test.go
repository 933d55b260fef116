//go:build !race

package segment

const crashStride = 1
