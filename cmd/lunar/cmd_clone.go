package main

import "github.com/spf13/cobra"

func newCloneCmd(a *app) *cobra.Command {
	var thick bool
	cmd := &cobra.Command{
		Use:   "clone LUN[@NAME] NEW",
		Short: "Make a LUN that begins as a snapshot or LUN",
		Long: `Makes the LUN NEW with the content of a snapshot, or of a LUN as it is now. It
shares the blocks of its source and depends on nothing: source, snapshots and
clones can be deleted in any order.`,
		Example: `  lunar clone golden@v3 web1
  lunar clone disk1 disk1-copy --thick`,
		Args:              wantArgs("LUN[@NAME]", "NEW"),
		ValidArgsFunction: a.completeVersions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runClone(cmd, a, args[0], args[1], thick)
		},
	}
	cmd.Flags().BoolVar(&thick, "thick", false, "promise the clone its whole size")
	return cmd
}

func runClone(cmd *cobra.Command, a *app, source, name string, thick bool) error {
	ref, err := parseVersion(source)
	if err != nil {
		return err
	}
	name, err = parseLUN(name)
	if err != nil {
		return err
	}
	return a.callLUN(cmd, "POST", lunPath(ref.LUN, "clone"), cloneBody{Snapshot: ref.Name, Name: name, Thick: thick})
}
