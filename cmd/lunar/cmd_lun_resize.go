package main

import "github.com/spf13/cobra"

func newLUNResizeCmd(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "resize NAME SIZE",
		Short: "Grow a LUN, or shrink it by force",
		Long: `Changes the size of a LUN. Growing works while clients are attached; they see the
new size when they attach again. Shrinking gives up what lies behind the new end: it
needs --force, and no client may be attached. Take a snapshot first to be able to go
back: snapshots keep their own size and content, and a rollback brings both back.`,
		Example: `  lunar lun resize disk1 20G
  lunar lun resize disk1 5G --force`,
		Args:              wantArgs("NAME", "SIZE"),
		ValidArgsFunction: a.completeLUNs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runLUNResize(cmd, a, args[0], args[1], force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "shrink too")
	return cmd
}

func runLUNResize(cmd *cobra.Command, a *app, name, size string, force bool) error {
	name, err := parseLUN(name)
	if err != nil {
		return err
	}
	n, err := parseLUNSize(size)
	if err != nil {
		return err
	}
	return a.callLUN(cmd, "POST", lunPath(name, "resize"), resizeBody{SizeBytes: n, Force: force})
}
