package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"
)

func newPoolRepairCmd(a *app) *cobra.Command {
	var acceptLoss bool
	cmd := &cobra.Command{
		Use:   "repair",
		Short: "Repair a pool that does not open any more",
		Long: `Opens the data folder while no server runs and repairs what can be repaired without
losing anything. Where a part of the log is unreadable it stops and names it;
--accept-loss goes on behind it.`,
		Example: `  lunar pool repair --data /srv/lunar
  lunar pool repair --data /srv/lunar --accept-loss`,
		Args: wantArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return runPoolRepair(cmd, a, acceptLoss) },
	}
	cmd.Flags().BoolVar(&acceptLoss, "accept-loss", false, "go on without what cannot be read")
	return cmd
}

// repairResult is what a repair did, in words.
type repairResult struct {
	Actions []string `json:"actions"`
}

func runPoolRepair(cmd *cobra.Command, a *app, acceptLoss bool) error {
	c, err := a.dataConfig()
	if err != nil {
		return err
	}
	actions, err := a.repair(cmd.Context(), poolOptions{Config: c, Logger: slog.New(slog.DiscardHandler)}, acceptLoss)
	if err != nil {
		return err
	}
	if actions == nil {
		actions = []string{}
	}
	return a.print(cmd, repairResult{actions}, func(w io.Writer) error {
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
}
