package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/url"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newDiffCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "diff LUN@A [LUN@B | LUN]",
		Short: "List what changed from one version of a LUN to another",
		Long: `Lists the ranges that differ from LUN@A to LUN@B, or to the LUN as it is now. "data"
is to be copied, "hole" is zero in the second one. The second may be of another LUN of
the same family: of a clone, or of the LUN that was cloned.`,
		Example: `  lunar diff disk1@mon
  lunar diff disk1@mon disk1@tue -o json
  lunar diff golden@v1 vm7`,
		Args:              wantAtMost([]string{"LUN@A"}, "LUN@B"),
		ValidArgsFunction: a.completeDiff,
		RunE:              func(cmd *cobra.Command, args []string) error { return runDiff(cmd, a, args) },
	}
}

func runDiff(cmd *cobra.Command, a *app, args []string) error {
	from, err := parseSnapshotRef(args[0])
	if err != nil {
		return err
	}
	to := lun.SnapshotRef{LUN: from.LUN}
	if len(args) > 1 {
		if to, err = parseVersion(args[1]); err != nil {
			return err
		}
	}
	path := lunPath(from.LUN, "diff") + "?" + url.Values{"from": {from.Name}, "to_lun": {to.LUN}, "to": {to.Name}}.Encode()
	out := newDiffWriter(a, cmd.OutOrStdout())
	err = a.withClient(func(c *client) error {
		var onProgress func(progress)
		if !isTerminal(cmd.OutOrStdout()) { // there the ranges themselves show it
			m := newMeter(cmd.ErrOrStderr(), "comparing", true)
			defer m.end()
			onProgress = func(p progress) { m.set(p.Done, p.Total) }
		}
		return c.stream(cmd.Context(), "GET", path, func(text json.RawMessage) error {
			var d lun.DiffRange
			if err := json.Unmarshal(text, &d); err != nil {
				return err
			}
			return out.add(d)
		}, onProgress, nil)
	})
	if err != nil {
		return err
	}
	return out.end()
}

// diffWriter prints ranges as they come: there may be millions. Nothing is
// printed before the first of them, so that a refusal has no output.
type diffWriter struct {
	w     *bufio.Writer
	json  bool
	lines int
}

func newDiffWriter(a *app, w io.Writer) *diffWriter {
	return &diffWriter{w: bufio.NewWriter(w), json: a.output == outputJSON}
}

func (d *diffWriter) begin() {
	if d.json {
		fmt.Fprint(d.w, "[")
	} else {
		fmt.Fprintf(d.w, "%-16s  %-16s  %s\n", "OFFSET", "LENGTH", "KIND")
	}
}

func (d *diffWriter) add(r lun.DiffRange) error {
	if d.lines == 0 {
		d.begin()
	}
	d.lines++
	if !d.json {
		_, err := fmt.Fprintf(d.w, "%-16d  %-16d  %s\n", r.Offset, r.Length, r.Kind)
		return err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if d.lines > 1 {
		fmt.Fprint(d.w, ",")
	}
	fmt.Fprint(d.w, "\n  ")
	_, err = d.w.Write(text)
	return err
}

func (d *diffWriter) end() error {
	if d.lines == 0 {
		d.begin()
	}
	if d.json {
		if d.lines > 0 {
			fmt.Fprint(d.w, "\n")
		}
		fmt.Fprint(d.w, "]\n")
	}
	return d.w.Flush()
}
