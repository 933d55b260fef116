package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"lunar/lun"
	"lunar/nbd"
)

// app holds what all verbs of one process share: the global flags, and how to
// open a pool (tests put a fake there).
type app struct {
	server   string // --server
	data     string // --data
	output   outputFormat
	openPool func(context.Context, poolOptions) (pool, error)
	newNBD   func(nbd.Options) (nbdServer, error)
	repair   func(ctx context.Context, o poolOptions, r lun.RepairOptions) ([]string, error)
}

func newApp() *app {
	return &app{output: outputTable, openPool: openLivePool, newNBD: newLiveNBD, repair: repairLivePool}
}

const rootLong = `Lunar serves block devices (LUNs) over NBD that can be snapshotted, cloned and
rolled back. "lunar serve" runs the server; every other command talks to it.

The server is found by the first of: --server unix:///PATH, LUNAR_SERVER,
--data DIR, LUNAR_DATA, ./lunar-data (the socket is DIR/admin.sock).

Sizes are bytes, or 10K 10M 10G 10T (powers of 1024, iB may follow). Names are
1 to 63 of a-z A-Z 0-9 . _ -, beginning with a letter or digit.

Exit status: 0 done; 1 refused or failed; 2 the command line cannot be parsed.
Only "lunar status --check" differs: 0 ok, 1 warning, 2 critical, 3 not reached.`

const rootExample = `  lunar serve --data ./lunar-data
  lunar lun create disk1 10G
  lunar snapshot create disk1@before
  lunar rollback disk1@before`

func newRootCmd(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:               "lunar",
		Short:             "NBD server with snapshots, clones and rollback",
		Long:              rootLong,
		Example:           rootExample,
		Version:           buildVersion().Version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              knownVerb,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("lunar {{.Version}}\n")
	flags := root.PersistentFlags()
	flags.StringVar(&a.server, "server", "", "admin socket of the server, as `unix:///PATH`")
	flags.StringVar(&a.data, "data", "", "data `DIR` of the pool")
	flags.VarP(&a.output, "output", "o", "output as `table|json`")
	root.AddCommand(
		newServeCmd(a),
		newLUNCmd(a), newSnapshotCmd(a), newRollbackCmd(a), newCloneCmd(a), newDiffCmd(a),
		newReservationCmd(a), newPoolCmd(a), newClientCmd(a),
		newStatusCmd(a), newEventsCmd(a),
		newConfigCmd(a), newTLSCmd(a), newVersionCmd(a), newCompletionCmd(),
	)
	root.SetHelpCommand(newHelpCmd(root))
	root.SetFlagErrorFunc(flagError)
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp)))
	must(root.MarkPersistentFlagDirname("data"))
	nameVerbInUsageErrors(root)
	return root
}

// newGroup makes a command that only holds verbs: alone or with an unknown verb
// it cannot be parsed.
func newGroup(use, short, example string, verbs ...*cobra.Command) *cobra.Command {
	group := &cobra.Command{
		Use: use, Short: short, Example: example,
		Args: knownVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usagef("a verb is missing: want one of %s", strings.Join(verbNames(cmd), ", "))
		},
	}
	group.AddCommand(verbs...)
	return group
}

func verbNames(cmd *cobra.Command) []string {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return names
}

// knownVerb refuses what cobra hands to a group because it found no verb for it.
func knownVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "want one of " + strings.Join(verbNames(cmd), ", ")
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf("did you mean %q?", strings.Join(near, `" or "`))
	}
	return usagef("unknown verb %q: %s", args[0], hint)
}

// wantArgs takes exactly the named arguments; a last name that ends in "..."
// stands for one or more.
func wantArgs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		many := len(names) > 0 && strings.HasSuffix(names[len(names)-1], "...")
		switch {
		case len(args) < len(names):
			return usagef("missing %s", strings.Join(names[len(args):], " and "))
		case len(args) > len(names) && !many:
			return usagef("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// wantAtMost takes the needed arguments and up to the optional ones.
func wantAtMost(needed []string, optional ...string) cobra.PositionalArgs {
	all := append(slices.Clone(needed), optional...)
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(needed) {
			return wantArgs(needed...)(cmd, args)
		}
		return wantArgs(all[:min(len(args), len(all))]...)(cmd, args)
	}
}

// nameVerbInUsageErrors lets every usage error of the tree begin with its verb
// and end with where the help is, so that no verb has to.
func nameVerbInUsageErrors(cmd *cobra.Command) {
	name := func(cmd *cobra.Command, err error) error {
		var usage *usageError
		if errors.As(err, &usage) {
			return usagef("%s: %w; %s", verbPath(cmd), err, seeHelp(cmd))
		}
		return err
	}
	if args := cmd.Args; args != nil {
		cmd.Args = func(cmd *cobra.Command, list []string) error { return name(cmd, args(cmd, list)) }
	}
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, list []string) error { return name(cmd, run(cmd, list)) }
	}
	for _, c := range cmd.Commands() {
		nameVerbInUsageErrors(c)
	}
}

// newHelpCmd is cobra's, but an unknown topic is an error.
func newHelpCmd(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [VERB]...",
		Short: "Help about any verb",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("unknown verb %q", strings.Join(args, " "))
			}
			return cmd.Help()
		},
	}
}

// must is for set-up that can only fail by a mistake in this program.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
