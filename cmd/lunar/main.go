// Command lunar is an NBD server whose LUNs can be rolled back. `lunar serve`
// exports the LUNs of one pool; every other verb administers a running server
// over its admin socket (HTTP and JSON), except the offline tools `pool check
// --offline` and `pool repair`, which open the data folder themselves.
//
// One file holds one verb: its options, flags, newXCmd and runX. Both sides of
// the admin API are here: admin_*.go answers, client.go asks, api.go is what
// they share. viper lives in config.go alone.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// The first signal ends the work in hand cleanly; AfterFunc gives the second
	// one its default effect, so that it always ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, newApp(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command line and returns its exit status. Whatever fails says
// so in one line on stderr.
func run(ctx context.Context, a *app, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCmd(a)
	root.SetArgs(append([]string{}, args...)) // cobra takes nil for os.Args
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	return report(stderr, err)
}
