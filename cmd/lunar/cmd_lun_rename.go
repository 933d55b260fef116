package main

import "github.com/spf13/cobra"

func newLUNRenameCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "rename OLD NEW",
		Short:             "Rename a LUN",
		Long:              "Renames a LUN with its snapshots: the exports have the new name at once.",
		Example:           "  lunar lun rename disk1 web",
		Args:              wantArgs("OLD", "NEW"),
		ValidArgsFunction: a.completeLUNs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runLUNRename(cmd, a, args[0], args[1])
		},
	}
}

func runLUNRename(cmd *cobra.Command, a *app, from, to string) error {
	from, err := parseLUN(from)
	if err != nil {
		return err
	}
	to, err = parseLUN(to)
	if err != nil {
		return err
	}
	return a.callLUN(cmd, "POST", lunPath(from, "rename"), renameBody{Name: to})
}
