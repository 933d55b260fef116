package lun

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2/vfs"

	"lunar/reservation"
)

// TestCapacityStories runs the scripts in testdata/capacity on a pool with real writes, snapshots and restarts. After each command
// the ledger is checked; `verify` reads every LUN and snapshot back, and lets the pool check itself.
func TestCapacityStories(t *testing.T) {
	datadriven.Walk(t, "testdata/capacity", func(t *testing.T, path string) {
		s := &capacityStory{t: t, fs: vfs.NewCrashableMem(), now: steppingClock(), is: map[string]stamps{}}
		defer func() {
			if s.p != nil {
				s.p.Abandon()
			}
		}()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.d = d
			out := rollbackTime.ReplaceAllString(s.run(), "before-rollback-TIME")
			if err := s.p.ledger.Check(); err != nil {
				d.Fatalf(t, "%v", err)
			}
			return out
		})
	})
}

// rollbackTime is what a snapshot's name has of the clock.
var rollbackTime = regexp.MustCompile(`before-rollback-\w+Z`)

type capacityStory struct {
	t    *testing.T
	d    *datadriven.TestData
	fs   *vfs.MemFS
	p    *Pool
	o    Options
	now  func() time.Time
	next uint64
	seen int               // events that were shown
	is   map[string]stamps // content by LUN or LUN@SNAPSHOT
}

func (s *capacityStory) open() {
	s.o.FS = s.fs
	p, err := Open(context.Background(), s.o)
	if err != nil {
		s.d.Fatalf(s.t, "open: %v", err)
	}
	s.p, s.seen = p, 0
}

func (s *capacityStory) run() string {
	switch s.d.Cmd {
	case "pool":
		s.o = Options{Dir: "pool", Capacity: s.size("capacity"), SegmentBytes: 256 << 10, RecordBlocks: 16, IndexCache: 1 << 20, Manual: true, Now: s.now}
		s.open()
	case "create":
		return s.create()
	case "write":
		return s.write()
	case "trim", "zero":
		return s.erase(s.d.Cmd == "zero")
	case "snapshot", "delete", "protect", "unprotect", "rollback", "clone", "delete-lun", "resize":
		return s.structure()
	case "set":
		return s.set()
	case "capacity":
		return s.result(s.p.SetCapacity(context.Background(), s.size("to")))
	case "reclaim":
		return s.result(s.p.Reclaim())
	case "checkpoint":
		return s.result(s.p.Checkpoint())
	case "relieve":
		s.p.relieve()
	case "restart":
		if err := s.p.Close(); err != nil {
			s.d.Fatalf(s.t, "%v", err)
		}
		s.open()
	case "crash":
		fs := s.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
		s.p.Abandon()
		s.fs = fs
		s.open()
	case "verify":
		return s.verify()
	case "explain":
		_, lines, err := s.p.Reservation(s.arg(0))
		if err != nil {
			return err.Error()
		}
		return strings.Join(lines, "\n")
	case "show":
	default:
		s.d.Fatalf(s.t, "unknown command %q", s.d.Cmd)
	}
	return s.show()
}

// show prints the accounts, and what was recycled since they were printed last.
func (s *capacityStory) show() string {
	var b strings.Builder
	for _, e := range s.p.Events()[s.seen:] {
		s.seen++
		if strings.Contains(e.Message, "recycled") {
			fmt.Fprintf(&b, "event: %s\n", e.Message)
		}
	}
	for _, l := range s.p.tree.LUNs() {
		a := s.p.reserved(l.ID)
		fmt.Fprintf(&b, "%s: live %s, area %s", l.Name, reservation.Human(a.Live), reservation.Human(a.Area))
		if n := s.p.tree.SnapshotCount(l.ID); n > 0 {
			var names []string
			for _, v := range s.p.tree.Snapshots(l.ID) {
				names = append(names, v.Name)
			}
			fmt.Fprintf(&b, ", snapshots %s", strings.Join(names, " "))
		}
		if n := s.p.comingOf(l.ID); n > 0 {
			fmt.Fprintf(&b, ", %s on their way", reservation.Human(n))
		}
		b.WriteByte('\n')
	}
	t := s.p.ledger.Totals()
	fmt.Fprintf(&b, "promised %s, beyond %s, shared %s, free %s", reservation.Human(t.Promised), reservation.Human(t.Beyond), reservation.Human(t.Shared), reservation.Human(t.Free))
	if t.Over > 0 {
		fmt.Fprintf(&b, ", over by %s", reservation.Human(t.Over))
	}
	return b.String()
}

func (s *capacityStory) result(err error) string {
	if err == nil {
		return s.show()
	}
	text := err.Error()
	if errors.Is(err, syscall.ENOSPC) {
		text = "ENOSPC: " + text
	}
	return text + "\n" + s.show()
}

func (s *capacityStory) create() string {
	r := CreateLUN{Name: s.arg(0), SizeBytes: s.size("size"), Thick: s.d.HasArg("thick"), OnFull: s.text("on-full")}
	r.Reserve, r.Limit = s.amount("reserve"), s.amount("limit")
	_, err := s.p.CreateLUN(context.Background(), r)
	if err == nil {
		s.is[r.Name] = make(stamps, r.SizeBytes/blockSize)
	}
	return s.result(err)
}

