package guest

import (
	"os"
	"testing"

	"lunar/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Run(m, RemoveImages)) }

func TestGuestBoots(t *testing.T) {
	g := Boot(t, Options{})
	t.Logf("up in %v: %s", g.BootTime, g.Run("uname -r; load xfs; cut -d' ' -f1 </proc/modules | tr '\\n' ' '"))
	if _, status, err := g.Try("false"); err != nil || status != 1 {
		t.Fatalf("status of false: %d, %v", status, err)
	}
}
