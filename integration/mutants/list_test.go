package main

import "testing"

// TestMutantsApply: what each mutant changes is still there, once.
func TestMutantsApply(t *testing.T) {
	t.Chdir("../..")
	for _, m := range mutants {
		if _, err := m.overlay(t.TempDir()); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}
