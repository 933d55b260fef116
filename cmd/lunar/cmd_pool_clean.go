package main

import (
	"io"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newPoolCleanCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "clean",
		Short: "Give dead space back to the file system now",
		Long: `Runs the cleaner until no dead space is left that is worth it, and returns when the
space is back. Prints the status of the pool afterwards.`,
		Example: "  lunar pool clean",
		Args:    wantArgs(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return runPoolClean(cmd, a) },
	}
}

func runPoolClean(cmd *cobra.Command, a *app) error {
	var status lun.PoolStatus
	err := a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "POST", apiPath("pool", "clean"), nil, &status)
	})
	if err != nil {
		return err
	}
	return a.print(cmd, status, func(w io.Writer) error { return writePool(w, status) })
}
