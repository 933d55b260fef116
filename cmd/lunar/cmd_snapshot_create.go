package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"lunar/lun"
)

type snapshotCreateOptions struct {
	ttl         spanFlag
	protect     bool
	protectFor  spanFlag
	labels      labelsFlag
	description descriptionFlag
	pre, post   string
	hookTimeout spanFlag
}

func newSnapshotCreateCmd(a *app) *cobra.Command {
	o := snapshotCreateOptions{
		labels: labelsFlag{}, ttl: spanFlag{what: "time to live"}, protectFor: spanFlag{what: "protection for"},
		hookTimeout: spanFlag{what: "hook timeout", d: defaultHookTimeout},
	}
	cmd := &cobra.Command{
		Use:   "create LUN[@NAME]...",
		Short: "Take a snapshot of one or more LUNs at one instant",
		Long: `Takes a snapshot of every LUN named, all at one instant: it takes no longer for a
large LUN, and clients go on. Without @NAME the name is the UTC time, as
20261122T013000Z (-2, -3 when taken).

A snapshot is what a power cut would leave. For more, --pre runs a shell command
before it (freeze a file system in the guest, flush a database), and --post one
after it. They run here, as you, not on the server. post runs always, also when pre
or the snapshot fails, and after Ctrl-C; a pre that fails or is not done within
--hook-timeout is killed with all its processes, and no snapshot is taken. Both
see LUNAR_HOOK (pre, post), LUNAR_LUNS (names) and LUNAR_SERVER; post sees
LUNAR_RESULT (taken, failed) and LUNAR_SNAPSHOTS too. What they print is not shown,
but for the last line on stderr of one that fails.

Prints LUN@NAME of each, one a line. With -o json: one object for one snapshot, a
list for several.`,
		Example: `  lunar snapshot create disk1@before-upgrade
  lunar snapshot create disk1 --ttl 3d --label by=cron
  lunar snapshot create db@t1 log@t1 --protect-for 2w
  lunar snapshot create disk1 --pre "ssh vm1 fsfreeze -f /srv" \
    --post "ssh vm1 fsfreeze -u /srv" --hook-timeout 10s`,
		Args:              wantArgs("LUN[@NAME]..."),
		ValidArgsFunction: a.completeLUNs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSnapshotCreate(cmd, a, args, o)
		},
	}
	flags := cmd.Flags()
	flags.Var(&o.ttl, "ttl", "delete it by itself after `12h|3d|2w`")
	flags.BoolVar(&o.protect, "protect", false, "neither delete nor recycle it before unprotect")
	flags.Var(&o.protectFor, "protect-for", "neither delete nor recycle it for `12h|3d|2w`")
	flags.Var(o.labels, "label", "a label as `KEY=VALUE`; may be repeated")
	flags.Var(&o.description, "description", "one line of text")
	flags.StringVar(&o.pre, "pre", "", "shell `CMD` to run before; if it fails there is no snapshot")
	flags.StringVar(&o.post, "post", "", "shell `CMD` to run after, whatever happens")
	flags.Var(&o.hookTimeout, "hook-timeout", "kill a command that takes longer than `TIME` (30s)")
	return cmd
}

func runSnapshotCreate(cmd *cobra.Command, a *app, args []string, o snapshotCreateOptions) error {
	body := snapshotBody{SnapshotOptions: lun.SnapshotOptions{
		TTL: o.ttl.d, Protect: o.protect, ProtectFor: o.protectFor.d, Labels: o.labels, Description: string(o.description),
	}}
	for _, arg := range args {
		ref, err := parseVersion(arg)
		if err != nil {
			return err
		}
		body.Targets = append(body.Targets, lun.SnapshotRequest(ref))
	}
	hooked := o.pre != "" || o.post != ""
	if cmd.Flags().Changed("hook-timeout") && !hooked {
		return usagef("--hook-timeout: it goes with --pre or --post only")
	}
	var list []lun.SnapshotInfo
	take := func(ctx context.Context) ([]string, error) {
		err := a.withClient(func(c *client) error { return c.call(ctx, "POST", apiPath("snapshots"), body, &list) })
		return snapshotNames(list), err
	}
	if !hooked {
		if _, err := take(cmd.Context()); err != nil {
			return err
		}
		return a.printMade(cmd, list)
	}
	h, err := a.prepareHooks(cmd.Context(), hooks{o.pre, o.post, o.hookTimeout.d}, body.Targets)
	if err != nil {
		return err
	}
	err = h.around(cmd.Context(), take)
	if len(list) > 0 { // also when only post failed: the snapshots are there
		if printed := a.printMade(cmd, list); err == nil {
			err = printed
		}
	}
	return err
}

// prepareHooks finds out, before anything is frozen, that a server is there and
// has the LUNs.
func (a *app) prepareHooks(ctx context.Context, h hooks, targets []lun.SnapshotRequest) (hookRun, error) {
	r := hookRun{hooks: h}
	err := a.withClient(func(c *client) error {
		path, err := filepath.Abs(c.path)
		if err != nil {
			return fmt.Errorf("the admin socket %s: %w", c.path, err)
		}
		r.server = "unix://" + path
		for _, t := range targets {
			var info lun.LUNInfo
			if err := c.call(ctx, "GET", lunPath(t.LUN), nil, &info); err != nil {
				return err
			}
			r.luns = append(r.luns, t.LUN)
		}
		return nil
	})
	return r, err
}

func (a *app) printMade(cmd *cobra.Command, list []lun.SnapshotInfo) error {
	var made any = list
	if len(list) == 1 {
		made = list[0]
	}
	return a.print(cmd, made, func(w io.Writer) error { return writeSnapshotNames(w, list) })
}

func snapshotNames(list []lun.SnapshotInfo) []string {
	names := make([]string, len(list))
	for i, s := range list {
		names[i] = snapshotName(s)
	}
	return names
}
