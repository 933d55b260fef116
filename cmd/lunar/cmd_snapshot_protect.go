package main

import "github.com/spf13/cobra"

func newSnapshotProtectCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "protect LUN@NAME",
		Short:             "Keep a snapshot from being deleted or recycled",
		Example:           "  lunar snapshot protect disk1@golden",
		Args:              wantArgs("LUN@NAME"),
		ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSnapshotProtect(cmd, a, args[0], true)
		},
	}
}

func newSnapshotUnprotectCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "unprotect LUN@NAME",
		Short:             "Let a snapshot be deleted and recycled again",
		Example:           "  lunar snapshot unprotect disk1@golden",
		Args:              wantArgs("LUN@NAME"),
		ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSnapshotProtect(cmd, a, args[0], false)
		},
	}
}

func runSnapshotProtect(cmd *cobra.Command, a *app, arg string, on bool) error {
	ref, err := parseSnapshotRef(arg)
	if err != nil {
		return err
	}
	return a.callSnapshot(cmd, "POST", snapshotPath(ref)+"/protect", protectBody{Protected: on})
}
