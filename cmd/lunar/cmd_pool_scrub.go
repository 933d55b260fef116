package main

import (
	"fmt"
	"io"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newPoolScrubCmd(a *app) *cobra.Command {
	var restart bool
	var pace string
	cmd := &cobra.Command{
		Use:   "scrub",
		Short: "Read everything and verify its checksums",
		Long: `Reads every block that anything refers to and verifies its checksum, follows the headers
of the segments, and verifies the files of the index and its copies, while the clients
go on. It lists each damaged range once, with every LUN and LUN@SNAPSHOT that shows it;
which file of a guest that is, only the guest can tell. A scrub that was interrupted,
also by a restart of the server, goes on where it stopped. The server scrubs by itself
every scrub.every (30d). Exit status 1 if something is damaged.`,
		Example: `  lunar pool scrub
  lunar pool scrub --restart --pace none`,
		Args: wantArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return runPoolScrub(cmd, a, restart, pace) },
	}
	cmd.Flags().BoolVar(&restart, "restart", false, "begin at the beginning")
	cmd.Flags().StringVar(&pace, "pace", "", "read at most `SIZE` a second, or none for no bound (default scrub.pace)")
	return cmd
}

func runPoolScrub(cmd *cobra.Command, a *app, restart bool, pace string) error {
	query := url.Values{}
	if restart {
		query.Set("restart", "true")
	}
	switch {
	case pace == "none":
		query.Set("pace", "-1")
	case pace != "":
		n, err := lun.ParseSize(pace)
		if err != nil || n < 1<<20 {
			return usagef("pace %q: want a size of at least 1M, or none", pace)
		}
		query.Set("pace", strconv.FormatInt(n, 10))
	}
	path := apiPath("pool", "scrub")
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	var report lun.ScrubReport
	m := newMeter(cmd.ErrOrStderr(), "scrub", true)
	err := a.longCall(cmd, path, m, &report)
	m.end()
	if err != nil {
		return err
	}
	if report.OK || a.output != outputTable {
		err = a.print(cmd, report, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, "ok")
			return err
		})
		if err != nil || report.OK {
			return err
		}
	} else if err = a.print(cmd, report, func(w io.Writer) error { return writeProblems(w, report.Problems) }); err != nil {
		return err
	}
	return fmt.Errorf("pool scrub: %s found, listed on stdout; overwrite the blocks, restore them from a backup, or roll back", plural(len(report.Problems), "damaged place"))
}
