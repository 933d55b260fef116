package main

import (
	"github.com/spf13/cobra"

	"lunar/lun"
)

func newReservationListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the snapshot areas of all LUNs",
		Long: `Lists size, use and snapshot area of every LUN: what the area holds, what is promised
to it (RESERVE), what it never exceeds (LIMIT), and when it is full at the rate of
the last day and hour.`,
		Example: "  lunar reservation list",
		Args:    wantArgs(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return runReservationList(cmd, a) },
	}
}

func runReservationList(cmd *cobra.Command, a *app) error {
	var list []lun.ReservationInfo
	err := a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "GET", apiPath("reservations"), nil, &list)
	})
	if err != nil {
		return err
	}
	return printList(a, cmd, list, reservationTable)
}
