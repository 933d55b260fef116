package main

import (
	"io"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newPoolStatusCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the capacity of the pool",
		Long: `Shows where the capacity is. "free" is what a new thin write can still get,
"promised" what thick LUNs and area reserves hold beyond their use, "shared" what
only hidden versions hold, "headroom" what is kept for cleaning, "dead" what the
cleaner can give back. "LUN sizes" above the capacity are an over-commitment: thin
LUNs get ENOSPC when the pool is full. "amplification" counts since the start.`,
		Example: "  lunar pool status",
		Args:    wantArgs(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return runPoolStatus(cmd, a) },
	}
}

func runPoolStatus(cmd *cobra.Command, a *app) error {
	var status lun.PoolStatus
	err := a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "GET", apiPath("pool"), nil, &status)
	})
	if err != nil {
		return err
	}
	return a.print(cmd, status, func(w io.Writer) error { return writePool(w, status) })
}
