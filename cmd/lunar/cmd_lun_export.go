package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"lunar/lun"
)

func newLUNExportCmd(a *app) *cobra.Command {
	var force, skip bool
	cmd := &cobra.Command{
		Use:   "export NAME[@SNAPSHOT] FILE|-",
		Short: "Write a LUN or snapshot to a raw image",
		Long: `Writes a sparse raw image of a snapshot, or of a LUN as it is at one instant (from
a temporary snapshot that is removed afterwards; clients go on). FILE appears
under its name only when all of it is there and durable. "-" is stdout.`,
		Example: `  lunar lun export disk1 disk1.raw
  lunar lun export disk1@before - | zstd > before.raw.zst`,
		Args:              wantArgs("NAME[@SNAPSHOT]", "FILE"),
		ValidArgsFunction: completeThenFiles(a.completeVersions),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runLUNExport(cmd, a, args[0], args[1], force, skip)
		},
	}
	cmd.Flags().BoolVar(&skip, "skip-damaged", false, "go on behind blocks that cannot be read: they are zero in FILE, and listed")
	cmd.Flags().BoolVar(&force, "force", false, "replace FILE if it exists")
	return cmd
}

func runLUNExport(cmd *cobra.Command, a *app, version, file string, force, skip bool) error {
	ref, err := parseVersion(version)
	if err != nil {
		return err
	}
	target, err := openExportTarget(file, force, cmd.OutOrStdout())
	if err != nil {
		return err
	}
	defer target.abort()
	m := newMeter(cmd.ErrOrStderr(), "export", true)
	var done exportResult
	err = a.withClient(func(c *client) error {
		done, err = c.exportLUN(cmd.Context(), ref, target, m, skip)
		return err
	})
	m.end()
	if err == nil {
		err = target.finish()
	}
	done.Export, done.File = version, file
	if err == nil && file == "-" {
		err = done.failure()
	}
	if err != nil || file == "-" {
		return err
	}
	err = a.print(cmd, done, func(w io.Writer) error {
		for _, d := range done.Damaged {
			if _, err := fmt.Fprintf(w, "damaged: %d bytes at offset %d\n", d.Length, d.Offset); err != nil {
				return err
			}
		}
		_, err := fmt.Fprintf(w, "%s: %s of %s, %s of it data\n", oneLine(file), humanSize(done.SizeBytes), version, humanSize(done.DataBytes))
		return err
	})
	return errors.Join(err, done.failure())
}

// exportResult is what an export made.
type exportResult struct {
	Export    string `json:"export"`
	File      string `json:"file"`
	SizeBytes int64  `json:"size_bytes"`
	DataBytes int64  `json:"data_bytes"`

	Damaged []byteRange `json:"damaged,omitempty"`
}

type byteRange struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

func (r *exportResult) damaged(offset, length int64) {
	if n := len(r.Damaged); n > 0 && r.Damaged[n-1].Offset+r.Damaged[n-1].Length == offset {
		r.Damaged[n-1].Length += length
		return
	}
	r.Damaged = append(r.Damaged, byteRange{offset, length})
}

// failure says that something could not be read.
func (r *exportResult) failure() error {
	if len(r.Damaged) == 0 {
		return nil
	}
	d := r.Damaged[0]
	return fmt.Errorf("export of %s: %s could not be read, and are zero in the copy; the first has %d bytes at offset %d", r.Export, plural(len(r.Damaged), "range"), d.Length, d.Offset)
}

// exportLUN copies the frames of the answer to target.
func (c *client) exportLUN(ctx context.Context, ref lun.SnapshotRef, target exportTarget, m *meter, skip bool) (exportResult, error) {
	var done exportResult
	path := lunPath(ref.LUN, "export") + "?" + url.Values{"snapshot": {ref.Name}, "skip_damaged": {strconv.FormatBool(skip)}}.Encode()
	req, err := c.request(ctx, "GET", path, nil)
	if err != nil {
		return done, err
	}
	resp, err := c.send(req)
	if err != nil {
		return done, err
	}
	defer resp.Body.Close()
	frames := &frameReader{r: bufio.NewReaderSize(resp.Body, 256<<10)}
	buf := make([]byte, maxFrameData)
	for {
		fr, err := frames.next()
		if err != nil {
			return done, c.exportError(ctx, err)
		}
		switch fr.kind {
		case frameEnd:
			return done, nil
		case frameSize:
			done.SizeBytes = fr.length
			err = target.setSize(fr.length)
		case frameDamaged:
			done.damaged(fr.offset, fr.length)
		case frameData:
			p := buf[:fr.length]
			if err := frames.payload(p); err != nil {
				return done, c.exportError(ctx, err)
			}
			err = target.writeAt(p, fr.offset)
			done.DataBytes += fr.length
			m.set(fr.offset+fr.length, done.SizeBytes)
		}
		if err != nil {
			return done, err
		}
	}
}

func (c *client) exportError(ctx context.Context, err error) error {
	if ctxErr := ctx.Err(); ctxErr != nil {
		return ctxErr
	}
	if errors.Is(err, errCutOff) {
		return fmt.Errorf("export: %w; see whether the server still runs", err)
	}
	return err
}
