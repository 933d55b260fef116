package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"lunar/lun"
)

// admin answers the admin API over the pool. The socket's mode decides who may
// ask: there is no other authentication.
type admin struct {
	pool     pool
	clients  lun.ClientControl
	changed  func(lunName string) // told of a LUN whose settings have changed
	warnings func() []lun.Warning // beside the pool's
	events   *eventHub
	config   []configValue
	info     serverInfo
	log      *slog.Logger
}

// handler routes the API.
func (s *admin) handler() http.Handler {
	mux := http.NewServeMux()
	routes := map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /luns":                 s.listLUNs,
		"POST /luns":                s.createLUN,
		"GET /luns/{lun}":           s.showLUN,
		"PATCH /luns/{lun}":         s.setLUN,
		"DELETE /luns/{lun}":        s.deleteLUN,
		"POST /luns/{lun}/resize":   s.resizeLUN,
		"POST /luns/{lun}/rename":   s.renameLUN,
		"POST /luns/{lun}/online":   s.setOnline,
		"POST /luns/{lun}/import":   s.importLUN,
		"GET /luns/{lun}/export":    s.exportLUN,
		"POST /luns/{lun}/clone":    s.clone,
		"GET /luns/{lun}/diff":      s.diff,
		"POST /luns/{lun}/rollback": s.rollback,

		"GET /snapshots":                                s.listSnapshots,
		"POST /snapshots":                               s.createSnapshots,
		"POST /snapshots/delete":                        s.deleteSnapshots,
		"GET /luns/{lun}/snapshots/{snapshot}":          s.showSnapshot,
		"PATCH /luns/{lun}/snapshots/{snapshot}":        s.setSnapshot,
		"POST /luns/{lun}/snapshots/{snapshot}/rename":  s.renameSnapshot,
		"POST /luns/{lun}/snapshots/{snapshot}/protect": s.protectSnapshot,

		"GET /reservations":         s.listReservations,
		"GET /reservations/{lun}":   s.showReservation,
		"PATCH /reservations/{lun}": s.setReservation,

		"GET /pool":         s.poolStatus,
		"POST /pool/check":  s.poolCheck,
		"POST /pool/scrub":  s.poolScrub,
		"POST /pool/clean":  s.poolClean,
		"POST /pool/resize": s.poolResize,

		"GET /clients":         s.listClients,
		"DELETE /clients/{id}": s.disconnectClient,
		"GET /status":          s.status,
		"GET /events":          s.streamEvents,
		"GET /config":          s.showConfig,
	}
	for pattern, fn := range routes {
		method, path, _ := strings.Cut(pattern, " ")
		mux.Handle(method+" "+apiPrefix+path, s.guard(fn))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, lun.Errorf(lun.ErrNotFound, "%s %s: the server does not know this request; are lunar and its server of the same version?", r.Method, r.URL.Path))
	})
	return mux
}

// guard turns errors into answers, and keeps a fault in one answer from ending
// the server that serves block devices.
func (s *admin) guard(fn func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if fault := recover(); fault != nil {
				if fault == http.ErrAbortHandler {
					panic(fault)
				}
				s.log.Error("fault in the admin API", "request", r.Method+" "+r.URL.Path, "fault", fault, "stack", string(debug.Stack()))
				writeError(w, fmt.Errorf("%s %s: a fault in the server: %v; its log has more", r.Method, r.URL.Path, fault))
			}
		}()
		if err := checkPathNames(r); err != nil {
			writeError(w, err)
			return
		}
		err := fn(w, r)
		var gone *clientGone
		if err != nil && !errors.As(err, &gone) {
			writeError(w, unlessStopping(r.Context(), err))
		}
	})
}

// clientGone is the error of an answer that its client did not wait for: there is
// nobody to tell.
type clientGone struct{ error }

// checkPathNames refuses bad names here already, for clients that are not ours.
func checkPathNames(r *http.Request) error {
	if name := r.PathValue("lun"); name != "" {
		if err := lun.CheckName("LUN", name); err != nil {
			return err
		}
	}
	if name := r.PathValue("snapshot"); name != "" {
		return lun.CheckName("snapshot", name)
	}
	return nil
}

