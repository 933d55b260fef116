package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"lunar/lun"
)

// importNote is the description of a LUN while its import runs. A server that
// dies in an import leaves the LUN offline with it, for people to see and delete.
const importNote = "import not finished"

// importLUN makes a LUN of the frames in the request's body. Until everything is
// there and durable the LUN is offline: nobody can attach to a half of it. An
// import that fails leaves no LUN.
//
// The answer to a failure is sent while the client still sends: both sides go on
// at the same time (full duplex), and what still comes in is thrown away.
func (s *admin) importLUN(w http.ResponseWriter, r *http.Request) error {
	req, err := importRequest(r)
	if err != nil {
		return err
	}
	rc := http.NewResponseController(w)
	if err := rc.EnableFullDuplex(); err != nil {
		return err
	}
	// The client may go away at any time; what was begun is ended all the same.
	ctx := context.WithoutCancel(r.Context())
	if _, err := s.pool.CreateLUN(ctx, req); err != nil {
		return err
	}
	info, err := s.fillLUN(ctx, r, req.Name)
	if err == nil {
		return writeJSON(w, info)
	}
	if _, undo := s.pool.DeleteLUN(ctx, req.Name, true); undo != nil {
		err = fmt.Errorf("%w; the half-made LUN %s could not be removed: %w", err, req.Name, undo)
	}
	writeError(w, unlessStopping(r.Context(), err))
	if rc.Flush() == nil {
		_, _ = io.Copy(io.Discard, r.Body)
	}
	return nil
}

func importRequest(r *http.Request) (lun.CreateLUN, error) {
	req := lun.CreateLUN{Name: r.PathValue("lun"), Thick: queryBool(r, "thick"), Description: importNote}
	size, err := strconv.ParseInt(r.URL.Query().Get("size"), 10, 64)
	if err != nil {
		return req, lun.Errorf(lun.ErrInvalid, "import: size %q: want bytes", r.URL.Query().Get("size"))
	}
	req.SizeBytes = size
	return req, lun.CheckLUNSize(size)
}

// fillLUN gives the new LUN its content. The volume is opened first: an offline
// LUN is opened for nobody.
func (s *admin) fillLUN(ctx context.Context, r *http.Request, name string) (lun.LUNInfo, error) {
	none := lun.LUNInfo{}
	v, err := s.pool.OpenVolume(name, "")
	if err != nil {
		return none, err
	}
	_, err = s.pool.SetOnline(ctx, name, false)
	if err == nil {
		err = s.receive(r.Context(), name, v, r.Body)
	}
	if err = errors.Join(err, v.Close()); err != nil {
		return none, fmt.Errorf("import of %s: %w", name, err)
	}
	empty := ""
	if _, err := s.pool.SetLUN(ctx, name, lun.SetLUN{Description: &empty}); err != nil {
		return none, err
	}
	return s.pool.SetOnline(ctx, name, true)
}

// receive writes the frames of body into the LUN and makes them durable.
func (s *admin) receive(ctx context.Context, name string, v volume, body io.Reader) error {
	frames := &frameReader{r: bufio.NewReaderSize(body, 256<<10), size: v.Size()}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		fr, err := frames.next()
		if err != nil {
			return err
		}
		switch fr.kind {
		case frameEnd:
			return v.Flush()
		case frameSize:
			if err := s.grow(ctx, name, v, fr.length); err != nil {
				return err
			}
		case frameDamaged:
			return badFrame("damaged blocks in what is to be imported")
		case frameData:
			p := v.Buffer(int(fr.length))
			if err := frames.payload(p); err != nil {
				v.Discard(p)
				return err
			}
			if err := v.WriteOwned(p, fr.offset, false); err != nil {
				return err
			}
		}
	}
}

// grow gives the LUN a larger size, for data that comes from a pipe and whose
// size nobody knew.
func (s *admin) grow(ctx context.Context, name string, v volume, size int64) error {
	have := v.Size()
	if size == have {
		return nil
	}
	if size < have {
		return badFrame("size %d after %d", size, have)
	}
	if err := lun.CheckLUNSize(size); err != nil {
		return err
	}
	_, err := s.pool.ResizeLUN(ctx, name, size, false)
	return err
}
