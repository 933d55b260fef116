package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newPoolCmd(a *app) *cobra.Command {
	return newGroup("pool", "Look after the pool", `  lunar pool status
  lunar pool check`,
		newPoolStatusCmd(a), newPoolCheckCmd(a), newPoolScrubCmd(a), newPoolCleanCmd(a), newPoolResizeCmd(a), newPoolRepairCmd(a))
}

// writePool is `pool status`.
func writePool(w io.Writer, p lun.PoolStatus) error {
	f := &fields{}
	state := p.State
	if p.Reason != nil {
		state += ": " + *p.Reason
	}
	f.add("state", state)
	f.add("capacity", humanAndExact(p.CapacityBytes))
	f.add("used", fmt.Sprintf("%s, %d%%", humanAndExact(p.UsedBytes), percentOf(p.UsedBytes, p.CapacityBytes)))
	f.add("promised", humanAndExact(p.PromisedBytes))
	f.add("shared", humanAndExact(p.SharedBytes))
	f.add("index", humanAndExact(p.IndexBytes))
	f.add("headroom", humanAndExact(p.HeadroomBytes))
	if p.ForeignBytes > 0 {
		f.add("foreign", humanAndExact(p.ForeignBytes)+", taken by others on the file system")
	}
	f.add("free", humanAndExact(p.FreeBytes))
	if p.PendingBytes > 0 {
		f.add("pending", humanAndExact(p.PendingBytes)+", on its way back")
	}
	f.add("LUN sizes", fmt.Sprintf("%s, %.2f times the capacity", humanAndExact(p.ProvisionedBytes), p.OverCommit))
	f.add("dead", humanAndExact(p.DeadBytes))
	if p.HoleBytes > 0 {
		f.add("holes", humanAndExact(p.HoleBytes)+", given back out of segments in use")
	}
	if r := p.Reclaim; r.Running || r.Pending > 0 {
		f.add("coming back", reclaimText(r))
	}
	if n := len(p.Backups); n > 0 {
		f.add("index copies", fmt.Sprintf("%d, the newest of %s; they hold %s of dead segments", n, p.Backups[0].Created.Format("2006-01-02 15:04:05 UTC"), humanSize(p.PinnedBytes)))
	}
	f.add("segments", strconv.Itoa(p.Segments))
	f.add("amplification", fmt.Sprintf("%.2f bytes written to the log for each byte", p.WriteAmplification))
	f.add("LUNs", strconv.Itoa(p.LUNs))
	f.add("snapshots", strconv.Itoa(p.Snapshots))
	return f.write(w)
}

// reclaimText says how far the giving back of deleted versions has come.
func reclaimText(r lun.ReclaimInfo) string {
	text := plural(r.Pending, "deleted version") + " wait"
	if r.Running {
		text = fmt.Sprintf("from %s, %d of %d pages, %s so far", plural(r.Pending, "deleted version"), r.PagesDone, r.PagesTotal, humanSize(r.FreedBytes))
	}
	if r.Running && r.ETASeconds != nil {
		text += fmt.Sprintf(", %s left", (time.Duration(*r.ETASeconds*1000) * time.Millisecond).Round(100*time.Millisecond))
	}
	return text
}

func writeProblems(w io.Writer, problems []lun.Problem) error {
	f := &fields{}
	for _, p := range problems {
		f.add(orDash(p.Where), p.What)
	}
	return f.write(w)
}

// printCheck prints a report; one with problems is a failure.
func (a *app) printCheck(cmd *cobra.Command, what string, r lun.CheckReport) error {
	if r.Problems == nil {
		r.Problems = []lun.Problem{}
	}
	err := a.print(cmd, r, func(w io.Writer) error {
		if r.OK && len(r.Problems) == 0 {
			_, err := fmt.Fprintln(w, "ok")
			return err
		}
		return writeProblems(w, r.Problems)
	})
	if err == nil && (!r.OK || len(r.Problems) > 0) {
		return fmt.Errorf("%s: %s found, listed on stdout; keep the folder as it is and see lunar pool repair --help", what, plural(len(r.Problems), "problem"))
	}
	return err
}

// dataConfig is the configuration of the offline tools: a folder and defaults.
func (a *app) dataConfig() (*config, error) {
	dir, hint := a.dataDir()
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("data folder %s (from %s): %w", dir, hint, err)
	}
	return &config{Data: abs, LogLevel: "warn", LogFormat: "text"}, nil
}

// withOfflinePool opens the data folder without a server and without changing it.
func (a *app) withOfflinePool(ctx context.Context, fn func(pool) error) error {
	c, err := a.dataConfig()
	if err != nil {
		return err
	}
	p, err := a.openPool(ctx, poolOptions{Config: c, ReadOnly: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	err = fn(p)
	if closeErr := p.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("closing the pool: %w", closeErr)
	}
	return err
}
