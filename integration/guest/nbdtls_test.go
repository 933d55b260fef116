package guest

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lunar/integration/harness"
)

// TestNbdClientTLS: the real nbd-client attaches over TLS with a client certificate, by the command line that `lunar tls
// init` prints, to a LUN that is there for that certificate only; its kernel makes a file system and finds it again.
func TestNbdClientTLS(t *testing.T) {
	t.Parallel()
	top := harness.TempDir(t)
	dir := filepath.Join(top, "tls")
	made := harness.Command(t, top, nil, nil, "tls", "init", dir, "--client", "guest", "--client", "other")
	if made.Status != 0 {
		t.Fatalf("lunar tls init: %s", made.Stderr)
	}
	s := harness.Start(t, "--capacity", "4G", "--listen", "tcp://127.0.0.1:0", "--tls", "required", "--tls-dir", dir, "--tls-client-certs", "required")
	s.Lunar("lun", "create", "disk", "64M", "--allow", "cn=guest")
	files := map[string]string{}
	for _, client := range []string{"guest", "other"} {
		for _, name := range []string{"ca-cert.pem", "client-cert.pem", "client-key.pem"} {
			path := filepath.Join(dir, "clients", client, name)
			if _, err := os.Stat(path); err != nil {
				t.Fatal(err)
			}
			files[path] = path // at the same place, so that the printed line holds
		}
	}
	attach := ""
	for _, line := range strings.Split(made.Stdout, "\n") {
		if strings.HasPrefix(line, "nbd-client ") {
			attach = line
		}
	}
	_, port, err := net.SplitHostPort(s.TCP())
	if err != nil {
		t.Fatal(err)
	}
	// The guest reaches this host by another name than its certificate has.
	attach = strings.NewReplacer("nbd-client localhost 10809", "nbd-client "+HostAddress+" "+port, "-name NAME", "-name disk").Replace(attach)
	if !strings.Contains(attach, HostAddress) || !strings.Contains(attach, "-name disk") {
		t.Fatalf("no command line of nbd-client in:\n%s", made.Stdout)
	}
	g := Boot(t, Options{Files: files})
	g.Run(attach + "; mkfs.ext4 -q -F /dev/nbd0; mount /dev/nbd0 /mnt; dd if=/bin/busybox of=/mnt/a bs=64k 2>/dev/null; umount /mnt")
	if out := s.Lunar("client", "list", "-o", "json"); !strings.Contains(out, `"tls": true`) && !strings.Contains(out, `"tls":true`) {
		t.Errorf("client list: %s", out)
	}
	g.Run("nbd-client -d /dev/nbd0")
	g.Run(attach + "; mount -o ro /dev/nbd0 /mnt; cmp /mnt/a /bin/busybox; umount /mnt; e2fsck -fn /dev/nbd0; nbd-client -d /dev/nbd0")
	if out, status, err := g.Try(strings.ReplaceAll(attach, "/clients/guest/", "/clients/other/")); err == nil && status == 0 {
		t.Errorf("another client's certificate attaches: %s", out)
	}
}
