package main

import (
	"io"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newLUNShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Show one LUN",
		Example:           "  lunar lun show disk1",
		Args:              wantArgs("NAME"),
		ValidArgsFunction: a.completeLUNs,
		RunE:              func(cmd *cobra.Command, args []string) error { return runLUNShow(cmd, a, args[0]) },
	}
}

func runLUNShow(cmd *cobra.Command, a *app, name string) error {
	name, err := parseLUN(name)
	if err != nil {
		return err
	}
	var info lun.LUNInfo
	err = a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "GET", lunPath(name), nil, &info)
	})
	if err != nil {
		return err
	}
	return a.print(cmd, info, func(w io.Writer) error { return writeLUN(w, info) })
}
