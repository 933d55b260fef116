package main

import (
	"github.com/spf13/cobra"

	"lunar/lun"
)

func newSnapshotRenameCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "rename LUN@OLD NEW",
		Short:             "Rename a snapshot",
		Example:           "  lunar snapshot rename disk1@20261122T013000Z before-upgrade",
		Args:              wantArgs("LUN@OLD", "NEW"),
		ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSnapshotRename(cmd, a, args[0], args[1])
		},
	}
}

func runSnapshotRename(cmd *cobra.Command, a *app, from, to string) error {
	ref, err := parseSnapshotRef(from)
	if err != nil {
		return err
	}
	if err := lun.CheckName("snapshot", to); err != nil {
		return asUsage(err)
	}
	return a.callSnapshot(cmd, "POST", snapshotPath(ref)+"/rename", renameBody{Name: to})
}