// errorCodes maps the sentinels of lun, the more exact before the more general.
var errorCodes = []struct {
	is     error
	code   string
	status int
}{
	{lun.ErrNotFound, codeNotFound, http.StatusNotFound},
	{lun.ErrExists, codeExists, http.StatusConflict},
	{lun.ErrInvalid, codeInvalid, http.StatusBadRequest},
	{lun.ErrBusy, codeBusy, http.StatusConflict},
	{lun.ErrNoSpace, codeNoSpace, http.StatusInsufficientStorage},
	{lun.ErrReadOnly, codeReadOnly, http.StatusForbidden},
	{lun.ErrCorrupt, codeCorrupt, http.StatusInternalServerError},
	{lun.ErrRefused, codeRefused, http.StatusForbidden},
	{syscall.ENOSPC, codeNoSpace, http.StatusInsufficientStorage},
	{errStopping, codeStopping, http.StatusServiceUnavailable},
}

// errStopping ends what still runs when the server stops.
var errStopping = errors.New("the server is stopping; try again when it is back")

// unlessStopping says why a call of the pool was cut short: its context ends with
// the server, or with a client that does not listen any more.
func unlessStopping(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return errStopping
	}
	return err
}

func toAPIError(err error) (*apiError, int) {
	for _, c := range errorCodes {
		if errors.Is(err, c.is) {
			return &apiError{Code: c.code, Message: err.Error()}, c.status
		}
	}
	return &apiError{Code: codeInternal, Message: err.Error()}, http.StatusInternalServerError
}

func writeError(w http.ResponseWriter, err error) {
	body, status := toAPIError(err)
	text, err := json.Marshal(errorBody{body})
	must(err) // two strings
	w.Header().Set("Content-Type", "application/json")
	// With its length the answer is whole while an import is still being sent.
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = w.Write(text) // a client that is gone needs no answer
}

func writeJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
	return nil
}

// answer is the common end of a handler.
func answer[T any](w http.ResponseWriter, v T, err error) error {
	if err != nil {
		return err
	}
	return writeJSON(w, v)
}

// answerList is answer for lists: an empty one is [].
func answerList[T any](w http.ResponseWriter, list []T, err error) error {
	if list == nil {
		list = []T{}
	}
	return answer(w, list, err)
}

// readBody reads the JSON body of a request. Unknown fields are refused: what a
// newer client asks for must not be left out silently.
func readBody(r *http.Request, into any) error {
	dec := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxRequestBytes))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return lun.Errorf(lun.ErrInvalid, "%s %s: bad request: %w", r.Method, r.URL.Path, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return lun.Errorf(lun.ErrInvalid, "%s %s: bad request: something follows the body", r.Method, r.URL.Path)
	}
	return nil
}

// streamer writes the envelopes of a stream.
type streamer struct {
	ctx context.Context // of the request
	mu  sync.Mutex      // progress may be reported by several goroutines
	rc  *http.ResponseController
	enc *json.Encoder
}

func newStreamer(w http.ResponseWriter, r *http.Request) *streamer {
	w.Header().Set("Content-Type", "application/x-ndjson")
	return &streamer{ctx: r.Context(), rc: http.NewResponseController(w), enc: json.NewEncoder(w)}
}

// send writes one line and hands it to the client at once.
func (s *streamer) send(e envelope) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.enc.Encode(e); err != nil {
		return &clientGone{err}
	}
	return s.flush()
}

func (s *streamer) flush() error {
	if err := s.rc.Flush(); err != nil {
		return &clientGone{err}
	}
	return nil
}

// item writes one line that may wait for more.
func (s *streamer) item(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.enc.Encode(envelope{Item: text}); err != nil {
		return &clientGone{err}
	}
	return nil
}

// end writes the last line: the result, or why there is none.
func (s *streamer) end(v any, err error) error {
	if err == nil {
		var text []byte
		if text, err = json.Marshal(v); err == nil {
			return s.send(envelope{Result: text})
		}
	}
	body, _ := toAPIError(unlessStopping(s.ctx, err))
	return s.send(envelope{Error: body})
}

// progressEvery is how often a client hears of progress.
const progressEvery = 100 * time.Millisecond

// streamProgress runs a long operation with its progress on the stream.
func streamProgress[T any](w http.ResponseWriter, r *http.Request, op func(context.Context, func(done, total int64)) (T, error)) error {
	s := newStreamer(w, r)
	if err := s.send(envelope{Progress: &progress{}}); err != nil {
		return err
	}
	var last atomic.Int64
	v, err := op(r.Context(), func(done, total int64) {
		now, before := time.Now().UnixNano(), last.Load()
		if now-before >= int64(progressEvery) && last.CompareAndSwap(before, now) {
			_ = s.send(envelope{Progress: &progress{Done: done, Total: total}})
		}
	})
	return s.end(v, err)
}
