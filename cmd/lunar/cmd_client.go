package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newClientCmd(a *app) *cobra.Command {
	return newGroup("client", "Show and disconnect NBD clients", "  lunar client list",
		newClientListCmd(a), newClientDisconnectCmd(a))
}

func clientTable(list []lun.ClientInfo) *table {
	t := newTable("EXPORT", "ID", "ADDRESS", "SINCE", "TLS").without("SINCE", "TLS")
	for _, c := range list {
		t.row(c.Export, strconv.FormatUint(c.ID, 10), c.Address, humanTime(c.Since), tlsText(c))
	}
	return t
}

// tlsText is whether a client came through TLS, and by what name.
func tlsText(c lun.ClientInfo) string {
	if c.CommonName != "" {
		return "cn=" + c.CommonName
	}
	return yesNo(c.TLS)
}

func newClientListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the clients that are attached",
		Long:    "Lists the connections that have opened an export; a client may have several.",
		Example: "  lunar client list",
		Args:    wantArgs(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return runClientList(cmd, a) },
	}
}

func runClientList(cmd *cobra.Command, a *app) error {
	var list []lun.ClientInfo
	err := a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "GET", apiPath("clients"), nil, &list)
	})
	if err != nil {
		return err
	}
	return printList(a, cmd, list, clientTable)
}

func newClientDisconnectCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "disconnect ID",
		Short: "End one connection",
		Long: `Ends one connection: what it has asked is answered first. The client may come back;
"lunar lun offline" keeps it out.`,
		Example:           "  lunar client disconnect 7",
		Args:              wantArgs("ID"),
		ValidArgsFunction: a.completeClients,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runClientDisconnect(cmd, a, args[0])
		},
	}
}

func runClientDisconnect(cmd *cobra.Command, a *app, arg string) error {
	id, err := strconv.ParseUint(arg, 10, 64)
	if err != nil {
		return usagef("client id %q: want a number of lunar client list", arg)
	}
	var info lun.ClientInfo
	err = a.withClient(func(c *client) error {
		return c.call(cmd.Context(), "DELETE", apiPath("clients", arg), nil, &info)
	})
	if err != nil {
		return err
	}
	return a.print(cmd, info, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "client %d of %s at %s\n", id, info.Export, info.Address)
		return err
	})
}
