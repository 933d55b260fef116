package main

import (
	"time"

	"github.com/spf13/cobra"
)

func newSnapshotProtectCmd(a *app) *cobra.Command {
	span := spanFlag{what: "protection for"}
	cmd := &cobra.Command{
		Use:   "protect LUN@NAME",
		Short: "Keep a snapshot from being deleted or recycled",
		Long: `A protected snapshot is not deleted (without --force), not recycled when its area is
full, and outlives its time to live: that takes effect when the protection ends, by
unprotect or after --for. Given again, the new end counts, from now.`,
		Example: `  lunar snapshot protect disk1@golden
  lunar snapshot protect disk1@audit --for 7d`,
		Args:              wantArgs("LUN@NAME"),
		ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSnapshotProtect(cmd, a, args[0], true, span.d)
		},
	}
	cmd.Flags().Var(&span, "for", "end the protection after `12h|3d|2w`; without it, by unprotect")
	return cmd
}

func newSnapshotUnprotectCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "unprotect LUN@NAME",
		Short:             "Let a snapshot be deleted and recycled again",
		Example:           "  lunar snapshot unprotect disk1@golden",
		Args:              wantArgs("LUN@NAME"),
		ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSnapshotProtect(cmd, a, args[0], false, 0)
		},
	}
}

func runSnapshotProtect(cmd *cobra.Command, a *app, arg string, on bool, d time.Duration) error {
	ref, err := parseSnapshotRef(arg)
	if err != nil {
		return err
	}
	return a.callSnapshot(cmd, "POST", snapshotPath(ref)+"/protect", protectBody{Protected: on, For: d})
}
