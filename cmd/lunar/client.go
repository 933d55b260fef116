package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// defaultData is the folder whose server is asked when nothing else is named.
const defaultData = "lunar-data"

// adminSocket is the name of the admin socket in a data folder.
const adminSocket = "admin.sock"

// client asks a running server. One command makes one client.
type client struct {
	path string // of the admin socket
	hint string // how the user named it
	http *http.Client
}

// client finds the server: --server, LUNAR_SERVER, --data, LUNAR_DATA, then
// ./lunar-data. Nothing is dialled yet.
func (a *app) client() (*client, error) {
	path, hint, err := a.adminPath()
	if err == nil {
		err = checkUnixPath(path)
	}
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	transport := &http.Transport{
		DialContext:        dial,
		DisableCompression: true,
		// An import is refused, if at all, before its data is sent.
		ExpectContinueTimeout: time.Hour,
		WriteBufferSize:       256 << 10,
		ReadBufferSize:        256 << 10,
	}
	return &client{path: path, hint: hint, http: &http.Client{Transport: transport}}, nil
}

func (a *app) adminPath() (path, hint string, err error) {
	if a.server != "" {
		path, err = parseUnixAddress(a.server)
		return path, "--server", err
	}
	if s := os.Getenv("LUNAR_SERVER"); s != "" {
		path, err = parseUnixAddress(s)
		if err != nil {
			err = usagef("LUNAR_SERVER: %w", err)
		}
		return path, "LUNAR_SERVER", err
	}
	dir, hint := a.dataDir()
	return filepath.Join(dir, adminSocket), hint, nil
}

// dataDir is the folder of the pool for verbs that have no configuration.
func (a *app) dataDir() (dir, hint string) {
	if a.data != "" {
		return a.data, "--data"
	}
	if dir := os.Getenv("LUNAR_DATA"); dir != "" {
		return dir, "LUNAR_DATA"
	}
	return defaultData, "the default ./" + defaultData
}

// close ends idle connections.
func (c *client) close() { c.http.CloseIdleConnections() }

func (c *client) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	return http.NewRequestWithContext(ctx, method, "http://lunar"+path, body)
}

// send does a request and turns every answer that is not 200 into an error.
func (c *client) send(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		if ctxErr := req.Context().Err(); ctxErr != nil {
			return nil, ctxErr
		}
		return nil, c.unreachable(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRequestBytes))
	var body errorBody
	if json.Unmarshal(text, &body) == nil && body.Error != nil {
		return nil, body.Error
	}
	return nil, fmt.Errorf("server at %s: it answered %s, which is not Lunar's admin API; is the socket another program's?", c.path, resp.Status)
}

// unreachable says why nothing answered, and what to do.
func (c *client) unreachable(err error) error {
	why, what := "it does not answer: "+err.Error(), "look at its log"
	switch {
	case errors.Is(err, syscall.ENOENT):
		why, what = "there is no such socket", `start one with "lunar serve" or name it with --server or --data`
	case errors.Is(err, syscall.ECONNREFUSED):
		why, what = "no server is behind the socket any more", `start it with "lunar serve"`
	case errors.Is(err, syscall.EACCES):
		why, what = "permission denied", "run this as the user of the server"
	case errors.Is(err, syscall.EINVAL):
		why, what = "the path is longer than the 107 bytes of a unix address", "name a shorter one"
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		why, what = "the connection broke before the answer", "see whether the server still runs"
	}
	return &notReached{fmt.Sprintf("server at %s (from %s): %s; %s", c.path, c.hint, why, what)}
}

// notReached is an error without an answer.
type notReached struct{ text string }

func (e *notReached) Error() string { return e.text }
func (e *notReached) Unwrap() error { return errNotReached }

// call sends in as JSON (nil: no body) and reads the answer into out.
func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	resp, err := c.send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return c.broken(ctx, err)
	}
	return nil
}

// broken is the error of an answer that ended too early.
func (c *client) broken(ctx context.Context, err error) error {
	if ctxErr := ctx.Err(); ctxErr != nil {
		return ctxErr
	}
	return fmt.Errorf("server at %s: the answer broke off: %w; see whether the server still runs", c.path, err)
}

// stream reads the envelopes of an answer; item and progress may be nil. The
// result goes to out, if the stream has one.
func (c *client) stream(ctx context.Context, method, path string, item func(json.RawMessage) error, onProgress func(progress), out any) error {
	req, err := c.request(ctx, method, path, nil)
	if err != nil {
		return err
	}
	resp, err := c.send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(bufio.NewReaderSize(resp.Body, 64<<10))
	for {
		var e envelope
		if err := dec.Decode(&e); err != nil {
			return c.broken(ctx, err)
		}
		switch {
		case e.Error != nil:
			return e.Error
		case e.Item != nil && item != nil:
			if err := item(e.Item); err != nil {
				return err
			}
		case e.Progress != nil && onProgress != nil:
			onProgress(*e.Progress)
		case e.Result != nil:
			if out == nil {
				return nil
			}
			return json.Unmarshal(e.Result, out)
		}
	}
}

// withClient runs fn with the client of this command.
func (a *app) withClient(fn func(c *client) error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.close()
	return fn(c)
}
