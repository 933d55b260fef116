package main

import (
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/sys/unix"
)

// isTerminal says whether people read w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// colours are escape sequences, all empty where nobody sees colours.
type colours struct{ good, warn, bad, bold, reset string }

func coloursFor(w io.Writer) colours {
	if !isTerminal(w) || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return colours{}
	}
	return colours{good: "\x1b[32m", warn: "\x1b[33m", bad: "\x1b[31m", bold: "\x1b[1m", reset: "\x1b[0m"}
}

// meter shows progress on a terminal, and nothing elsewhere.
type meter struct {
	bar   *progressbar.ProgressBar
	out   io.Writer
	what  string
	bytes bool
}

// newMeter makes a meter; bytes says whether it counts bytes.
func newMeter(stderr io.Writer, what string, bytes bool) *meter {
	m := &meter{what: what, bytes: bytes}
	if isTerminal(stderr) {
		m.out = stderr
	}
	return m
}

// set shows that done of total are done; a total of -1 is unknown.
func (m *meter) set(done, total int64) {
	if m.out == nil || total == 0 {
		return
	}
	if m.bar == nil {
		m.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(m.out),
			progressbar.OptionSetDescription(m.what),
			progressbar.OptionShowBytes(m.bytes),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionSetWidth(40),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish(),
		)
	}
	if m.bar.GetMax64() != total {
		m.bar.ChangeMax64(total)
	}
	// A meter that cannot be drawn is no reason to stop the work.
	_ = m.bar.Set64(done)
}

// end takes the meter away.
func (m *meter) end() {
	if m.bar != nil {
		_ = m.bar.Clear()
		_ = m.bar.Exit()
	}
}
