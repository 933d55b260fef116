package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newSnapshotDeleteCmd(a *app) *cobra.Command {
	var o lun.DeleteOptions
	cmd := &cobra.Command{
		Use:     "delete LUN@NAME...",
		Aliases: []string{"rm"},
		Short:   "Delete snapshots",
		Long: `Deletes snapshots: they are gone at once, and their space comes back in the
background; --wait returns when it is back. --dry-run says exactly what deleting
them together would free, and deletes nothing. A protected snapshot, or one that
clients are attached to, is refused unless --force.`,
		Example: `  lunar snapshot delete disk1@mon disk1@tue --dry-run
  lunar snapshot delete disk1@mon disk1@tue --wait`,
		Args:              wantArgs("LUN@NAME..."),
		ValidArgsFunction: a.completeManySnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSnapshotDelete(cmd, a, args, o)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.DryRun, "dry-run", false, "only say what would be freed")
	flags.BoolVar(&o.Wait, "wait", false, "return when the space is back")
	flags.BoolVar(&o.Force, "force", false, "protected and attached ones too")
	return cmd
}

func runSnapshotDelete(cmd *cobra.Command, a *app, args []string, o lun.DeleteOptions) error {
	refs, err := parseSnapshotRefs(args)
	if err != nil {
		return err
	}
	var report lun.DeleteReport
	err = a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "POST", apiPath("snapshots", "delete"), deleteBody{Snapshots: refs, DeleteOptions: o}, &report)
	})
	if err != nil {
		return err
	}
	if o.DryRun {
		return a.printDryRun(cmd, report.FreedBytes)
	}
	return a.print(cmd, report, func(w io.Writer) error {
		for _, name := range report.Deleted {
			if _, err := fmt.Fprintln(w, name); err != nil {
				return err
			}
		}
		return nil
	})
}

func (a *app) printDryRun(cmd *cobra.Command, freed int64) error {
	answer := struct {
		FreedBytes int64 `json:"freed_bytes"`
	}{freed}
	return a.print(cmd, answer, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "would free %s\n", humanAndExact(freed))
		return err
	})
}
