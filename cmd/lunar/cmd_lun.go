package main

import (
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newLUNCmd(a *app) *cobra.Command {
	return newGroup("lun", "Make and manage LUNs", `  lunar lun create disk1 10G
  lunar lun list`,
		newLUNCreateCmd(a), newLUNListCmd(a), newLUNShowCmd(a), newLUNSetCmd(a),
		newLUNResizeCmd(a), newLUNRenameCmd(a), newLUNDeleteCmd(a),
		newLUNOfflineCmd(a), newLUNOnlineCmd(a), newLUNImportCmd(a), newLUNExportCmd(a))
}

// lunTable is `lun list`, and what verbs print that change a LUN.
func lunTable(list []lun.LUNInfo) *table {
	t := newTable("NAME", "SIZE", "KIND", "USED", "AREA", "SNAPSHOTS", "CLIENTS", "STATE").without("CLIENTS", "AREA", "KIND", "SNAPSHOTS")
	for _, l := range list {
		t.row(l.Name, humanSize(l.SizeBytes), l.Kind, humanSize(l.UsedBytes), humanSize(l.Area.UsedBytes),
			strconv.Itoa(l.Snapshots), strconv.Itoa(l.Clients), lunState(l))
	}
	return t
}

func lunState(l lun.LUNInfo) string {
	switch {
	case !l.Online:
		return "offline"
	case l.ReadOnly:
		return "read-only"
	}
	return "online"
}

// writeLUN is `lun show`.
func writeLUN(w io.Writer, l lun.LUNInfo) error {
	f := &fields{}
	f.add("name", l.Name)
	f.add("uuid", l.UUID)
	f.add("description", orDash(l.Description))
	f.add("size", humanAndExact(l.SizeBytes))
	f.add("kind", l.Kind)
	f.add("state", lunState(l))
	f.add("read-only", yesNo(l.ReadOnly))
	f.add("used", humanAndExact(l.UsedBytes))
	f.add("referenced", humanAndExact(l.ReferencedBytes))
	f.add("area used", humanAndExact(l.Area.UsedBytes))
	f.add("area reserve", humanAndExact(l.Area.ReserveBytes))
	f.add("area limit", exactLimit(l.Area.LimitBytes))
	f.add("on full", l.Area.OnFull)
	most := ", any number"
	if l.MaxSnapshots > 0 {
		most = " of at most " + strconv.Itoa(l.MaxSnapshots)
	}
	f.add("snapshots", strconv.Itoa(l.Snapshots)+most)
	f.add("clients", strconv.Itoa(l.Clients))
	f.add("allow", allowText(l.Allow))
	f.add("qos", qosText(l.QoS))
	f.add("parent", deref(l.Parent))
	f.add("created", humanTime(l.Created))
	return f.write(w)
}

// callLUN does a request that answers with one LUN, and prints it.
func (a *app) callLUN(cmd *cobra.Command, method, path string, body any) error {
	var info lun.LUNInfo
	err := a.withClient(func(c *client) error {
		return c.call(cmd.Context(), method, path, body, &info)
	})
	if err != nil {
		return err
	}
	return printOne(a, cmd, info, lunTable)
}
