package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newConfigCmd(a *app) *cobra.Command {
	return newGroup("config", "Show and check the configuration", `  lunar config show
  lunar config check /etc/lunar/lunar.yaml`,
		newConfigShowCmd(a), newConfigCheckCmd(a))
}

const configLong = `The configuration of "lunar serve" is the first file found of --config,
./lunar.yaml and /etc/lunar/lunar.yaml; over it the environment (LUNAR_ and the
key in capitals, dots as underscores: LUNAR_INDEX_CACHE), over it the flags.`

func newConfigShowCmd(a *app) *cobra.Command {
	var running bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show every key with its value and where it comes from",
		Long: configLong + `

Without --running this is what "lunar serve" would start with here and now; with
--running it is what the server that answers was started with.`,
		Example: `  lunar config show
  LUNAR_INDEX_CACHE=1G lunar config show --config ./lunar.yaml -o json
  lunar config show --running`,
		Args: wantArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if running {
				return runConfigShowRunning(cmd, a)
			}
			return runConfigShow(cmd, a)
		},
	}
	addConfigFlags(cmd)
	cmd.Flags().BoolVar(&running, "running", false, "ask the server")
	return cmd
}

func runConfigShow(cmd *cobra.Command, a *app) error {
	c, err := loadConfig(cmd)
	if err != nil {
		return err
	}
	return printList(a, cmd, c.values, configTable)
}

func runConfigShowRunning(cmd *cobra.Command, a *app) error {
	var values []configValue
	err := a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "GET", apiPath("config"), nil, &values)
	})
	if err != nil {
		return err
	}
	return printList(a, cmd, values, configTable)
}

func configTable(values []configValue) *table {
	t := newTable("KEY", "VALUE", "SOURCE")
	for _, v := range values {
		t.row(v.Key, orDash(v.Value), v.Source)
	}
	return t
}

func newConfigCheckCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "check FILE",
		Short:   "Check a configuration file",
		Long:    configLong + "\n\nThe file is checked by itself; exit status 1 if anything is wrong with it.",
		Example: "  lunar config check /etc/lunar/lunar.yaml",
		Args:    wantArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runConfigCheck(cmd, a, args[0])
		},
	}
}

func runConfigCheck(cmd *cobra.Command, a *app, file string) error {
	if err := checkConfigFile(file); err != nil {
		// The verb was understood: what is wrong is the file.
		return &statusError{exitFailed, "config check: " + err.Error()}
	}
	result := struct {
		File string `json:"file"`
		OK   bool   `json:"ok"`
	}{file, true}
	return a.print(cmd, result, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s: ok\n", file)
		return err
	})
}
