package main

import (
	"net/url"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newSnapshotListCmd(a *app) *cobra.Command {
	var labels labelFilter
	cmd := &cobra.Command{
		Use:     "list [LUN]",
		Aliases: []string{"ls"},
		Short:   "List the snapshots of one LUN or of all",
		Long: `Lists snapshots. UNIQUE is what deleting that one alone would free, REFERENCED what
is visible through it, CHANGED what differs from the snapshot before it. --label
takes only those that have the label; given several times, all of them.`,
		Example: `  lunar snapshot list disk1
  lunar snapshot list --label by=cron --label app
  lunar snapshot list -o json | jq -r '.[] | select(.protected) | .lun + "@" + .name'`,
		Args:              wantAtMost(nil, "LUN"),
		ValidArgsFunction: a.completeLUNs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSnapshotList(cmd, a, args, labels)
		},
	}
	cmd.Flags().Var(&labels, "label", "only those with this label, `KEY=VALUE` or KEY; may be repeated")
	return cmd
}

func runSnapshotList(cmd *cobra.Command, a *app, args []string, labels labelFilter) error {
	query := url.Values{}
	if len(args) > 0 {
		name, err := parseLUN(args[0])
		if err != nil {
			return err
		}
		query.Set("lun", name)
	}
	if len(labels) > 0 {
		query["label"] = labels
	}
	path := apiPath("snapshots")
	if len(query) > 0 {
		path += "?" + query.Encode()
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
