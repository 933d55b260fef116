package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"syscall"
	"time"

	"lunar/lun"
)

// temporaryLabel marks the snapshots that exports make. Those that a server left
// behind when it died go when the next one starts.
const temporaryLabel = reservedLabel + "temporary"

// removeTemporarySnapshots is for the start, when no export can be running.
func removeTemporarySnapshots(ctx context.Context, p pool) error {
	left := p.Labelled(temporaryLabel)
	if len(left) == 0 {
		return nil
	}
	_, err := p.DeleteSnapshots(ctx, left, lun.DeleteOptions{Force: true})
	return err
}

// exportLUN answers with the frames of a snapshot, or of a LUN through a
// temporary snapshot, which is gone before the end frame is sent.
func (s *admin) exportLUN(w http.ResponseWriter, r *http.Request) error {
	name, snapshot := r.PathValue("lun"), r.URL.Query().Get("snapshot")
	remove := func() error { return nil }
	// A pool that takes no writes takes no snapshot either, and needs none.
	if snapshot == "" && s.pool.Status().State == "ok" {
		ref, err := s.temporarySnapshot(r.Context(), name)
		if err != nil {
			return err
		}
		snapshot = ref.Name
		// The client may go away at any time; the snapshot goes all the same.
		ctx := context.WithoutCancel(r.Context())
		remove = func() error {
			_, err := s.pool.DeleteSnapshots(ctx, []lun.SnapshotRef{ref}, lun.DeleteOptions{Force: true})
			return err
		}
	}
	v, err := s.pool.OpenVolume(name, snapshot)
	if err != nil {
		return errors.Join(err, remove())
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	buffered := bufio.NewWriterSize(w, 256<<10)
	out := &frameWriter{w: buffered}
	err = sendVolume(r.Context(), v, out, queryBool(r, "skip_damaged"))
	err = errors.Join(err, v.Close(), remove())
	if err != nil {
		_ = out.fail(unlessStopping(r.Context(), fmt.Errorf("export of %s: %w", name, err)))
	} else {
		_ = out.end()
	}
	_ = buffered.Flush()
	return nil
}

func (s *admin) temporarySnapshot(ctx context.Context, name string) (lun.SnapshotRef, error) {
	ref := lun.SnapshotRef{LUN: name, Name: "export-" + time.Now().UTC().Format("20060102T150405.000000000Z")}
	_, err := s.pool.CreateSnapshots(ctx, []lun.SnapshotRequest{{LUN: name, Name: ref.Name}}, lun.SnapshotOptions{
		Labels:      map[string]string{temporaryLabel: "export"},
		Description: "temporary, of a running export",
	})
	if err != nil {
		return ref, fmt.Errorf("export of %s: no snapshot to read from: %w", name, err)
	}
	return ref, nil
}

// sendVolume writes what is not zero of v. skip says that blocks which cannot be
// read are named, and no reason to stop.
func sendVolume(ctx context.Context, v volume, out *frameWriter, skip bool) error {
	size := v.Size()
	if err := out.size(size); err != nil {
		return err
	}
	buf := make([]byte, maxFrameData)
	for off := int64(0); off < size; {
		var from, to int64
		next := size
		// One run of data at a time: what is read must not be held by Extents.
		err := v.Extents(off, size-off, func(at, n int64, hole, zero bool) bool {
			if hole || zero {
				next = at + n
				return true
			}
			from, to, next = at, at+n, at+n
			return false
		})
		if err != nil {
			return err
		}
		if next <= off {
			return fmt.Errorf("extents end at %d of %d bytes", off, size)
		}
		if err := sendRange(ctx, v, out, from, to, buf, skip); err != nil {
			return err
		}
		off = next
	}
	return nil
}

func sendRange(ctx context.Context, v volume, out *frameWriter, from, to int64, buf []byte, skip bool) error {
	for from < to {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(to-from, int64(len(buf)))]
		if err := v.ReadAt(p, from); err != nil {
			if !skip || !errors.Is(err, syscall.EIO) {
				return err
			}
			if err := readAround(v, out, p, from); err != nil {
				return err
			}
		}
		if err := out.data(p, from); err != nil {
			return err
		}
		from += int64(len(p))
	}
	return nil
}

// readAround reads block by block, and leaves zeroes where one cannot be read.
func readAround(v volume, out *frameWriter, p []byte, from int64) error {
	for at := 0; at < len(p); at += zeroUnit {
		b := p[at:min(at+zeroUnit, len(p))]
		if err := v.ReadAt(b, from+int64(at)); errors.Is(err, syscall.EIO) {
			clear(b)
			if err := out.damaged(from+int64(at), int64(len(b))); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
	}
	return nil
}
