package main

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lunar/lun"
)

var shells = []string{"bash", "zsh", "fish", "powershell"}

func newCompletionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print the completion script of a shell",
		Long: `Prints a script that completes verbs, flags, and through the server the names of
LUNs, snapshots and clients.`,
		Example: `  source <(lunar completion bash)
  lunar completion bash > /etc/bash_completion.d/lunar
  lunar completion zsh > "${fpath[1]}/_lunar"`,
		Args:      wantArgs("SHELL"),
		ValidArgs: shells,
		RunE:      func(cmd *cobra.Command, args []string) error { return runCompletion(cmd, args[0]) },
	}
}

func runCompletion(cmd *cobra.Command, shell string) error {
	root, out := cmd.Root(), cmd.OutOrStdout()
	switch shell {
	case "bash":
		return root.GenBashCompletionV2(out, true)
	case "zsh":
		return root.GenZshCompletion(out)
	case "fish":
		return root.GenFishCompletion(out, true)
	case "powershell":
		return root.GenPowerShellCompletionWithDesc(out)
	}
	return usagef("unknown shell %q: want one of %s", shell, strings.Join(shells, ", "))
}

// completionTimeout keeps a shell from hanging with a server that does.
const completionTimeout = 2 * time.Second

type completer = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective)

func completeNothing(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeThenFiles completes the first argument by first (nil: not at all) and
// the second as a file.
func completeThenFiles(first completer) completer {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		switch {
		case len(args) == 1:
			return nil, cobra.ShellCompDirectiveDefault
		case len(args) == 0 && first != nil:
			return first(cmd, args, typed)
		}
		return completeNothing(cmd, args, typed)
	}
}

// completeLUNs completes the first argument; snapshot create takes more.
func (a *app) completeLUNs(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 && !strings.HasSuffix(cmd.Use, "...") {
		return completeNothing(cmd, args, typed)
	}
	return a.complete(typed, args, true, false)
}

func (a *app) completeSnapshots(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return completeNothing(cmd, args, typed)
	}
	return a.complete(typed, args, false, true)
}

func (a *app) completeManySnapshots(_ *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	return a.complete(typed, args, false, true)
}

func (a *app) completeVersions(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return completeNothing(cmd, args, typed)
	}
	return a.complete(typed, args, true, true)
}

// completeDiff completes two versions, the second of the same LUN: clones may be named too, but are many.
func (a *app) completeDiff(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.completeSnapshots(cmd, args, typed)
	case 1:
		name, _, _ := strings.Cut(args[0], "@")
		names, directive := a.complete(typed, args, true, true)
		return slices.DeleteFunc(names, func(s string) bool {
			of, _, _ := strings.Cut(s, "@")
			return of != name
		}), directive
	}
	return completeNothing(cmd, args, typed)
}

// complete asks the server for names that begin as typed and are not there yet.
// Whatever goes wrong, the shell just completes nothing.
func (a *app) complete(typed string, taken []string, luns, snapshots bool) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
	defer cancel()
	var names []string
	_ = a.withClient(func(c *client) error {
		if luns {
			var list []lun.LUNInfo
			if err := c.call(ctx, "GET", apiPath("luns"), nil, &list); err != nil {
				return err
			}
			for _, l := range list {
				names = append(names, l.Name)
			}
		}
		// A list of LUNs grows to one of snapshots only once there is an @.
		if snapshots && (!luns || strings.Contains(typed, "@")) {
			var list []lun.SnapshotInfo
			if err := c.call(ctx, "GET", apiPath("snapshots"), nil, &list); err != nil {
				return err
			}
			for _, s := range list {
				names = append(names, snapshotName(s))
			}
		}
		return nil
	})
	return slices.DeleteFunc(names, func(s string) bool {
		return !strings.HasPrefix(s, typed) || slices.Contains(taken, s)
	}), cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeClients(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return completeNothing(cmd, args, typed)
	}
	ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
	defer cancel()
	var list []lun.ClientInfo
	_ = a.withClient(func(c *client) error {
		return c.call(ctx, "GET", apiPath("clients"), nil, &list)
	})
	var ids []string
	for _, c := range list {
		if id := strconv.FormatUint(c.ID, 10); strings.HasPrefix(id, typed) {
			ids = append(ids, id+"\t"+c.Export+" at "+c.Address)
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
