package main

import (
	"io"

	"github.com/spf13/cobra"
)

func newReservationShowCmd(a *app) *cobra.Command {
	var explain bool
	cmd := &cobra.Command{
		Use:   "show LUN",
		Short: "Show the snapshot area of one LUN",
		Example: `  lunar reservation show disk1
  lunar reservation show disk1 --explain`,
		Args:              wantArgs("LUN"),
		ValidArgsFunction: a.completeLUNs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runReservationShow(cmd, a, args[0], explain)
		},
	}
	cmd.Flags().BoolVar(&explain, "explain", false, "show the arithmetic line by line")
	return cmd
}

func runReservationShow(cmd *cobra.Command, a *app, name string, explain bool) error {
	name, err := parseLUN(name)
	if err != nil {
		return err
	}
	path := apiPath("reservations", name)
	if explain {
		path += "?explain=true"
	}
	var r reservationAnswer
	err = a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "GET", path, nil, &r)
	})
	if err != nil {
		return err
	}
	return a.print(cmd, r, func(w io.Writer) error { return writeReservation(w, r) })
}
