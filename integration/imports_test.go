package integration

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"

	"lunar/integration/harness"
)

const pebble = "github.com/cockroachdb/pebble/v2"

// layer is one row of the house (design.md §2): which parts of the project it may import, and which foreign packages
// it must not. Imports run downwards only.
type layer struct {
	name    string   // folder; its subfolders belong to it
	project []string // layers it may import
	banned  []string // foreign packages, subpackages included
	except  []string // of the banned
}

var layers = []layer{
	{name: "cmd", project: []string{"nbd", "lun", "cow", "reservation", "store/segment", "store/index"}, banned: []string{pebble}, except: []string{pebble + "/vfs"}},
	{name: "nbd", banned: []string{"github.com/cockroachdb", "github.com/pojntfx/go-nbd/pkg/server", "github.com/pojntfx/go-nbd/pkg/client"}},
	{name: "lun", project: []string{"cow", "reservation", "store/segment", "store/index"}, banned: []string{pebble}, except: []string{pebble + "/vfs"}},
	{name: "cow", project: []string{"store/index"}, banned: []string{"github.com/cockroachdb", "os", "net", "syscall", "golang.org/x/sys"}},
	{name: "reservation", banned: []string{"github.com", "os", "net", "io/fs", "time", "golang.org/x/sys"}},
	{name: "store/segment", banned: []string{pebble}, except: []string{pebble + "/vfs"}},
	{name: "store/index"},
	{name: "store/crashfs", banned: []string{pebble}, except: []string{pebble + "/vfs"}}, // for tests; the layer below all
	{name: "integration", banned: []string{"github.com/cockroachdb", "github.com/pojntfx"}},
}

// goPackage is what the test reads of `go list -json`.
type goPackage struct {
	ImportPath   string
	Dir          string
	Imports      []string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json", "./...")
	cmd.Dir = harness.Root()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []goPackage
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

func within(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}

func layerOf(importPath string) (layer, bool) {
	path, ok := strings.CutPrefix(importPath, "lunar/")
	for _, l := range layers {
		if ok && within(path, l.name) {
			return l, true
		}
	}
	return layer{}, false
}

// complain says why a layer may not import a package, or "".
func complain(l layer, imported string) string {
	if within(imported, "lunar") {
		to, ok := layerOf(imported)
		if !ok {
			return "is in no layer: add it to the table"
		}
		if to.name == l.name {
			return ""
		}
		for _, allowed := range l.project {
			if allowed == to.name {
				return ""
			}
		}
		return "imports run downwards only"
	}
	for _, except := range l.except {
		if within(imported, except) {
			return ""
		}
	}
	for _, banned := range l.banned {
		if within(imported, banned) {
			return "is not for this layer"
		}
	}
	return ""
}

func TestImports(t *testing.T) {
	list := packages(t)
	if len(list) < 5 {
		t.Fatalf("go list found only %d packages", len(list))
	}
	for _, p := range list {
		l, ok := layerOf(p.ImportPath)
		if !ok {
			t.Errorf("%s is in no layer of design.md §2: move it, or add its layer to the table", p.ImportPath)
			continue
		}
		for _, imported := range p.Imports {
			if why := complain(l, imported); why != "" {
				t.Errorf("%s imports %s: %s", p.ImportPath, imported, why)
			}
		}
	}
}

// The rules themselves must be able to fail.
func TestImportRulesCatch(t *testing.T) {
	for from, list := range map[string][]string{
		"nbd":           {"lunar/lun", "lunar/store/index", "github.com/pojntfx/go-nbd/pkg/server"},
		"lun":           {"lunar/nbd", "lunar/cmd/lunar", pebble},
		"cow":           {"lunar/lun", "lunar/store/segment", "os"},
		"reservation":   {"lunar/cow", "time", "os"},
		"store/segment": {"lunar/store/index", pebble, pebble + "/sstable"},
		"store/index":   {"lunar/store/segment", "lunar/cow"},
		"integration":   {"lunar/lun", "lunar/nbd"},
	} {
		l, _ := layerOf("lunar/" + from)
		for _, imported := range list {
			if complain(l, imported) == "" {
				t.Errorf("%s may import %s", from, imported)
			}
		}
	}
	for from, imported := range map[string]string{
		"cmd/lunar": "lunar/nbd", "lun": "lunar/store/segment", "store/segment": pebble + "/vfs", "store/index": pebble, "nbd": "lunar/nbd/wire",
	} {
		l, _ := layerOf("lunar/" + from)
		if why := complain(l, imported); why != "" {
			t.Errorf("%s may not import %s: %s", from, imported, why)
		}
	}
}
