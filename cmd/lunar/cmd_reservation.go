package main

import (
	"io"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newReservationCmd(a *app) *cobra.Command {
	return newGroup("reservation", "Show and change what LUNs and their snapshots may take", `  lunar reservation list
  lunar reservation set disk1 --limit 40% --dry-run`,
		newReservationListCmd(a), newReservationShowCmd(a), newReservationSetCmd(a))
}

// reservationTable is `reservation list`.
func reservationTable(list []lun.ReservationInfo) *table {
	t := newTable("LUN", "SIZE", "USED", "AREA", "RESERVE", "LIMIT", "ON-FULL", "FULL-IN", "OLDEST").without("OLDEST", "ON-FULL", "SIZE")
	for _, r := range list {
		t.row(r.LUN, humanSize(r.SizeBytes), humanSize(r.UsedBytes), humanSize(r.Area.UsedBytes), humanSize(r.Area.ReserveBytes),
			humanLimit(r.Area.LimitBytes), r.Area.OnFull, humanDays(r.FullInDays), deref(r.OldestSnapshot))
	}
	return t
}

// writeReservation is `reservation show`.
func writeReservation(w io.Writer, r reservationAnswer) error {
	f := &fields{}
	f.add("lun", r.LUN)
	f.add("size", humanAndExact(r.SizeBytes))
	f.add("used", humanAndExact(r.UsedBytes))
	f.add("area used", humanAndExact(r.Area.UsedBytes))
	f.add("area reserve", humanAndExact(r.Area.ReserveBytes))
	f.add("area limit", exactLimit(r.Area.LimitBytes))
	f.add("on full", r.Area.OnFull)
	f.add("oldest snapshot", deref(r.OldestSnapshot))
	f.add("full in", humanDays(r.FullInDays))
	if err := f.write(w); err != nil {
		return err
	}
	for i, line := range r.Explain {
		if i == 0 {
			line = "\n" + line
		}
		if _, err := io.WriteString(w, line+"\n"); err != nil {
			return err
		}
	}
	return nil
}
