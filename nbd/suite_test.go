package nbd_test

import (
	"testing"

	"go.uber.org/goleak"

	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSuite(t *testing.T) {
	nbdtest.Suite(t, func(*testing.T) (nbd.Backend, string) {
		return nbdtest.NewBackend(nbdtest.NewMemory("mem", 8<<20+1000)), "mem"
	})
}

func TestSuiteReadOnly(t *testing.T) {
	nbdtest.Suite(t, func(*testing.T) (nbd.Backend, string) {
		m := nbdtest.NewMemory("mem", 8<<20)
		m.SetReadOnly(true)
		return nbdtest.NewBackend(m), "mem"
	})
}
