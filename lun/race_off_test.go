//go:build !race

package lun

const raceEnabled = false
