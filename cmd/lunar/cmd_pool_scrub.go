package main

import (
	"github.com/spf13/cobra"

	"lunar/lun"
)

func newPoolScrubCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "scrub",
		Short: "Read everything and verify its checksums",
		Long: `Reads every block that anything refers to and verifies its checksum, while the
clients go on. Exit status 1 if a block is damaged.`,
		Example: "  lunar pool scrub",
		Args:    wantArgs(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return runPoolScrub(cmd, a) },
	}
}

func runPoolScrub(cmd *cobra.Command, a *app) error {
	var report lun.CheckReport
	m := newMeter(cmd.ErrOrStderr(), "scrub", true)
	err := a.longCall(cmd, apiPath("pool", "scrub"), m, &report)
	m.end()
	if err != nil {
		return err
	}
	return a.printCheck(cmd, "pool scrub", report)
}
