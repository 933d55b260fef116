// Package integration tests the release binary from outside: its command line, its sockets, its files, with real
// clients, and the rules of the repository. It imports nothing of the server.
package integration

import (
	"os"
	"testing"

	"lunar/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Run(m, removeImage)) }
