package main

import (
	"io"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newSnapshotShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show LUN@NAME",
		Short:             "Show one snapshot",
		Example:           "  lunar snapshot show disk1@before",
		Args:              wantArgs("LUN@NAME"),
		ValidArgsFunction: a.completeSnapshots,
		RunE:              func(cmd *cobra.Command, args []string) error { return runSnapshotShow(cmd, a, args[0]) },
	}
}

func runSnapshotShow(cmd *cobra.Command, a *app, arg string) error {
	ref, err := parseSnapshotRef(arg)
	if err != nil {
		return err
	}
	var info lun.SnapshotInfo
	err = a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "GET", snapshotPath(ref), nil, &info)
	})
	if err != nil {
		return err
	}
	return a.print(cmd, info, func(w io.Writer) error { return writeSnapshot(w, info) })
}
