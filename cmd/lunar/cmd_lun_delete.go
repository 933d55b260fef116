package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newLUNDeleteCmd(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "delete NAME",
		Aliases: []string{"rm"},
		Short:   "Delete a LUN",
		Long: `Deletes a LUN. It is refused while clients are attached or snapshots exist; with
--force the clients are disconnected and the snapshots go with it. Clones stay.`,
		Example: `  lunar lun delete disk1
  lunar lun delete disk1 --force`,
		Args:              wantArgs("NAME"),
		ValidArgsFunction: a.completeLUNs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runLUNDelete(cmd, a, args[0], force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "disconnect clients and delete its snapshots too")
	return cmd
}

func runLUNDelete(cmd *cobra.Command, a *app, name string, force bool) error {
	name, err := parseLUN(name)
	if err != nil {
		return err
	}
	path := lunPath(name)
	if force {
		path += "?force=true"
	}
	var info lun.LUNInfo
	err = a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "DELETE", path, nil, &info)
	})
	if err != nil {
		return err
	}
	return a.print(cmd, info, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, info.Name)
		return err
	})
}
