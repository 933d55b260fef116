package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"lunar/lun"
)

type importOptions struct {
	thick bool
	size  lunSizeFlag
}

func newLUNImportCmd(a *app) *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use:   "import NAME FILE|-",
		Short: "Make a LUN of a disk image",
		Long: `Makes the LUN NAME of a raw or qcow2 image, or of what comes from stdin ("-").
What is a hole or zero in FILE takes no space in a thin LUN. The LUN is offline
until all of it is there; an import that fails leaves no LUN.

The size is that of the image, rounded up to 512 bytes (at least 4 KiB); --size
makes the LUN larger. qcow2 needs qemu-img, and space in $TMPDIR.`,
		Example: `  lunar lun import disk1 debian.raw
  lunar lun import disk1 debian.qcow2 --size 20G
  zstdcat disk.raw.zst | lunar lun import disk1 -`,
		Args:              wantArgs("NAME", "FILE"),
		ValidArgsFunction: completeThenFiles(nil),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runLUNImport(cmd, a, args[0], args[1], o)
		},
	}
	cmd.Flags().BoolVar(&o.thick, "thick", false, "reserve the whole size")
	cmd.Flags().Var(&o.size, "size", "size of the LUN, if larger than the image")
	return cmd
}

func runLUNImport(cmd *cobra.Command, a *app, name, file string, o importOptions) error {
	name, err := parseLUN(name)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	src, err := openImportSource(ctx, file, cmd.InOrStdin())
	if err != nil {
		return err
	}
	defer src.close()
	m := newMeter(cmd.ErrOrStderr(), "import", true)
	size, produce, err := src.plan(ctx, o.size.n, m)
	if err != nil {
		return err
	}
	var info lun.LUNInfo
	err = a.withClient(func(c *client) error {
		info, err = c.importLUN(ctx, name, size, o.thick, produce)
		return err
	})
	m.end()
	if err != nil {
		return err
	}
	return printOne(a, cmd, info, lunTable)
}

// plan says how large the LUN is to be and how its content is sent.
func (s *importSource) plan(ctx context.Context, size int64, m *meter) (int64, func(context.Context, *frameWriter) error, error) {
	if s.file != nil {
		switch {
		case size == 0 && s.size == 0:
			return 0, nil, fmt.Errorf("import: %s is empty; give the size of the LUN with --size", s.name)
		case size == 0:
			size = lunSizeFor(s.size)
		case size < s.size:
			return 0, nil, fmt.Errorf("import: --size %d is less than the %d bytes of %s; leave it out or give a larger one", size, s.size, s.name)
		}
		return size, func(ctx context.Context, out *frameWriter) error { return s.sendFile(ctx, out, m) }, nil
	}
	in := &streamReader{r: s.stream, buf: make([]byte, streamChunk)}
	first, err := in.next(ctx)
	if err != nil {
		return 0, nil, fmt.Errorf("import: %s: %w", s.name, err)
	}
	if len(first) == 0 && size == 0 {
		return 0, nil, fmt.Errorf("import: %s is empty; give the size of the LUN with --size", s.name)
	}
	begin := size
	if begin == 0 {
		begin = lunSizeFor(int64(len(first)))
	}
	return begin, func(ctx context.Context, out *frameWriter) error {
		return s.sendStream(ctx, in, first, size, out, m)
	}, nil
}

// importGrace is how long an interrupted import waits for the server to remove
// the half-made LUN.
const importGrace = 2 * time.Second

// importLUN sends what produce writes. If that fails the server is told, and
// answers when the half-made LUN is gone.
func (c *client) importLUN(ctx context.Context, name string, size int64, thick bool, produce func(context.Context, *frameWriter) error) (lun.LUNInfo, error) {
	var info lun.LUNInfo
	reqCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(importGrace, cancel) })
	defer stop()

	pr, pw := io.Pipe()
	defer func() { _ = pr.Close() }()
	// A request that is given up still waits for its body.
	unblock := context.AfterFunc(reqCtx, func() { pr.CloseWithError(context.Canceled) })
	defer unblock()
	query := url.Values{"size": {strconv.FormatInt(size, 10)}, "thick": {strconv.FormatBool(thick)}}
	req, err := c.request(reqCtx, "POST", lunPath(name, "import")+"?"+query.Encode(), pr)
	if err != nil {
		return info, err
	}
	req.Header.Set("Expect", "100-continue")

	failed := make(chan error, 1)
	go func() {
		buffered := bufio.NewWriterSize(pw, 256<<10)
		out := &frameWriter{w: buffered}
		if err := produce(ctx, out); err != nil {
			failed <- err
			_ = out.fail(err)
		} else {
			_ = out.end()
		}
		_ = buffered.Flush()
		_ = pw.Close() // never fails
	}()

	resp, err := c.send(req)
	select {
	case cause := <-failed:
		// The pipe breaks when the server refuses: then its reason is the cause.
		if err == nil || !errors.Is(cause, io.ErrClosedPipe) {
			if err == nil {
				resp.Body.Close()
			}
			return info, cause
		}
	default:
	}
	if err != nil {
		return info, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&info); err != nil {
		return info, c.broken(ctx, err)
	}
	return info, nil
}
