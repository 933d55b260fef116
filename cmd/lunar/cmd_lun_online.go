package main

import "github.com/spf13/cobra"

func newLUNOfflineCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "offline NAME",
		Short: "Disconnect the clients of a LUN and refuse new ones",
		Long: `Takes a LUN offline: its clients are disconnected and its export is refused until
"lunar lun online". Its snapshots stay reachable.`,
		Example:           "  lunar lun offline disk1",
		Args:              wantArgs("NAME"),
		ValidArgsFunction: a.completeLUNs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runLUNOnline(cmd, a, args[0], false)
		},
	}
}

func newLUNOnlineCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "online NAME",
		Short:             "Let clients attach to a LUN again",
		Example:           "  lunar lun online disk1",
		Args:              wantArgs("NAME"),
		ValidArgsFunction: a.completeLUNs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runLUNOnline(cmd, a, args[0], true)
		},
	}
}

func runLUNOnline(cmd *cobra.Command, a *app, name string, online bool) error {
	name, err := parseLUN(name)
	if err != nil {
		return err
	}
	return a.callLUN(cmd, "POST", lunPath(name, "online"), onlineBody{Online: online})
}
