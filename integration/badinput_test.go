package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lunar/integration/harness"
)

// state is all that bad input must not change.
func state(s *harness.Server) string {
	var luns []harness.LUN
	var snapshots []harness.Snapshot
	s.JSON(&luns, "lun", "list")
	s.JSON(&snapshots, "snapshot", "list")
	b, _ := json.Marshal(map[string]any{"luns": luns, "snapshots": snapshots})
	return string(b)
}

// TestBadInput: one line that says what and why, exit status 1 (refused) or 2 (not parsable), and nothing has changed.
func TestBadInput(t *testing.T) {
	s := harness.Start(t, "--capacity", "4G")
	s.Lunar("lun", "create", "disk", "64M")
	s.Lunar("lun", "create", "other", "64M", "--thick")
	s.Lunar("snapshot", "create", "disk@one")
	s.Lunar("snapshot", "create", "disk@kept", "--protect")
	long := strings.Repeat("n", 64)
	tests := []struct {
		args string // split at spaces; ~ is an empty argument
		want int    // status, 0 for either 1 or 2
		says string // words, split at commas
	}{
		// unknown
		{"lun show nosuch", 1, "nosuch"},
		{"lun delete nosuch", 1, "nosuch"},
		{"lun resize nosuch 1G", 1, "nosuch"},
		{"lun rename nosuch new", 1, "nosuch"},
		{"lun set nosuch --read-only", 1, "nosuch"},
		{"lun offline nosuch", 1, "nosuch"},
		{"lun export nosuch -", 1, "nosuch"},
		{"snapshot create nosuch", 1, "nosuch"},
		{"snapshot create disk nosuch", 1, "nosuch"}, // all or none
		{"snapshot list nosuch", 1, "nosuch"},
		{"snapshot show disk@nosuch", 1, "nosuch"},
		{"snapshot delete disk@nosuch", 1, "nosuch"},
		{"snapshot delete disk@one disk@nosuch", 1, "nosuch"},
		{"snapshot rename disk@nosuch new", 1, "nosuch"},
		{"rollback disk@nosuch", 1, "nosuch"},
		{"rollback nosuch@one", 1, "nosuch"},
		{"clone nosuch new", 1, "nosuch"},
		{"clone disk@nosuch new", 1, "nosuch"},
		{"diff disk@nosuch", 1, "nosuch"},
		{"reservation show nosuch", 1, "nosuch"},
		{"client disconnect 99999", 1, "99999"},
		// exists
		{"lun create disk 1G", 1, "disk,exists"},
		{"lun rename disk other", 1, "other,exists"},
		{"snapshot create disk@one", 1, "one,exists"},
		{"snapshot create other@a other@a", 0, "a"},
		{"clone disk@one other", 1, "other,exists"},
		// refused
		{"lun delete disk", 1, "snapshot"},
		{"snapshot delete disk@kept", 1, "kept,protect"},
		{"lun create big 8G --thick", 1, "big"},
		{"lun resize disk 32M", 1, "disk,--force"},
		{"lun resize other 100G", 1, "other"},
		// sizes
		{"lun create x 0", 2, "0"},
		{"lun create x -1", 2, ""},
		{"lun create x 1.5G", 2, "1.5G"},
		{"lun create x 10X", 2, "10X"},
		{"lun create x ten", 2, "ten"},
		{"lun create x ~", 2, ""},
		{"lun create x 1G1", 2, "1G1"},
		{"lun create x 513", 0, "513"},
		{"lun create x 2K", 0, "2K"},
		{"lun create x 65T", 0, "65T"},
		{"lun create x 99999999999999999999G", 2, "99999999999999999999G"},
		{"lun resize disk 64M3", 2, "64M3"},
		{"lun resize disk 513", 0, "513"},
		// names
		{"lun create " + long + " 1G", 2, "63"},
		{"lun create ~ 1G", 2, "name"},
		{"lun create .x 1G", 2, ".x"},
		{"lun create a/b 1G", 2, "a/b"},
		{"lun create a@b 1G", 2, "a@b"},
		{"lun create ä 1G", 2, "ä"},
		{"lun rename disk a/b", 2, "a/b"},
		{"snapshot create disk@", 2, "disk@"},
		{"snapshot create disk@a@b", 2, "a@b"},
		{"snapshot create disk@" + long, 2, "63"},
		{"snapshot rename disk@one a/b", 2, "a/b"},
		{"snapshot show disk", 2, "disk"},
		{"snapshot delete disk", 2, "disk"},
		{"rollback disk", 2, "disk"},
		{"clone disk@one b/c", 2, "b/c"},
		// verbs, arguments, flags
		{"nosuchverb", 2, "nosuchverb"},
		{"lun nosuchverb", 2, "nosuchverb"},
		{"lun create x", 2, ""},
		{"lun create x 1G extra", 2, ""},
		{"lun create", 2, ""},
		{"rollback", 2, ""},
		{"lun create x 1G --nosuchflag", 2, "nosuchflag"},
		{"lun list --nosuchflag", 2, "nosuchflag"},
		{"lun list -o nosuchformat", 2, "nosuchformat"},
		{"lun create x 1G --reserve 1001%", 2, "1001%"},
		{"lun create x 1G --reserve -5%", 2, "-5%"},
		{"lun create x 1G --reserve lots", 2, "lots"},
		{"lun create x 1G --limit x%", 2, "x%"},
		{"lun create x 1G --on-full panic", 2, "panic,recycle,freeze"},
		{"lun create x 1G --reserve 50% --limit 10%", 0, "limit"},
		{"reservation set disk --on-full maybe", 2, "maybe"},
		{"reservation set disk --limit none%", 2, "none%"},
		{"snapshot create disk@t --ttl soon", 2, "soon"},
		{"snapshot create disk@t --ttl -3d", 2, "-3d"},
		{"snapshot create disk@t --label novalue", 2, "novalue"},
		{"lun set disk --read-only=perhaps", 2, "perhaps"},
		{"lun set disk --max-snapshots many", 2, "many"},
		{"client disconnect first", 2, "first"},
		{"config check /nonexistent.yaml", 1, "nonexistent.yaml"},
	}
	before := state(s)
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			args := strings.Fields(test.args)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "~", "")
			}
			r := s.Run(args...)
			var want []string
			if test.says != "" {
				want = strings.Split(test.says, ",")
			}
			r.MustRefuse(t, want...)
			if test.want != 0 && r.Status != test.want {
				t.Errorf("status %d, want %d: %s", r.Status, test.want, r.Stderr)
			}
		})
	}
	if after := state(s); after != before {
		t.Errorf("bad input has changed something:\nbefore %s\nafter  %s", before, after)
	}
}

