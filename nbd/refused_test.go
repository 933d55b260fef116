package nbd_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"lunar/nbd"
	"lunar/nbd/nbdtest"
)

// lines is a log that keeps its messages.
type lines struct {
	slog.Handler
	mu   sync.Mutex
	list []string
}

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, r.Message)
	return nil
}

func (l *lines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *lines) Enabled(context.Context, slog.Level) bool { return true }

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range l.list {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// TestRefusalsLogged: who is refused may not fill the log.
func TestRefusalsLogged(t *testing.T) {
	log := &lines{Handler: slog.DiscardHandler}
	m := nbdtest.NewMemory("mem", 1<<20)
	_, addr := nbdtest.Serve(t, nbd.Options{Backend: nbdtest.NewBackend(m), Logger: slog.New(log)}, nbd.ListenerOptions{MaxConnections: 1})
	c := nbdtest.Attach(t, addr, "mem", false)
	for range 100 {
		if err := nbdtest.Connect(t, addr).Gone(); err != nil {
			t.Fatal(err)
		}
	}
	if n := log.count("too many connections"); n != 1 {
		t.Errorf("100 refused connections are %d lines in the log, want 1", n)
	}
	c.Disc()
}
