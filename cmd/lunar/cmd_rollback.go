package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newRollbackCmd(a *app) *cobra.Command {
	var o lun.RollbackOptions
	cmd := &cobra.Command{
		Use:   "rollback LUN@NAME",
		Short: "Bring a LUN back to a snapshot",
		Long: `The LUN has the content and size of the snapshot at once. Newer snapshots stay. The
state before is kept as the snapshot before-rollback-TIME, whose name is printed,
unless --discard.

It is refused while clients are attached: they would write their old caches over
the restored state. --force disconnects them and leaves the LUN offline, until
"lunar lun online", unless --online.`,
		Example: `  lunar rollback disk1@before
  lunar rollback disk1@before --force && lunar lun online disk1`,
		Args:              wantArgs("LUN@NAME"),
		ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRollback(cmd, a, args[0], o)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.Discard, "discard", false, "do not keep the state before")
	flags.BoolVar(&o.Force, "force", false, "disconnect clients, and leave the LUN offline")
	flags.BoolVar(&o.Online, "online", false, "with --force: leave the LUN online")
	return cmd
}

func runRollback(cmd *cobra.Command, a *app, arg string, o lun.RollbackOptions) error {
	ref, err := parseSnapshotRef(arg)
	if err != nil {
		return err
	}
	if o.Online && !o.Force {
		return usagef("--online: it goes with --force only")
	}
	var info rollbackAnswer
	err = a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "POST", lunPath(ref.LUN, "rollback"), rollbackBody{Snapshot: ref.Name, RollbackOptions: o}, &info)
	})
	if err != nil {
		return err
	}
	if !info.Online {
		fmt.Fprintf(cmd.ErrOrStderr(), "LUN %s is offline; bring it back with: lunar lun online %s\n", ref.LUN, ref.LUN)
	}
	return a.print(cmd, info, func(w io.Writer) error {
		line := ref.LUN + " is at " + ref.String() + "; the state before was discarded"
		if info.Kept != nil {
			line = *info.Kept
		}
		_, err := fmt.Fprintln(w, line)
		return err
	})
}
