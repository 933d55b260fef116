package main

import (
	"github.com/spf13/cobra"

	"lunar/lun"
)

func newPoolCheckCmd(a *app) *cobra.Command {
	var offline bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check that the pool's structures agree",
		Long: `Checks that tree, pages, use of segments and accounts agree. It looks at one
instant and holds nobody up meanwhile. With --offline it opens the data folder itself, while no
server runs, and changes nothing. Exit status 1 if there are problems.`,
		Example: `  lunar pool check
  lunar pool check --offline --data /srv/lunar`,
		Args: wantArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return runPoolCheck(cmd, a, offline) },
	}
	cmd.Flags().BoolVar(&offline, "offline", false, "open the data folder without a server")
	return cmd
}

func runPoolCheck(cmd *cobra.Command, a *app, offline bool) error {
	var report lun.CheckReport
	m := newMeter(cmd.ErrOrStderr(), "check", false)
	var err error
	if offline {
		err = a.withOfflinePool(cmd.Context(), func(p pool) (err error) {
			report, err = p.Check(cmd.Context(), m.set)
			return err
		})
	} else {
		err = a.longCall(cmd, apiPath("pool", "check"), m, &report)
	}
	m.end()
	if err != nil {
		return err
	}
	return a.printCheck(cmd, "pool check", report)
}

// longCall does a request that answers with its progress.
func (a *app) longCall(cmd *cobra.Command, path string, m *meter, out any) error {
	return a.withClient(func(c *client) error {
		return c.stream(cmd.Context(), "POST", path, nil, func(p progress) { m.set(p.Done, p.Total) }, out)
	})
}
