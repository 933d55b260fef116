//go:build race

package segment

// crashStride thins out the crash points: the race detector makes the memory
// file system ten times slower, and finds no more at each of them.
const crashStride = 4
