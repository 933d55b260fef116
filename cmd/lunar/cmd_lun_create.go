package main

import (
	"github.com/spf13/cobra"

	"lunar/lun"
)

type lunCreateOptions struct {
	thick       bool
	reserve     amountFlag
	limit       amountFlag
	onFull      onFullFlag
	description descriptionFlag
	readOnly    bool
	access      accessFlags
}

func newLUNCreateCmd(a *app) *cobra.Command {
	o := lunCreateOptions{limit: amountFlag{noneToo: true}}
	cmd := &cobra.Command{
		Use:   "create NAME SIZE",
		Short: "Make a LUN",
		Long: `Makes a LUN of SIZE: a multiple of 512 bytes from 4 KiB to 64 TiB. A thin LUN pays
for what is written; a thick one has its whole size promised from the start.

The snapshot area holds what snapshots keep and the live data no longer has. Its
reserve is promised (default 20% for thick, 0 for thin LUNs); its limit is never
exceeded (default none). When it is full the oldest snapshots go (recycle) or
writes and new snapshots are refused (freeze).

` + accessLong,
		Example: `  lunar lun create disk1 10G
  lunar lun create db 200G --thick --reserve 30% --limit 60%
  lunar lun create audit 1T --limit 500G --on-full freeze
  lunar lun create web1 50G --allow 10.1.0.0/16,unix --qos-iops 2000 --qos-bps 100M`,
		Args:              wantArgs("NAME", "SIZE"),
		ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runLUNCreate(cmd, a, args[0], args[1], o)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.thick, "thick", false, "promise the whole size")
	addAreaFlags(cmd, &o.reserve, &o.limit, &o.onFull)
	flags.Var(&o.description, "description", "one line of text")
	flags.BoolVar(&o.readOnly, "read-only", false, "refuse writes of clients")
	o.access.add(flags)
	return cmd
}

// addAreaFlags adds the flags of a snapshot area.
func addAreaFlags(cmd *cobra.Command, reserve, limit *amountFlag, onFull *onFullFlag) {
	flags := cmd.Flags()
	flags.Var(reserve, "reserve", "of the snapshot area: promised, as `20%|SIZE`")
	flags.Var(limit, "limit", "of the snapshot area: never exceeded, as `40%|SIZE|none`")
	flags.Var(onFull, "on-full", "what a full area does: `recycle|freeze`")
	must(cmd.RegisterFlagCompletionFunc("on-full", cobra.FixedCompletions([]string{lun.OnFullRecycle, lun.OnFullFreeze}, cobra.ShellCompDirectiveNoFileComp)))
}

func runLUNCreate(cmd *cobra.Command, a *app, name, size string, o lunCreateOptions) error {
	name, err := parseLUN(name)
	if err != nil {
		return err
	}
	n, err := parseLUNSize(size)
	if err != nil {
		return err
	}
	return a.callLUN(cmd, "POST", apiPath("luns"), lun.CreateLUN{
		Name: name, SizeBytes: n, Thick: o.thick,
		Reserve: o.reserve.amount, Limit: o.limit.amount, OnFull: string(o.onFull),
		Description: string(o.description), ReadOnly: o.readOnly,
		Allow: orZero(o.access.allow.list), QoS: o.access.qos(),
	})
}
