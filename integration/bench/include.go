package main

import (
	"bytes"
	"fmt"
	"os"
)

// include puts text between the two marker lines of its name in a document, so that what the document shows is what was measured:
// <!-- NAME: begin (COMMAND) --> ... <!-- NAME: end -->.
func include(path, name, text string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	begin := bytes.Index(old, []byte("<!-- "+name+": begin"))
	end := bytes.Index(old, []byte("<!-- "+name+": end -->"))
	if begin < 0 || end < begin {
		return fmt.Errorf("%s has no lines <!-- %s: begin --> and <!-- %s: end -->", path, name, name)
	}
	head := begin + bytes.IndexByte(old[begin:], '\n') + 1
	return os.WriteFile(path, bytes.Join([][]byte{old[:head], []byte(text), old[end:]}, nil), 0o644)
}
