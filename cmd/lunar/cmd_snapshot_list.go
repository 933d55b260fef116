package main

import (
	"net/url"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newSnapshotListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list [LUN]",
		Aliases: []string{"ls"},
		Short:   "List the snapshots of one LUN or of all",
		Long: `Lists snapshots. UNIQUE is what deleting that one alone would free, REFERENCED what
is visible through it, CHANGED what differs from the snapshot before it.`,
		Example: `  lunar snapshot list disk1
  lunar snapshot list -o json | jq -r '.[] | select(.protected) | .lun + "@" + .name'`,
		Args:              wantAtMost(nil, "LUN"),
		ValidArgsFunction: a.completeLUNs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSnapshotList(cmd, a, args)
		},
	}
}

func runSnapshotList(cmd *cobra.Command, a *app, args []string) error {
	path := apiPath("snapshots")
	if len(args) > 0 {
		name, err := parseLUN(args[0])
		if err != nil {
			return err
		}
		path += "?lun=" + url.QueryEscape(name)
	}
	var list []lun.SnapshotInfo
	err := a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "GET", path, nil, &list)
	})
	if err != nil {
		return err
	}
	return printList(a, cmd, list, snapshotTable)
}
