package main

import (
	"io"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newPoolResizeCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "resize SIZE",
		Short: "Change the capacity of the pool while it is in use",
		Long: `Changes how much of the file system the pool may take. Growing holds at once; it is
not checked against the file system, but lunar status warns if that has less. A
smaller capacity is refused if what is promised and used does not fit; segments that
are too many are cleaned and removed in the background. The new capacity is stored in
the pool; a capacity in the configuration resizes it again at the next start.`,
		Example: `  lunar pool resize 2T`,
		Args:    wantArgs("SIZE"),
		RunE:    func(cmd *cobra.Command, args []string) error { return runPoolResize(cmd, a, args[0]) },
	}
}

func runPoolResize(cmd *cobra.Command, a *app, size string) error {
	n, err := parseCapacity(size)
	if err != nil {
		return err
	}
	var status lun.PoolStatus
	err = a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "POST", apiPath("pool", "resize"), capacityBody{CapacityBytes: n}, &status)
	})
	if err != nil {
		return err
	}
	return a.print(cmd, status, func(w io.Writer) error { return writePool(w, status) })
}
