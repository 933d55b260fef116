package main

import (
	"github.com/spf13/cobra"

	"lunar/lun"
)

func newLUNListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the LUNs",
		Long: `Lists the LUNs. USED is what the live data takes, AREA what the snapshots hold
beside it.`,
		Example: `  lunar lun list
  lunar lun list -o json | jq -r '.[].name'`,
		Args: wantArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return runLUNList(cmd, a) },
	}
}

func runLUNList(cmd *cobra.Command, a *app) error {
	var list []lun.LUNInfo
	err := a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "GET", apiPath("luns"), nil, &list)
	})
	if err != nil {
		return err
	}
	return printList(a, cmd, list, lunTable)
}
