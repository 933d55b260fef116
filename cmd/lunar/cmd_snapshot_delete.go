package main

import (
	"context"
	"fmt"
	"io"
	"time"

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
		if o.Wait {
			defer watchReclaim(cmd.Context(), c, cmd.ErrOrStderr())()
		}
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

// watchReclaim shows how far the merging of deleted snapshots has come until the
// function that it returns is called; on a terminal only.
func watchReclaim(ctx context.Context, c *client, stderr io.Writer) (stop func()) {
	if !isTerminal(stderr) {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		m := newMeter(stderr, "giving back", false)
		defer m.end()
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(200 * time.Millisecond):
			}
			var st lun.PoolStatus
			// A status that cannot be had is no reason to stop waiting.
			if c.call(ctx, "GET", apiPath("pool"), nil, &st) == nil && st.Reclaim.Running {
				m.set(st.Reclaim.PagesDone, st.Reclaim.PagesTotal)
			}
		}
	}()
	return func() { cancel(); <-done }
}
