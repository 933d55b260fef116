package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"lunar/lun"
)

// Levels of warnings.
const (
	levelWarning  = "warning"
	levelCritical = "critical"
)

// Exit statuses of `status --check`, as monitoring plugins have them.
const (
	checkOK         = 0
	checkWarning    = 1
	checkCritical   = 2
	checkNotReached = 3
)

func newStatusCmd(a *app) *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the pool, LUNs, areas, clients and warnings on one screen",
		Long: `Shows everything on one screen. With --check it prints one line for monitoring, and
the exit status is 0 ok, 1 warning, 2 critical, 3 server not reached.`,
		Example: `  lunar status
  lunar status --check`,
		Args: wantArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if check {
				return runStatusCheck(cmd, a)
			}
			return runStatus(cmd, a)
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "one line and an exit status for monitoring")
	return cmd
}

func (a *app) getStatus(cmd *cobra.Command) (statusAnswer, error) {
	var s statusAnswer
	err := a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "GET", apiPath("status"), nil, &s)
	})
	return s, err
}

func runStatus(cmd *cobra.Command, a *app) error {
	s, err := a.getStatus(cmd)
	if err != nil {
		return err
	}
	return a.print(cmd, s, func(w io.Writer) error { return writeStatus(w, s) })
}

// runStatusCheck is the one verb whose failures have statuses of their own.
func runStatusCheck(cmd *cobra.Command, a *app) error {
	s, err := a.getStatus(cmd)
	if err != nil {
		if errors.Is(err, errNotReached) {
			// Monitoring reads stdout, people and scripts read stderr.
			fmt.Fprintf(cmd.OutOrStdout(), "UNKNOWN - %s\n", oneLine(err.Error()))
			return &statusError{checkNotReached, err.Error()}
		}
		var usage *usageError
		if errors.As(err, &usage) {
			return err
		}
		return &statusError{checkCritical, err.Error()}
	}
	status, word := checkOK, "OK"
	var texts []string
	for _, w := range s.Warnings {
		texts = append(texts, w.Message)
		if w.Level == levelCritical {
			status, word = checkCritical, "CRITICAL"
		} else if status == checkOK {
			status, word = checkWarning, "WARNING"
		}
	}
	texts = append(texts, fmt.Sprintf("%d%% of %s used, %s, %s, %s", percentOf(s.Pool.UsedBytes, s.Pool.CapacityBytes),
		humanSize(s.Pool.CapacityBytes), plural(s.Pool.LUNs, "LUN"), plural(s.Pool.Snapshots, "snapshot"), plural(len(s.Clients), "client")))
	err = a.print(cmd, s, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s - %s\n", word, oneLine(strings.Join(texts, "; ")))
		return err
	})
	if err != nil || status == checkOK {
		return err
	}
	return &statusError{status: status}
}

// writeStatus draws the screen.
func writeStatus(w io.Writer, s statusAnswer) error {
	col := coloursFor(w)
	if err := writeStatusPool(w, s.Pool, col); err != nil {
		return err
	}
	for _, warning := range s.Warnings {
		c := col.warn
		if warning.Level == levelCritical {
			c = col.bad
		}
		for i, line := range wrap(strings.Map(printable, warning.Message), tableWidth-10) {
			label := ""
			if i == 0 {
				label = warning.Level
			}
			if _, err := fmt.Fprintf(w, "%s%-8s%s  %s\n", c, label, col.reset, line); err != nil {
				return err
			}
		}
	}
	if len(s.LUNs) > 0 {
		if err := section(w, col, "LUNs", lunTable(s.LUNs)); err != nil {
			return err
		}
		if err := section(w, col, "Snapshot areas", areaTable(s.LUNs)); err != nil {
			return err
		}
	}
	if len(s.Clients) > 0 {
		return section(w, col, "Clients", clientTable(s.Clients))
	}
	return nil
}

func writeStatusPool(w io.Writer, p lun.PoolStatus, col colours) error {
	percent := percentOf(p.UsedBytes, p.CapacityBytes)
	c := col.good
	switch {
	case percent >= 95 || p.State != "ok":
		c = col.bad
	case percent >= 80:
		c = col.warn
	}
	state := p.State
	if p.Reason != nil {
		state += ": " + *p.Reason
	}
	lines := []string{
		fmt.Sprintf("%spool%s      %s%s%s %3d%% of %s", col.bold, col.reset, c, bar(percent, 40), col.reset, percent, humanSize(p.CapacityBytes)),
		fmt.Sprintf("          used %s, promised %s, shared %s, index %s, free %s, dead %s", humanSize(p.UsedBytes),
			humanSize(p.PromisedBytes), humanSize(p.SharedBytes), humanSize(p.IndexBytes), humanSize(p.FreeBytes), humanSize(p.DeadBytes)),
	}
	for i, line := range wrap(strings.Map(printable, state), tableWidth-10) {
		label := ""
		if i == 0 {
			label = "state"
		}
		lines = append(lines, fmt.Sprintf("%-8s  %s%s%s", label, c, line, col.reset))
	}
	_, err := io.WriteString(w, strings.Join(lines, "\n")+"\n")
	return err
}

func section(w io.Writer, col colours, title string, t *table) error {
	if _, err := fmt.Fprintf(w, "\n%s%s%s\n", col.bold, title, col.reset); err != nil {
		return err
	}
	return t.write(w)
}

// areaTable shows how full each area is: against its limit, or without one
// against its reserve.
func areaTable(list []lun.LUNInfo) *table {
	t := newTable("NAME", "AREA", "RESERVE", "LIMIT", "ON-FULL", "FULL").without("ON-FULL")
	for _, l := range list {
		of, full := l.Area.ReserveBytes, "-"
		if l.Area.LimitBytes != nil {
			of = *l.Area.LimitBytes
		}
		if of > 0 {
			percent := percentOf(l.Area.UsedBytes, of)
			full = fmt.Sprintf("%s %3d%%", bar(percent, 20), percent)
		}
		t.row(l.Name, humanSize(l.Area.UsedBytes), humanSize(l.Area.ReserveBytes), humanLimit(l.Area.LimitBytes), l.Area.OnFull, full)
	}
	return t
}
