package integration

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lunar/integration/harness"
)

const (
	fileLinesMax     = 600
	functionLinesMax = 70
)

// goSource is one parsed file of the repository.
type goSource struct {
	path  string // relative to the top
	lines int
	set   *token.FileSet
	file  *ast.File
}

func sources(t *testing.T, under string) []goSource {
	t.Helper()
	var list []goSource
	err := filepath.WalkDir(filepath.Join(harness.Root(), under), func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		relative, _ := filepath.Rel(harness.Root(), path)
		list = append(list, goSource{path: relative, lines: bytes.Count(text, []byte("\n")), set: set, file: file})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestSizes: a file is one noun of at most 600 lines, a function has at most 70. Tests are not counted.
func TestSizes(t *testing.T) {
	longest, longestName := 0, ""
	for _, s := range sources(t, ".") {
		if s.lines > fileLinesMax {
			t.Errorf("%s has %d lines, more than %d: is it one noun?", s.path, s.lines, fileLinesMax)
		}
		for _, declaration := range s.file.Decls {
			function, ok := declaration.(*ast.FuncDecl)
			if !ok {
				continue
			}
			from, to := s.set.Position(function.Pos()), s.set.Position(function.End())
			lines := to.Line - from.Line + 1
			if lines > functionLinesMax {
				t.Errorf("%s:%d: func %s has %d lines, more than %d", s.path, from.Line, function.Name.Name, lines, functionLinesMax)
			}
			if lines > longest {
				longest, longestName = lines, s.path+" "+function.Name.Name
			}
		}
	}
	t.Logf("longest function: %d lines, %s", longest, longestName)
}

// TestPure: cow and reservation decide; they start no goroutine and read no clock.
func TestPure(t *testing.T) {
	clock := map[string]bool{"Now": true, "Since": true, "Until": true, "Sleep": true, "After": true, "AfterFunc": true, "Tick": true, "NewTimer": true, "NewTicker": true}
	for _, folder := range []string{"cow", "reservation"} {
		for _, s := range sources(t, folder) {
			ast.Inspect(s.file, func(node ast.Node) bool {
				switch n := node.(type) {
				case *ast.GoStmt:
					t.Errorf("%s:%d: starts a goroutine", s.path, s.set.Position(n.Pos()).Line)
				case *ast.SelectorExpr:
					if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && clock[n.Sel.Name] {
						t.Errorf("%s:%d: time.%s", s.path, s.set.Position(n.Pos()).Line, n.Sel.Name)
					}
				}
				return true
			})
		}
	}
}
