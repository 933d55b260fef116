package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newSnapshotCmd(a *app) *cobra.Command {
	group := newGroup("snapshot", "Take and manage snapshots", `  lunar snapshot create disk1@before
  lunar snapshot list disk1`,
		newSnapshotCreateCmd(a), newSnapshotListCmd(a), newSnapshotShowCmd(a), newSnapshotSetCmd(a), newSnapshotRenameCmd(a),
		newSnapshotProtectCmd(a), newSnapshotUnprotectCmd(a), newSnapshotDeleteCmd(a))
	group.Aliases = []string{"snap"}
	return group
}

func snapshotName(s lun.SnapshotInfo) string { return s.LUN + "@" + s.Name }

// snapshotTable is `snapshot list`.
func snapshotTable(list []lun.SnapshotInfo) *table {
	t := newTable("SNAPSHOT", "CREATED", "SIZE", "UNIQUE", "REFERENCED", "CHANGED", "KEEP").without("SIZE", "CHANGED", "CREATED", "REFERENCED")
	for _, s := range list {
		t.row(snapshotName(s), humanTime(s.Created), humanSize(s.SizeBytes), humanSize(s.UniqueBytes),
			humanSize(s.ReferencedBytes), humanSize(s.ChangedBytes), keep(s))
	}
	return t
}

// keep says in a word what holds a snapshot or ends it.
func keep(s lun.SnapshotInfo) string {
	switch {
	case s.Protected && s.ProtectedUntil != nil:
		return "protected to " + s.ProtectedUntil.UTC().Format("2006-01-02 15:04Z")
	case s.Protected && s.Expires != nil:
		return "protected, " + s.Expires.UTC().Format("2006-01-02")
	case s.Protected:
		return "protected"
	case s.Expires != nil:
		return "to " + s.Expires.UTC().Format("2006-01-02 15:04Z")
	case s.Clients > 0:
		return "attached"
	}
	return "-"
}

// protection is keep's part of `snapshot show`.
func protection(s lun.SnapshotInfo) string {
	if s.ProtectedUntil != nil {
		return "yes, until " + humanTime(*s.ProtectedUntil)
	}
	return yesNo(s.Protected)
}

func labelText(labels map[string]string) string {
	pairs := make([]string, 0, len(labels))
	for k, v := range labels {
		pairs = append(pairs, k+"="+v)
	}
	slices.Sort(pairs)
	return strings.Join(pairs, " ")
}

// writeSnapshot is `snapshot show`.
func writeSnapshot(w io.Writer, s lun.SnapshotInfo) error {
	f := &fields{}
	f.add("snapshot", snapshotName(s))
	f.add("description", orDash(s.Description))
	f.add("created", humanTime(s.Created))
	expires := "never"
	if s.Expires != nil {
		expires = humanTime(*s.Expires)
	}
	f.add("expires", expires)
	f.add("protected", protection(s))
	f.add("labels", orDash(labelText(s.Labels)))
	f.add("size", humanAndExact(s.SizeBytes))
	f.add("unique", humanAndExact(s.UniqueBytes))
	f.add("referenced", humanAndExact(s.ReferencedBytes))
	f.add("changed", humanAndExact(s.ChangedBytes))
	f.add("clients", strconv.Itoa(s.Clients))
	return f.write(w)
}

// writeSnapshotNames prints one LUN@NAME a line.
func writeSnapshotNames(w io.Writer, list []lun.SnapshotInfo) error {
	for _, s := range list {
		if _, err := fmt.Fprintln(w, snapshotName(s)); err != nil {
			return err
		}
	}
	return nil
}

// callSnapshot does a request that answers with one snapshot, and prints its name.
func (a *app) callSnapshot(cmd *cobra.Command, method, path string, body any) error {
	var info lun.SnapshotInfo
	err := a.withClient(func(c *client) error {
		return c.call(cmd.Context(), method, path, body, &info)
	})
	if err != nil {
		return err
	}
	return a.print(cmd, info, func(w io.Writer) error { return writeSnapshotNames(w, []lun.SnapshotInfo{info}) })
}
