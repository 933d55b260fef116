package guest

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"lunar/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Run(m, RemoveImages)) }

func TestGuestBoots(t *testing.T) {
	g := Boot(t, Options{Files: map[string]string{"bin/lunar": harness.Binary(t)}})
	t.Logf("up in %v: %s", g.BootTime, g.Run("uname -r; load xfs; cut -d' ' -f1 </proc/modules | tr '\\n' ' '"))
	if _, status, err := g.Try("false"); err != nil || status != 1 {
		t.Fatalf("status of false: %d, %v", status, err)
	}
	testClock(t, g)
}

// testClock: the guest's clock is set three days forward and back. The server goes on, a snapshot whose time to live seems to have
// ended stays, and an event says why.
func testClock(t *testing.T, g *Guest) {
	g.Run(`mount -t tmpfs none /pool; export LUNAR_DATA=/pool/data
lunar serve --data /pool/data --capacity 128M >/run/ready 2>/dev/console &
i=0; until grep -q ^ready /run/ready; do i=$((i+1)); [ $i -lt 600 ]; sleep 0.1; done
lunar lun create d 16M; lunar snapshot create d@day --ttl 1d; lunar snapshot create d@plain`)
	const lunar = "export LUNAR_DATA=/pool/data; "
	g.Run(lunar + "date -s @$(($(date +%s)+259200))")
	said := ""
	for deadline := time.Now().Add(2 * time.Minute); said == ""; time.Sleep(500 * time.Millisecond) {
		if said = g.Run(lunar + "lunar events -o json | grep '\"clock\"' || true"); time.Now().After(deadline) {
			t.Fatalf("no event says that the clock was set\n%s", g.Run(lunar+"lunar events"))
		}
	}
	for i, set := range []string{"-259200", "-259200", "+259200"} {
		g.Run(lunar + fmt.Sprintf("date -s @$(($(date +%%s)%s)); lunar snapshot create d@at%d", set, i))
	}
	if list := g.Run(lunar + "lunar snapshot list d"); !strings.Contains(list, "day") || !strings.Contains(list, "plain") {
		t.Errorf("after the clock was set forward and back these snapshots are left:\n%s", list)
	}
	t.Logf("%s", strings.TrimSpace(said))
	g.Run(lunar + "lunar pool check")
}
