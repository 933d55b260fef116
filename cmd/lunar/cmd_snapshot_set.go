package main

import (
	"github.com/spf13/cobra"

	"lunar/lun"
)

type snapshotSetOptions struct {
	ttl         spanFlag
	labels      labelsFlag
	drop        []string
	description descriptionFlag
}

func newSnapshotSetCmd(a *app) *cobra.Command {
	o := snapshotSetOptions{labels: labelsFlag{}, ttl: spanFlag{what: "time to live", noneToo: true}}
	cmd := &cobra.Command{
		Use:   "set LUN@NAME",
		Short: "Change description, labels or time to live of a snapshot",
		Long: `Changes what is given and leaves the rest. --label sets or replaces a label,
--drop-label takes one away. A time to live counts from now; "none" ends it.`,
		Example: `  lunar snapshot set disk1@t --label stage=done --drop-label stage-before
  lunar snapshot set disk1@t --ttl 2w --description "before the move"`,
		Args:              wantArgs("LUN@NAME"),
		ValidArgsFunction: a.completeSnapshots,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSnapshotSet(cmd, a, args[0], o)
		},
	}
	flags := cmd.Flags()
	flags.Var(&o.description, "description", "one line of text")
	flags.Var(o.labels, "label", "set a label, as `KEY=VALUE`; may be repeated")
	flags.StringArrayVar(&o.drop, "drop-label", nil, "take a label away, by its `KEY`; may be repeated")
	flags.Var(&o.ttl, "ttl", "delete it by itself after `12h|3d|2w|none`")
	return cmd
}

func runSnapshotSet(cmd *cobra.Command, a *app, arg string, o snapshotSetOptions) error {
	ref, err := parseSnapshotRef(arg)
	if err != nil {
		return err
	}
	for _, key := range o.drop {
		if err := checkLabel(key, ""); err != nil {
			return usagef("--drop-label: %w", err)
		}
	}
	body := lun.SetSnapshot{Labels: o.labels, DropLabels: o.drop}
	flags := cmd.Flags()
	if flags.Changed("description") {
		text := string(o.description)
		body.Description = &text
	}
	if flags.Changed("ttl") {
		body.TTL = &o.ttl.d
	}
	if body.Description == nil && body.TTL == nil && len(body.Labels) == 0 && len(body.DropLabels) == 0 {
		return usagef("nothing to change: want --description, --label, --drop-label or --ttl")
	}
	return a.callSnapshot(cmd, "PATCH", snapshotPath(ref), body)
}
