package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"time"
)

// admin speaks the admin API of a lunar server over one connection: thousands of commands would measure how long a
// process takes to start.
type admin struct {
	http *http.Client
}

func newAdmin(socket string) *admin {
	var d net.Dialer
	return &admin{&http.Client{Transport: &http.Transport{
		MaxConnsPerHost: 1,
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) },
	}}}
}

// call sends one request and says how long the answer took.
func (a *admin) call(method, path string, body, into any) (time.Duration, error) {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return 0, err
		}
	}
	request, err := http.NewRequest(method, "http://lunar/v1"+path, bytes.NewReader(text))
	if err != nil {
		return 0, err
	}
	began := time.Now()
	answer, err := a.http.Do(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	text, err = io.ReadAll(answer.Body)
	took := time.Since(began)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, text)
	}
	if err != nil {
		return took, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if into == nil {
		return took, nil
	}
	return took, json.Unmarshal(text, into)
}

type object map[string]any

func (a *admin) createLUN(name string, size int64) error {
	if _, err := a.call("POST", "/luns", object{"name": name, "size_bytes": size, "limit": "none"}, nil); err != nil {
		return err
	}
	_, err := a.call("PATCH", "/luns/"+name, object{"max_snapshots": 0}, nil) // any number
	return err
}

func (a *admin) deleteLUN(name string) (time.Duration, error) {
	return a.call("DELETE", "/luns/"+name+"?force=true", nil, nil)
}

func (a *admin) snapshot(lun, name string) (time.Duration, error) {
	return a.call("POST", "/snapshots", object{"targets": []object{{"lun": lun, "name": name}}}, nil)
}

func (a *admin) clone(lun, snapshot, to string) (time.Duration, error) {
	return a.call("POST", "/luns/"+lun+"/clone", object{"snapshot": snapshot, "name": to}, nil)
}

// rollback returns the name of the snapshot that was kept.
func (a *admin) rollback(lun, snapshot string) (kept string, took time.Duration, err error) {
	var answer struct{ Name string }
	took, err = a.call("POST", "/luns/"+lun+"/rollback", object{"snapshot": snapshot}, &answer)
	return answer.Name, took, err
}

// remove deletes snapshots of a LUN; with wait it returns when the space is back. freed is what the server says.
func (a *admin) remove(lun string, wait bool, names ...string) (freed int64, took time.Duration, err error) {
	refs := make([]object, len(names))
	for i, name := range names {
		refs[i] = object{"lun": lun, "name": name}
	}
	var answer struct {
		Freed int64 `json:"freed_bytes"`
	}
	took, err = a.call("POST", "/snapshots/delete", object{"snapshots": refs, "wait": wait}, &answer)
	return answer.Freed, took, err
}

// lunInfo is what the benchmark reads of a LUN.
type lunInfo struct {
	Snapshots int
	Clients   int
	Used      int64 `json:"used_bytes"`
	Area      struct {
		Used int64 `json:"used_bytes"`
	}
}

func (a *admin) lun(name string) (info lunInfo, err error) {
	_, err = a.call("GET", "/luns/"+name, nil, &info)
	return info, err
}

// wantSnapshots is the proof that a measurement had the number of snapshots that its table says.
func (a *admin) wantSnapshots(lun string, want int) error {
	info, err := a.lun(lun)
	if err == nil && info.Snapshots != want {
		err = fmt.Errorf("LUN %s has %d snapshots, not the %d that are measured", lun, info.Snapshots, want)
	}
	return err
}

// poolInfo is what the benchmark reads of the pool. Written and Moved count since the server was started.
type poolInfo struct {
	Index    int64 `json:"index_bytes"`
	Written  int64 `json:"index_written_bytes"`
	Moved    int64 `json:"moved_bytes"`
	Used     int64 `json:"used_bytes"`
	Dead     int64 `json:"dead_bytes"`
	Segments int

	Scattered int `json:"scattered_pages"`
}

func (a *admin) pool() (info poolInfo, err error) {
	_, err = a.call("GET", "/pool", nil, &info)
	return info, err
}

func (a *admin) clean() error {
	_, err := a.call("POST", "/pool/clean", nil, nil)
	return err
}

var takenIn = regexp.MustCompile(`snapshot (\S+) taken in ([0-9.]+[a-zµ]+)`)

// serverTimes reads from the events how long the server itself took for the newest snapshots, by LUN@NAME.
func (a *admin) serverTimes() (map[string]time.Duration, error) {
	var lines bytes.Buffer
	answer, err := a.http.Get("http://lunar/v1/events")
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if _, err := lines.ReadFrom(answer.Body); err != nil {
		return nil, err
	}
	times := map[string]time.Duration{}
	for decoder := json.NewDecoder(&lines); decoder.More(); {
		var line struct {
			Item struct{ Message string }
		}
		if err := decoder.Decode(&line); err != nil {
			return nil, err
		}
		if m := takenIn.FindStringSubmatch(line.Item.Message); m != nil {
			if times[m[1]], err = time.ParseDuration(m[2]); err != nil {
				return nil, err
			}
		}
	}
	return times, nil
}
