package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newEventsCmd(a *app) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened, and with --follow what happens",
		Long: `Shows the last 1000 events of the server: what administrators did and what it did by
itself. With -o json: one object a line.`,
		Example: `  lunar events
  lunar events --follow -o json`,
		Args: wantArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return runEvents(cmd, a, follow) },
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new events until interrupted")
	return cmd
}

func runEvents(cmd *cobra.Command, a *app, follow bool) error {
	path := apiPath("events")
	if follow {
		path += "?follow=true"
	}
	out := cmd.OutOrStdout()
	err := a.withClient(func(c *client) error {
		return c.stream(cmd.Context(), "GET", path, func(text json.RawMessage) error {
			var e lun.Event
			if err := json.Unmarshal(text, &e); err != nil {
				return err
			}
			if a.output == outputJSON {
				return printJSONLine(out, e)
			}
			return writeEvent(out, e)
		}, nil, nil)
	})
	if follow && cmd.Context().Err() != nil {
		return nil // to be interrupted is how a follower ends
	}
	return err
}

// writeEvent prints one event; a long message goes on in the next line.
func writeEvent(w io.Writer, e lun.Event) error {
	head := fmt.Sprintf("%s  %-16s  ", humanTime(e.Time), strings.Map(printable, e.Type))
	text := e.Message
	if e.LUN != nil && !strings.Contains(text, *e.LUN) {
		text = *e.LUN + ": " + text
	}
	for i, line := range wrap(strings.Map(printable, text), max(tableWidth-len(head), 20)) {
		if i > 0 {
			head = strings.Repeat(" ", len(head))
		}
		if _, err := fmt.Fprintln(w, head+line); err != nil {
			return err
		}
	}
	return nil
}