func (s *capacityStory) write() string {
	lun, at, n := s.arg(0), int(s.size("at")/blockSize), int(s.size("n")/blockSize)
	v, err := s.p.OpenVolume(lun, "")
	if err != nil {
		return s.result(err)
	}
	defer v.Close()
	each := 16
	if s.d.HasArg("whole") {
		each = n
	}
	for n > 0 && err == nil {
		k := min(n, each)
		b := make([]byte, k*blockSize)
		for i := range k {
			fill(b[i*blockSize:(i+1)*blockSize], s.next+uint64(i)+1)
		}
		if err = v.WriteAt(b, int64(at)*blockSize, true); err == nil {
			for i := range k {
				s.is[lun][at+i] = s.next + uint64(i) + 1
			}
			s.next += uint64(k)
			at, n = at+k, n-k
		}
	}
	if err != nil {
		return fmt.Sprintf("%s were not written\n%s", reservation.Human(int64(n)), s.result(err))
	}
	return s.result(nil)
}

func (s *capacityStory) erase(zero bool) string {
	lun, at, n := s.arg(0), s.size("at"), s.size("n")
	v, err := s.p.OpenVolume(lun, "")
	if err != nil {
		return s.result(err)
	}
	defer v.Close()
	if zero {
		err = v.Zero(at, n, false, true)
	} else {
		err = v.Trim(at, n, true)
	}
	if err == nil {
		clear(s.is[lun][at/blockSize : (at+n)/blockSize])
	}
	return s.result(err)
}

func (s *capacityStory) structure() string {
	ctx := context.Background()
	lun, snap, _ := strings.Cut(s.arg(0), "@")
	full := s.arg(0)
	var err error
	switch s.d.Cmd {
	case "snapshot":
		if _, err = s.p.CreateSnapshots(ctx, []SnapshotRequest{{LUN: lun, Name: snap}}, SnapshotOptions{Protect: s.d.HasArg("protect")}); err == nil {
			s.is[full] = s.is[lun].clone()
		}
	case "delete":
		_, err = s.p.DeleteSnapshots(ctx, []SnapshotRef{{lun, snap}}, DeleteOptions{})
	case "protect", "unprotect":
		_, err = s.p.ProtectSnapshot(ctx, lun, snap, s.d.Cmd == "protect", 0)
	case "rollback":
		var r RollbackInfo
		if r, err = s.p.Rollback(ctx, lun, snap, RollbackOptions{Discard: s.d.HasArg("discard")}); err == nil {
			if r.Kept != nil {
				s.is[*r.Kept] = s.is[lun]
			}
			s.is[lun] = s.is[full].clone()
		}
	case "clone":
		if _, err = s.p.Clone(ctx, lun, snap, s.arg(1), s.d.HasArg("thick")); err == nil {
			s.is[s.arg(1)] = s.is[full].clone()
		}
	case "delete-lun":
		_, err = s.p.DeleteLUN(ctx, lun, true)
	case "resize":
		n := s.size("size")
		if _, err = s.p.ResizeLUN(ctx, lun, n, true); err == nil {
			was := s.is[lun]
			s.is[lun] = make(stamps, n/blockSize)
			copy(s.is[lun], was)
		}
	}
	return s.result(err)
}

func (s *capacityStory) set() string {
	r := SetReservation{Reserve: s.amount("reserve"), Limit: s.amount("limit"), DryRun: s.d.HasArg("dry-run")}
	if text := s.text("on-full"); text != "" {
		r.OnFull = &text
	}
	_, went, err := s.p.SetReservation(context.Background(), s.arg(0), r)
	if err != nil {
		return s.result(err)
	}
	return fmt.Sprintf("snapshots that go: %s\n%s", strings.Join(went, " "), s.show())
}

// verify reads everything back and lets the pool check itself.
func (s *capacityStory) verify() string {
	var names []string
	for _, l := range s.p.tree.LUNs() {
		names = append(names, l.Name)
		for _, v := range s.p.tree.Snapshots(l.ID) {
			names = append(names, l.Name+"@"+v.Name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		lun, snap, _ := strings.Cut(name, "@")
		v, err := s.p.OpenVolume(lun, snap)
		if err != nil {
			s.d.Fatalf(s.t, "%v", err)
		}
		b := make([]byte, blockSize)
		for i, want := range s.is[name] {
			if err := v.ReadAt(b, int64(i)*blockSize); err != nil {
				s.d.Fatalf(s.t, "%s block %d: %v", name, i, err)
			}
			if got := stampOf(s.t, b); got != want {
				s.d.Fatalf(s.t, "%s block %d holds %d, want %d", name, i, got, want)
			}
		}
		v.Close()
	}
	rep, err := s.p.Check(context.Background(), nil)
	if err != nil || !rep.OK {
		s.d.Fatalf(s.t, "check: %v %+v", err, rep.Problems)
	}
	return "ok: " + strings.Join(names, " ")
}

// arg is the i-th argument without a value.
func (s *capacityStory) arg(i int) string {
	for _, a := range s.d.CmdArgs {
		if len(a.Vals) == 0 {
			if i == 0 {
				return a.Key
			}
			i--
		}
	}
	s.d.Fatalf(s.t, "an argument is missing")
	return ""
}

func (s *capacityStory) text(name string) (text string) {
	if s.d.HasArg(name) {
		s.d.ScanArgs(s.t, name, &text)
	}
	return text
}

func (s *capacityStory) size(name string) int64 {
	n, err := ParseSize(s.text(name))
	if err != nil {
		s.d.Fatalf(s.t, "%s: %v", name, err)
	}
	return n
}

func (s *capacityStory) amount(name string) *Amount {
	text := s.text(name)
	if text == "" {
		return nil
	}
	a, err := ParseAmount(text)
	if err != nil {
		s.d.Fatalf(s.t, "%s: %v", name, err)
	}
	return &a
}