// TestBadServe: a server that cannot serve says why in one line, and leaves what it found.
func TestBadServe(t *testing.T) {
	dir := harness.TempDir(t)
	file := filepath.Join(dir, "file")
	foreign := filepath.Join(dir, "foreign")
	os.WriteFile(file, []byte("not a folder"), 0o644)
	os.Mkdir(foreign, 0o755)
	os.WriteFile(filepath.Join(foreign, "letter.txt"), []byte("dear"), 0o644)
	config := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	free := filepath.Join(dir, "n.sock")
	tests := []struct {
		name string
		args []string
		says []string
	}{
		{"folder is a file", []string{"--data", file, "--listen", "unix://" + free}, []string{file}},
		{"folder of others", []string{"--data", foreign, "--listen", "unix://" + free}, []string{"foreign"}},
		{"parent is a file", []string{"--data", file + "/pool", "--listen", "unix://" + free}, []string{file}},
		{"bad address", []string{"--data", dir + "/p1", "--listen", "udp://127.0.0.1:1"}, []string{"udp"}},
		{"bad port", []string{"--data", dir + "/p2", "--listen", "tcp://127.0.0.1:99999"}, []string{"99999"}},
		{"path too long", []string{"--data", dir + "/p3", "--listen", "unix://" + dir + "/" + strings.Repeat("x", 107)}, []string{"107"}},
		{"bad capacity", []string{"--data", dir + "/p4", "--capacity", "1.5G", "--listen", "unix://" + free}, []string{"1.5G"}},
		{"no configuration", []string{"--data", dir + "/p5", "--config", dir + "/nosuch.yaml"}, []string{"nosuch.yaml"}},
		{"unknown key", []string{"--data", dir + "/p6", "--config", config("k.yaml", "capasity: 1G\n")}, []string{"capasity"}},
		{"bad value", []string{"--data", dir + "/p7", "--config", config("v.yaml", "capacity: plenty\n")}, []string{"capacity", "plenty"}},
		{"not yaml", []string{"--data", dir + "/p8", "--config", config("n.yaml", "\tcapacity = 1\n{")}, []string{"n.yaml"}},
		{"unknown flag", []string{"--data", dir + "/p9", "--nosuchflag"}, []string{"nosuchflag"}},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := harness.Command(t, dir, nil, nil, append([]string{"serve"}, test.args...)...)
			r.MustRefuse(t, test.says...)
			if i >= 3 {
				if _, err := os.Stat(test.args[1]); err == nil {
					t.Errorf("%s was made although the server did not start", test.args[1])
				}
			}
		})
	}
	if text, err := os.ReadFile(filepath.Join(foreign, "letter.txt")); err != nil || string(text) != "dear" {
		t.Errorf("the folder of others was changed: %v", err)
	}
	if list, _ := os.ReadDir(foreign); len(list) != 1 {
		t.Errorf("the folder of others holds %d files now", len(list))
	}
}

// TestNoServer: commands without a server say where they looked.
func TestNoServer(t *testing.T) {
	dir := harness.TempDir(t)
	for i, args := range [][]string{{"lun", "list"}, {"status"}, {"snapshot", "create", "x"}} {
		where := filepath.Join(dir, fmt.Sprint("none", i))
		r := harness.Command(t, dir, nil, nil, append(args, "--data", where)...)
		r.MustRefuse(t, where)
		if r.Status != 1 {
			t.Errorf("%v: status %d, want 1", args, r.Status)
		}
	}
	r := harness.Command(t, dir, nil, nil, "status", "--check", "--data", dir+"/none")
	if r.Status != 3 {
		t.Errorf("status --check without a server: status %d, want 3 (monitoring)\n%s", r.Status, r.Stderr)
	}
}
