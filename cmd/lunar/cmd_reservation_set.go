package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"lunar/lun"
)

type reservationSetOptions struct {
	reserve amountFlag
	limit   amountFlag
	onFull  onFullFlag
	dryRun  bool
}

func newReservationSetCmd(a *app) *cobra.Command {
	o := reservationSetOptions{limit: amountFlag{noneToo: true}}
	cmd := &cobra.Command{
		Use:   "set LUN",
		Short: "Change the snapshot area of a LUN",
		Long: `Changes what is named and nothing else. A lower limit may cost snapshots, the oldest
first; --dry-run names them and changes nothing.`,
		Example: `  lunar reservation set disk1 --reserve 20% --limit 40%
  lunar reservation set disk1 --limit 5G --dry-run
  lunar reservation set audit --on-full freeze`,
		Args:              wantArgs("LUN"),
		ValidArgsFunction: a.completeLUNs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runReservationSet(cmd, a, args[0], o)
		},
	}
	addAreaFlags(cmd, &o.reserve, &o.limit, &o.onFull)
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "only name the snapshots that would go")
	return cmd
}

func runReservationSet(cmd *cobra.Command, a *app, name string, o reservationSetOptions) error {
	name, err := parseLUN(name)
	if err != nil {
		return err
	}
	set := lun.SetReservation{Reserve: o.reserve.amount, Limit: o.limit.amount, DryRun: o.dryRun}
	if o.onFull != "" {
		policy := string(o.onFull)
		set.OnFull = &policy
	}
	if set.Reserve == nil && set.Limit == nil && set.OnFull == nil {
		return usagef("nothing to set: want --reserve, --limit or --on-full")
	}
	var r reservationAnswer
	err = a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "PATCH", apiPath("reservations", name), set, &r)
	})
	if err != nil {
		return err
	}
	return a.print(cmd, r, func(w io.Writer) error {
		if err := reservationTable([]lun.ReservationInfo{r.ReservationInfo}).write(w); err != nil {
			return err
		}
		verb := "deleted"
		if o.dryRun {
			verb = "would delete"
		}
		for _, s := range r.Snapshots {
			if _, err := fmt.Fprintf(w, "%s %s\n", verb, s); err != nil {
				return err
			}
		}
		return nil
	})
}
