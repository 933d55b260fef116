package lun

import (
	"testing"
	"time"
)

func TestBackupPause(t *testing.T) {
	for _, c := range []struct {
		much       bool
		took, want time.Duration
	}{
		{false, time.Millisecond, 10 * time.Second},
		{true, time.Millisecond, time.Second},
		{true, 200 * time.Millisecond, 4 * time.Second},
		{true, time.Minute, 10 * time.Second},
	} {
		if got := backupPause(10*time.Minute, c.much, c.took); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
