package main

import (
	"github.com/spf13/cobra"

	"lunar/lun"
)

type lunSetOptions struct {
	description  descriptionFlag
	readOnly     bool
	maxSnapshots string
	access       accessFlags
}

func newLUNSetCmd(a *app) *cobra.Command {
	var o lunSetOptions
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Change properties of a LUN",
		Long: `Changes what is named and nothing else. The snapshot area is changed by "lunar
reservation set". --read-only holds for clients that attach afterwards; the rest holds at once, for
those that are attached too: who may no longer be is disconnected.

` + accessLong,
		Example: `  lunar lun set disk1 --description "web server" --max-snapshots 1000
  lunar lun set golden --read-only=true
  lunar lun set db --allow 10.1.2.3,cn=backup --qos-bps 200M
  lunar lun set db --allow any --qos-iops none --qos-bps none`,
		Args:              wantArgs("NAME"),
		ValidArgsFunction: a.completeLUNs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runLUNSet(cmd, a, args[0], o)
		},
	}
	flags := cmd.Flags()
	flags.Var(&o.description, "description", "one line of text; \"\" takes it away")
	flags.BoolVar(&o.readOnly, "read-only", false, "refuse writes of clients (--read-only=false allows them)")
	flags.StringVar(&o.maxSnapshots, "max-snapshots", "", "how many snapshots there may be, as `N`; 0: any number")
	o.access.add(flags)
	return cmd
}

// maxMaxSnapshots is no limit of the pool, only of sense.
const maxMaxSnapshots = 1 << 20

func runLUNSet(cmd *cobra.Command, a *app, name string, o lunSetOptions) error {
	name, err := parseLUN(name)
	if err != nil {
		return err
	}
	var set lun.SetLUN
	flags := cmd.Flags()
	if flags.Changed("description") {
		text := string(o.description)
		set.Description = &text
	}
	if flags.Changed("read-only") {
		set.ReadOnly = &o.readOnly
	}
	if flags.Changed("max-snapshots") {
		n, err := parseCount("--max-snapshots", o.maxSnapshots, 0, maxMaxSnapshots)
		if err != nil {
			return asUsage(err)
		}
		set.MaxSnapshots = &n
	}
	set.Allow = o.access.allow.list
	set.QoSIOPS, set.QoSBytesPerSecond, set.QoSBurstMS = o.access.iops.n, o.access.bytes.n, o.access.burst.n
	if set == (lun.SetLUN{}) {
		return usagef("nothing to set: want --description, --read-only, --max-snapshots, --allow or one of --qos-...")
	}
	return a.callLUN(cmd, "PATCH", lunPath(name), set)
}
