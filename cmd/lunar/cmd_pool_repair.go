package main

import (
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newPoolRepairCmd(a *app) *cobra.Command {
	var r lun.RepairOptions
	cmd := &cobra.Command{
		Use:   "repair",
		Short: "Repair a pool that does not open any more",
		Long: `Works on the data folder while no server runs. An index that is lost or damaged is
made anew of the newest intact of its two copies and the log since; the damaged one
is kept beside it as index.damaged-UTC. Then the pool is opened and checked. Where a
part of the log is unreadable it stops and names it; --accept-loss goes on behind it.
Where no copy is left, --salvage makes what the records in the segments still tell
readable, read-only, to be copied off: names, deletes and trims may be lost.
Where it fails, the folder is as it was. --dry-run says what would be done.`,
		Example: `  lunar pool repair --data /srv/lunar --dry-run
  lunar pool repair --data /srv/lunar
  lunar pool repair --data /srv/lunar --accept-loss`,
		Args: wantArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return runPoolRepair(cmd, a, r) },
	}
	cmd.Flags().BoolVar(&r.AcceptLoss, "accept-loss", false, "go on without what cannot be read")
	cmd.Flags().BoolVar(&r.Salvage, "salvage", false, "where no copy of the index is left: make what the segments tell readable")
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "say what would be done, and change nothing")
	return cmd
}

// repairResult is what a repair did, in words.
type repairResult struct {
	Actions []string `json:"actions"`
}

func runPoolRepair(cmd *cobra.Command, a *app, r lun.RepairOptions) error {
	c, err := a.dataConfig()
	if err != nil {
		return err
	}
	p := &steps{cmd: cmd}
	r.Progress = p.set
	actions, err := a.repair(cmd.Context(), poolOptions{Config: c, Logger: slog.New(slog.DiscardHandler)}, r)
	p.end()
	if err != nil && len(actions) == 0 {
		return err
	}
	if actions == nil {
		actions = []string{}
	}
	failed := err
	err = a.print(cmd, repairResult{actions}, func(w io.Writer) error {
		if len(actions) == 0 {
			_, err := fmt.Fprintln(w, "nothing to repair")
			return err
		}
		for _, line := range actions {
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
		}
		return nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// steps is a meter for work in several steps.
type steps struct {
	cmd  *cobra.Command
	what string
	m    *meter
}

func (s *steps) set(what string, done, total int64) {
	if what != s.what {
		s.end()
		s.what, s.m = what, newMeter(s.cmd.ErrOrStderr(), what, strings.HasPrefix(what, "copying"))
	}
	if total == 0 {
		total = -1
	}
	s.m.set(done, total)
}

func (s *steps) end() {
	if s.m != nil {
		s.m.end()
	}
}
