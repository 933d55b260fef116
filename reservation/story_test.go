package reservation

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestStories runs the scripts in testdata. Amounts are 4K, 20M, 1G, 2T or a plain number of blocks; a reserve and a limit can
// be 20% of the size. After each command the ledger is checked.
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &story{t: t}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.d = d
			out := s.run()
			if s.l != nil {
				if err := s.l.Check(); err != nil {
					d.Fatalf(t, "%v", err)
				}
			}
			return out
		})
	})
}

type story struct {
	t *testing.T
	d *datadriven.TestData
	l *Ledger
}

func (s *story) run() string {
	switch s.d.Cmd {
	case "new":
		part := s.text("headroom", "0%")
		s.l = New(s.amount("capacity", 0), func(capacity int64) int64 { return s.parse(part, capacity) })
		return s.pool()
	case "add", "restore":
		return s.add()
	case "admit":
		return s.decision(s.l.Admit(s.id(), s.amount("live", 0), s.amount("area", 0)))
	case "write": // admit, and settle with what it really took
		live, area := s.amount("live", 0), s.amount("area", 0)
		d := s.l.Admit(s.id(), live, area)
		if d.Verdict == Admit {
			s.l.Settle(s.id(), live, area, s.amount("took-live", live), s.amount("took-area", area))
		}
		return s.decision(d)
	case "settle":
		s.l.Settle(s.id(), s.amount("live", 0), s.amount("area", 0), s.amount("took-live", 0), s.amount("took-area", 0))
	case "charge":
		s.l.Charge(s.id(), s.amount("live", 0), s.amount("area", 0))
	case "release":
		s.l.Release(s.id(), s.amount("live", 0), s.amount("area", 0))
	case "resize":
		return s.result(s.l.Resize(s.id(), s.amount("size", 0), s.amount("cut", 0)))
	case "policy":
		return s.policy(s.l.SetPolicy)
	case "try-policy":
		return s.policy(s.l.TryPolicy)
	case "capacity":
		return s.result(s.l.SetCapacity(s.amount("to", 0), s.l.Totals().Index))
	case "remove":
		s.l.Remove(s.id())
	case "dissolve":
		s.l.Dissolve(s.id())
	case "explain":
		return strings.Join(s.l.Explain(s.id()), "\n")
	case "shared":
		s.l.AddShared(s.amount("add", 0))
	case "index":
		s.l.SetIndex(s.amount("is", 0))
	case "foreign":
		s.l.SetForeign(s.amount("is", 0))
	case "pending":
		s.l.SetPending(s.amount("is", 0))
	case "coming":
		s.l.SetComing(s.id(), s.amount("is", 0))
	case "pool":
	default:
		s.d.Fatalf(s.t, "unknown command %q", s.d.Cmd)
	}
	return s.pool()
}

func (s *story) add() string {
	a := Account{Size: s.amount("size", 0), Thick: s.d.HasArg("thick"), Live: s.amount("live", 0), Area: s.amount("area", 0), OnFull: s.onFull()}
	a.Reserve, a.Limit = s.part("reserve", a.Size, 0), s.part("limit", a.Size, NoLimit)
	if s.d.Cmd == "restore" {
		return s.result(s.l.Restore(s.id(), a))
	}
	return s.result(s.l.Add(s.id(), a))
}

func (s *story) policy(set func(id uint64, reserve, limit int64, onFull OnFull) error) string {
	a, _ := s.l.Get(s.id())
	if s.d.HasArg("on-full") {
		a.OnFull = s.onFull()
	}
	return s.result(set(s.id(), s.part("reserve", a.Size, a.Reserve), s.part("limit", a.Size, a.Limit), a.OnFull))
}

func (s *story) pool() string {
	t := s.l.Totals()
	out := fmt.Sprintf("promised %s, beyond %s, shared %s, index %s, free %s", Human(t.Promised), Human(t.Beyond), Human(t.Shared), Human(t.Index), Human(t.Free))
	if t.Over > 0 {
		out += ", over by " + Human(t.Over)
	}
	if t.Unsettled > 0 {
		out += ", unsettled " + Human(t.Unsettled)
	}
	if t.Promised+t.Beyond+t.Shared+t.Index+t.Headroom+t.Foreign+t.Free != t.Capacity+t.Over {
		s.d.Fatalf(s.t, "the totals do not add up: %+v", t)
	}
	return out
}

func (s *story) decision(d Decision) string {
	out := d.Verdict.String()
	if d.Reason != None {
		out += ": " + d.Reason.String()
	}
	if d.Need != 0 {
		out += ", free " + Human(d.Need)
	}
	if d.Throttle != 0 {
		out += fmt.Sprintf(", throttle %.2f", d.Throttle)
	}
	if a, ok := s.l.Get(s.id()); ok {
		out += fmt.Sprintf("\nlive %s, area %s\n", Human(a.Live), Human(a.Area))
		return out + s.pool()
	}
	return out
}

func (s *story) result(err error) string {
	if err != nil {
		return err.Error()
	}
	return s.pool()
}

func (s *story) id() uint64 { return uint64(s.amount("lun", 0)) }

func (s *story) text(name, def string) string {
	if s.d.HasArg(name) {
		s.d.ScanArgs(s.t, name, &def)
	}
	return def
}

func (s *story) onFull() OnFull {
	if s.text("on-full", "recycle") == "freeze" {
		return Freeze
	}
	return Recycle
}

func (s *story) amount(name string, def int64) int64 { return s.part(name, 0, def) }

func (s *story) part(name string, whole, def int64) int64 {
	text := s.text(name, "")
	if text == "" {
		return def
	}
	return s.parse(text, whole)
}

func (s *story) parse(text string, whole int64) int64 {
	if text == "none" {
		return NoLimit
	}
	var unit int64
	number := strings.TrimRight(text, "%KMGT")
	switch text[len(number):] {
	case "%":
		return whole * s.number(number) / 100
	case "K":
		unit = 1 << 10
	case "M":
		unit = 1 << 20
	case "G":
		unit = 1 << 30
	case "T":
		unit = 1 << 40
	default:
		return s.number(number)
	}
	return s.number(number) * unit / BlockSize
}

func (s *story) number(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		s.d.Fatalf(s.t, "%v", err)
	}
	return n
}
