//go:build race

package lun

// raceEnabled scales the model test: under the race detector a run costs about
// ten times as much.
const raceEnabled = true
