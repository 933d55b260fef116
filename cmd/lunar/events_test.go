package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"lunar/lun"
)

func TestEventHubKeepsTheLast(t *testing.T) {
	h := newEventHub()
	if len(h.last()) != 0 {
		t.Error("a new hub has events")
	}
	for i := range 2*eventsKept + 7 {
		h.publish(lun.Event{Message: fmt.Sprint(i)})
	}
	last := h.last()
	if len(last) != eventsKept || last[0].Message != fmt.Sprint(eventsKept+7) || last[eventsKept-1].Message != fmt.Sprint(2*eventsKept+6) {
		t.Errorf("%d events from %s to %s", len(last), last[0].Message, last[len(last)-1].Message)
	}
}

// A follower that is too slow is dropped; publish never waits for it.
func TestEventHubDropsSlowFollowers(t *testing.T) {
	h := newEventHub()
	h.add("a", nil, "before")
	before, slow := h.follow()
	_, quick := h.follow()
	if len(before) != 1 {
		t.Errorf("%v", before)
	}
	for i := range followerEvents + 1 {
		h.add("b", nil, fmt.Sprint(i))
		<-quick.C
	}
	n := 0
	for range slow.C { // ends: it was closed
		n++
	}
	if n != followerEvents {
		t.Errorf("the slow follower got %d events, not %d", n, followerEvents)
	}
	h.unfollow(slow)
	h.unfollow(quick)
	h.add("c", nil, "to nobody")
	if len(h.followers) != 0 {
		t.Errorf("%d followers are left", len(h.followers))
	}
}

func TestEventsFollow(t *testing.T) {
	e := newEnv(t)
	e.must("lun", "create", "a", "1M")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pr, pw := io.Pipe()
	done := make(chan result, 1)
	go func() {
		var stderr strings.Builder
		status := run(ctx, e.app(), []string{"--data", e.dir, "events", "--follow", "-o", "json"}, nil, pw, &stderr)
		done <- result{status: status, stderr: stderr.String()}
	}()
	lines := bufio.NewScanner(pr)
	next := func(name string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != `{"time":"2026-11-22T01:30:00Z","type":"lun-create","lun":"`+name+`","message":"LUN `+name+` made"}` {
			t.Fatalf("%q is not the event of %s", lines.Text(), name)
		}
	}
	next("a")
	e.must("lun", "create", "b", "1M")
	next("b")
	e.must("lun", "create", "c", "1M")
	next("c")
	cancel() // as Ctrl-C does
	select {
	case r := <-done:
		if r.status != 0 || r.stderr != "" {
			t.Errorf("%+v", r)
		}
	case <-time.After(60 * time.Second):
		t.Fatal("it goes on following")
	}
	eventually(t, func() bool {
		e.srv.events.mu.Lock()
		defer e.srv.events.mu.Unlock()
		return len(e.srv.events.followers) == 0
	})
}

func TestEventsOfLongMessagesAreWrapped(t *testing.T) {
	var b strings.Builder
	name := "disk"
	err := writeEvent(&b, lun.Event{Time: fakeNow, Type: "recycle", LUN: &name, Message: strings.Repeat("word ", 40)})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(b.String(), "\n") {
		if len(l) > tableWidth {
			t.Errorf("%d columns: %s", len(l), l)
		}
	}
	if !strings.Contains(b.String(), "disk: word") {
		t.Errorf("%s does not name its LUN", b.String())
	}
}
