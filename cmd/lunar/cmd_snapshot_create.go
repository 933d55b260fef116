package main

import (
	"io"

	"github.com/spf13/cobra"

	"lunar/lun"
)

type snapshotCreateOptions struct {
	ttl         ttlFlag
	protect     bool
	labels      labelsFlag
	description descriptionFlag
}

func newSnapshotCreateCmd(a *app) *cobra.Command {
	o := snapshotCreateOptions{labels: labelsFlag{}}
	cmd := &cobra.Command{
		Use:   "create LUN[@NAME]...",
		Short: "Take a snapshot of one or more LUNs at one instant",
		Long: `Takes a snapshot of every LUN named, all at one instant: it takes no longer for a
large LUN, and clients go on. Without @NAME the name is the UTC time, as
20261122T013000Z (-2, -3 when taken).

Prints LUN@NAME of each, one a line. With -o json: one object for one snapshot, a
list for several.`,
		Example: `  lunar snapshot create disk1@before-upgrade
  lunar snapshot create disk1 --ttl 3d --label by=cron
  lunar snapshot create db@t1 log@t1 --protect`,
		Args:              wantArgs("LUN[@NAME]..."),
		ValidArgsFunction: a.completeLUNs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSnapshotCreate(cmd, a, args, o)
		},
	}
	flags := cmd.Flags()
	flags.Var(&o.ttl, "ttl", "delete it by itself after `12h|3d|2w`")
	flags.BoolVar(&o.protect, "protect", false, "neither delete nor recycle it before unprotect")
	flags.Var(o.labels, "label", "a label as `KEY=VALUE`; may be repeated")
	flags.Var(&o.description, "description", "one line of text")
	return cmd
}

func runSnapshotCreate(cmd *cobra.Command, a *app, args []string, o snapshotCreateOptions) error {
	body := snapshotBody{SnapshotOptions: lun.SnapshotOptions{
		TTL: o.ttl.d, Protect: o.protect, Labels: o.labels, Description: string(o.description),
	}}
	for _, arg := range args {
		ref, err := parseVersion(arg)
		if err != nil {
			return err
		}
		body.Targets = append(body.Targets, lun.SnapshotRequest{LUN: ref.LUN, Name: ref.Name})
	}
	var list []lun.SnapshotInfo
	err := a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "POST", apiPath("snapshots"), body, &list)
	})
	if err != nil {
		return err
	}
	var made any = list
	if len(list) == 1 {
		made = list[0]
	}
	return a.print(cmd, made, func(w io.Writer) error { return writeSnapshotNames(w, list) })
}
