package lun

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"lunar/cow"
	"lunar/store/crashfs"
)

// TestStory runs the scripts of testdata/story: what a user does to a pool, and
// what a user sees then. Each rule of docs/SNAPSHOTS.md names its script.
//
// A `do` block has one verb a line (see story.verbs); its output is what the
// lines said, then every LUN with its snapshots: a letter for each unit of 64
// blocks (8 units are one page of the map), "." where it is zero, "#" where a unit is
// not all one letter. Amounts are units too. `say` shows only what the lines said. After each block
// `pool check` must be clean, but for `raw`, which leaves the state as it is: a check makes a checkpoint.
func TestStory(t *testing.T) {
	datadriven.Walk(t, "testdata/story", func(t *testing.T, path string) {
		s := newStory(t)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.t = t
			var out strings.Builder
			for line := range strings.Lines(d.Input) {
				if said := s.line(strings.Fields(line)); said != "" {
					fmt.Fprintln(&out, said)
				}
			}
			if d.Cmd == "do" {
				out.WriteString(s.view())
			}
			if d.Cmd != "raw" {
				s.check()
			}
			return out.String()
		})
	})
}

const storyUnit = 64 * blockSize

// story is a pool on a file system that can be crashed, with a clock that stands
// still until it is moved, and clients that the script attaches.
type story struct {
	t       testing.TB
	fs      *crashfs.FS
	p       *Pool
	o       Options
	at      time.Time
	clients []*storyClient
	scatter bool // a unit is one block, and neighbours lie on three pages
	durable bool // each write is flushed before it is answered
}

// unit is how many bytes a letter stands for, and where the unit'th of them is.
func (s *story) unit() int64 {
	if s.scatter {
		return blockSize
	}
	return storyUnit
}

func (s *story) place(unit int64) int64 {
	if s.scatter {
		return (unit%3*cow.PageBlocks + unit/3) * blockSize
	}
	return unit * storyUnit
}

// size is that of a LUN of so many units.
func (s *story) size(n int64) int64 {
	if s.scatter {
		return (2*cow.PageBlocks + (n+2)/3) * blockSize
	}
	return n * storyUnit
}

type storyClient struct {
	name, export string
	v            *Volume
}

func newStory(t testing.TB) *story {
	s := prepareStory(t)
	s.open()
	t.Cleanup(func() { s.p.Abandon() })
	return s
}

var storyBegin = time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)

// prepareStory is a story whose pool is not open yet.
func prepareStory(t testing.TB) *story {
	s := &story{t: t, fs: crashfs.New(), at: storyBegin}
	s.o = Options{Dir: "pool", Capacity: 256 << 20, Manual: true, SegmentBytes: 1 << 20, Now: func() time.Time { return s.at }}
	return s
}

func (s *story) open() {
	s.t.Helper()
	s.o.FS = s.fs
	p, err := Open(bg, s.o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.p, s.clients = p, nil
	p.SetClients(s)
}

func (s *story) check() {
	s.t.Helper()
	rep, err := s.p.Check(bg, nil)
	if err != nil || !rep.OK {
		s.t.Fatalf("check: %v %+v\n%s", err, rep.Problems, s.view())
	}
}

// Clients, Disconnect and DisconnectID are the pool's view of the attached clients.
func (s *story) Clients() []ClientInfo {
	var out []ClientInfo
	for i, c := range s.clients {
		out = append(out, ClientInfo{ID: uint64(i), Export: c.export, Address: c.name})
	}
	return out
}

func (s *story) Disconnect(export string) {
	s.clients = slices.DeleteFunc(s.clients, func(c *storyClient) bool {
		if c.export != export {
			return false
		}
		c.v.Close()
		return true
	})
}

func (s *story) DisconnectID(uint64) error { return ErrNotFound }

type verb func(s *story, f []string) (string, error)

// storyVerbs are the lines of a script. AT+N is in units.
var storyVerbs = map[string]verb{
	"create":     (*story).create,      // LUN UNITS [thick] [reserve=N] [limit=N] [freeze] [max=N]
	"write":      (*story).write,       // LUN AT+N LETTER
	"trim":       (*story).erase,       // LUN AT+N
	"zero":       (*story).erase,       // LUN AT+N
	"flush":      (*story).flush,       // LUN
	"attach":     (*story).attach,      // EXPORT CLIENT
	"detach":     (*story).detach,      // CLIENT
	"by":         (*story).by,          // CLIENT AT+N LETTER: a write by an attached client
	"snapshot":   (*story).snapshot,    // LUN[@NAME]... [ttl=3h] [protect] [protect-for=3h]
	"rollback":   (*story).rollback,    // LUN@NAME [discard] [force] [online]
	"clone":      (*story).clone,       // LUN[@NAME] NEW [thick]
	"delete":     (*story).delete,      // LUN@NAME... [force] [dry-run]
	"delete-lun": (*story).deleteLUN,   // LUN [force]
	"rename":     (*story).rename,      // LUN NEW, or LUN@NAME NEW
	"resize":     (*story).resize,      // LUN UNITS [force]
	"protect":    (*story).protect,     // LUN@NAME [3h]
	"unprotect":  (*story).protect,     // LUN@NAME
	"ttl":        (*story).ttl,         // LUN@NAME 3h
	"online":     (*story).online,      // LUN
	"limit":      (*story).limit,       // LUN N|none
	"diff":       (*story).diff,        // LUN@A LUN@B, or LUN@A LUN
	"sleep":      (*story).sleep,       // 3h: time passes, what is expired goes
	"break":      (*story).breakDisk,   // the disk fails: the pool is read-only from now on
	"checkpoint": (*story).checkpoint,  //
	"clean":      (*story).clean,       // give the cleaner all it wants to do
	"defragment": (*story).putTogether, // all blocks of heads are put together that do not lie so
	"publish":    (*story).publish,     // begin the merges that are due, as the janitor does, and leave it at that
	"reclaim":    (*story).reclaim,     // give all space back
	"crash":      (*story).crash,       // the power fails: what was not synced is lost
	"reopen":     (*story).reopen,      // a clean stop and start
}

// poolState is what an error tells about the pool beyond its reason.
var poolState = regexp.MustCompile(`and [0-9.]+ [KMGTi]*B are left of .*$`)

func (s *story) line(f []string) string {
	if len(f) == 0 {
		return ""
	}
	do := storyVerbs[f[0]]
	if do == nil {
		s.t.Fatalf("unknown verb %q", f[0])
	}
	said, err := do(s, f)
	if err != nil {
		said = strings.TrimSpace(said + " error: " + poolState.ReplaceAllString(err.Error(), "..."))
	}
	return said
}

func (s *story) number(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *story) span(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// extents calls fn for the bytes of AT+N.
func (s *story) extents(text string, fn func(off, n int64) error) error {
	at, count, _ := strings.Cut(text, "+")
	from, n := s.number(at), s.number(count)
	if !s.scatter {
		return fn(from*storyUnit, n*storyUnit)
	}
	for u := from; u < from+n; u++ {
		if err := fn(s.place(u), blockSize); err != nil {
			return err
		}
	}
	return nil
}

func has(f []string, word string) bool { return slices.Contains(f, word) }

func value(f []string, key string) string {
	for _, w := range f {
		if v, ok := strings.CutPrefix(w, key+"="); ok {
			return v
		}
	}
	return ""
}

// exports are the words that name LUNs or snapshots.
func exports(f []string) (out []SnapshotRef) {
	for _, w := range f {
		if lun, snap, ok := strings.Cut(w, "@"); ok {
			out = append(out, SnapshotRef{lun, snap})
		}
	}
	return out
}

func (s *story) create(f []string) (string, error) {
	r := CreateLUN{Name: f[1], SizeBytes: s.size(s.number(f[2])), Thick: has(f, "thick"), Reserve: &Amount{}}
	if v := value(f, "reserve"); v != "" {
		r.Reserve = &Amount{Bytes: s.number(v) * storyUnit}
	}
	if v := value(f, "limit"); v != "" {
		r.Limit = &Amount{Bytes: s.number(v) * storyUnit}
	}
	if has(f, "freeze") {
		r.OnFull = OnFullFreeze
	}
	_, err := s.p.CreateLUN(bg, r)
	if v := value(f, "max"); v != "" && err == nil {
		n := int(s.number(v))
		_, err = s.p.SetLUN(bg, r.Name, SetLUN{MaxSnapshots: &n})
	}
	return "", err
}

func (s *story) write(f []string) (string, error) {
	v, err := s.p.OpenVolume(f[1], "")
	if err != nil {
		return "", err
	}
	defer v.Close()
	return "", s.extents(f[2], func(off, n int64) error { return v.WriteAt(bytes.Repeat([]byte(f[3]), int(n)), off, s.durable) })
}

func (s *story) erase(f []string) (string, error) {
	v, err := s.p.OpenVolume(f[1], "")
	if err != nil {
		return "", err
	}
	defer v.Close()
	return "", s.extents(f[2], func(off, n int64) error {
		if f[0] == "zero" {
			return v.Zero(off, n, false, s.durable)
		}
		return v.Trim(off, n, s.durable)
	})
}

func (s *story) flush(f []string) (string, error) {
	v, err := s.p.OpenVolume(f[1], "")
	if err != nil {
		return "", err
	}
	defer v.Close()
	return "", v.Flush()
}

func (s *story) attach(f []string) (string, error) {
	lun, snap, _ := strings.Cut(f[1], "@")
	v, err := s.p.OpenVolume(lun, snap)
	if err == nil {
		s.clients = append(s.clients, &storyClient{f[2], f[1], v})
	}
	return "", err
}

func (s *story) detach(f []string) (string, error) {
	s.clients = slices.DeleteFunc(s.clients, func(c *storyClient) bool {
		if c.name == f[1] {
			c.v.Close()
		}
		return c.name == f[1]
	})
	return "", nil
}

func (s *story) by(f []string) (string, error) {
	for _, c := range s.clients {
		if c.name == f[1] {
			return "", s.extents(f[2], func(off, n int64) error { return c.v.WriteAt(bytes.Repeat([]byte(f[3]), int(n)), off, false) })
		}
	}
	return "not connected", nil
}

func (s *story) snapshot(f []string) (string, error) {
	var o SnapshotOptions
	var reqs []SnapshotRequest
	for _, w := range f[1:] {
		key, v, set := strings.Cut(w, "=")
		switch {
		case key == "ttl":
			o.TTL = s.span(v)
		case key == "protect-for":
			o.ProtectFor = s.span(v)
		case w == "protect":
			o.Protect = true
		case !set:
			lun, snap, _ := strings.Cut(w, "@")
			reqs = append(reqs, SnapshotRequest{lun, snap})
		}
	}
	list, err := s.p.CreateSnapshots(bg, reqs, o)
	var made []string
	for i, x := range list {
		if reqs[i].Name == "" {
			made = append(made, x.LUN+"@"+x.Name)
		}
	}
	return strings.Join(made, " "), err
}

func (s *story) rollback(f []string) (string, error) {
	ref := exports(f)[0]
	r, err := s.p.Rollback(bg, ref.LUN, ref.Name, RollbackOptions{Discard: has(f, "discard"), Force: has(f, "force"), Online: has(f, "online")})
	if r.Kept != nil && err == nil {
		return "kept " + *r.Kept, nil
	}
	return "", err
}

func (s *story) clone(f []string) (string, error) {
	lun, snap, _ := strings.Cut(f[1], "@")
	_, err := s.p.Clone(bg, lun, snap, f[2], has(f, "thick"))
	return "", err
}

func (s *story) delete(f []string) (string, error) {
	rep, err := s.p.DeleteSnapshots(bg, exports(f), DeleteOptions{DryRun: has(f, "dry-run"), Force: has(f, "force")})
	if err != nil {
		return "", err
	}
	word := "frees "
	if has(f, "dry-run") {
		word = "would free "
	}
	return word + s.units(rep.FreedBytes), nil
}

func (s *story) deleteLUN(f []string) (string, error) {
	_, err := s.p.DeleteLUN(bg, f[1], has(f, "force"))
	return "", err
}

func (s *story) rename(f []string) (string, error) {
	var err error
	if refs := exports(f[1:2]); len(refs) == 1 {
		_, err = s.p.RenameSnapshot(bg, refs[0].LUN, refs[0].Name, f[2])
	} else {
		_, err = s.p.RenameLUN(bg, f[1], f[2])
	}
	return "", err
}

func (s *story) resize(f []string) (string, error) {
	_, err := s.p.ResizeLUN(bg, f[1], s.size(s.number(f[2])), has(f, "force"))
	return "", err
}

func (s *story) protect(f []string) (string, error) {
	ref := exports(f)[0]
	var d time.Duration
	if len(f) > 2 {
		d = s.span(f[2])
	}
	_, err := s.p.ProtectSnapshot(bg, ref.LUN, ref.Name, f[0] == "protect", d)
	return "", err
}

func (s *story) ttl(f []string) (string, error) {
	ref, d := exports(f)[0], s.span(f[2])
	_, err := s.p.SetSnapshot(bg, ref.LUN, ref.Name, SetSnapshot{TTL: &d})
	return "", err
}

func (s *story) online(f []string) (string, error) {
	_, err := s.p.SetOnline(bg, f[1], true)
	return "", err
}

func (s *story) limit(f []string) (string, error) {
	a := Amount{None: f[2] == "none"}
	if !a.None {
		a.Bytes = s.number(f[2]) * storyUnit
	}
	_, gone, err := s.p.SetReservation(bg, f[1], SetReservation{Limit: &a})
	if len(gone) > 0 {
		return "drops " + strings.Join(gone, " "), err
	}
	return "", err
}

func (s *story) diff(f []string) (string, error) {
	from := exports(f[1:2])[0]
	lun, snap, _ := strings.Cut(f[2], "@")
	to := SnapshotRef{lun, snap}
	var out []string
	err := s.p.Diff(bg, from, to, func(d DiffRange) error {
		out = append(out, fmt.Sprintf("%s+%s %s", s.units(d.Offset), s.units(d.Length), d.Kind))
		return nil
	})
	if len(out) == 0 {
		out = []string{"equal"}
	}
	return strings.Join(out, ", "), err
}

func (s *story) sleep(f []string) (string, error) {
	s.at = s.at.Add(s.span(f[1]))
	s.p.expire()
	return "", nil
}

func (s *story) checkpoint([]string) (string, error) { return "", s.p.Checkpoint() }
func (s *story) reclaim([]string) (string, error)    { return "", s.p.Reclaim() }

func (s *story) breakDisk([]string) (string, error) {
	s.p.fail(errors.New("fsync: input/output error"))
	return "", nil
}

func (s *story) clean([]string) (string, error) {
	_, err := s.p.Clean(bg)
	return "", err
}

func (s *story) publish([]string) (string, error) {
	_, _, err := s.p.publishReclaim()
	return "", err
}

func (s *story) crash([]string) (string, error) {
	fs := s.fs.Image(crashfs.LoseAll())
	s.p.Abandon()
	s.fs = fs
	s.open()
	return "", nil
}

func (s *story) reopen([]string) (string, error) {
	if err := s.p.Close(); err != nil {
		return "", err
	}
	s.open()
	return "", nil
}

// units shows bytes as units, and as blocks where they are not whole ones.
func (s *story) units(n int64) string {
	if n%s.unit() == 0 {
		return strconv.FormatInt(n/s.unit(), 10)
	}
	return strconv.FormatInt(n/blockSize, 10) + "b"
}

// view is all that a user sees of the pool.
func (s *story) view() string {
	var b strings.Builder
	for _, l := range s.p.LUNs() {
		fmt.Fprintf(&b, "%s: live %s", l.Name, s.units(l.UsedBytes))
		if l.Area.UsedBytes > 0 {
			fmt.Fprintf(&b, " area %s", s.units(l.Area.UsedBytes))
		}
		fmt.Fprintf(&b, " referenced %s", s.units(l.ReferencedBytes))
		if l.Kind == "thick" {
			b.WriteString(" thick")
		}
		if !l.Online {
			b.WriteString(" offline")
		}
		if l.Clients > 0 {
			fmt.Fprintf(&b, " clients %d", l.Clients)
		}
		b.WriteByte('\n')
		list, err := s.p.Snapshots(l.Name)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, x := range list {
			fmt.Fprintf(&b, "  @%-8s %s  unique %s changed %s referenced %s%s\n", x.Name, s.content(l.Name, x.Name),
				s.units(x.UniqueBytes), s.units(x.ChangedBytes), s.units(x.ReferencedBytes), s.marks(x))
		}
		now := "(offline)"
		if l.Online {
			now = s.content(l.Name, "")
		}
		fmt.Fprintf(&b, "  %-9s %s\n", "now", now)
	}
	if st := s.p.Status(); st.SharedBytes > 0 || st.PromisedBytes > 0 {
		fmt.Fprintf(&b, "pool: shared %s promised %s\n", s.units(st.SharedBytes), s.units(st.PromisedBytes))
	}
	if b.Len() == 0 {
		return "empty\n"
	}
	return b.String()
}

func (s *story) marks(x SnapshotInfo) string {
	out := ""
	if x.Protected {
		out += " protected"
	}
	if x.ProtectedUntil != nil {
		out += " until " + x.ProtectedUntil.Sub(s.at).String()
	}
	if x.Expires != nil {
		out += " expires " + x.Expires.Sub(s.at).String()
	}
	if x.Clients > 0 {
		out += " attached"
	}
	return out
}

// content is a letter for each unit.
func (s *story) content(lun, snap string) string {
	v, err := s.p.OpenVolume(lun, snap)
	if err != nil {
		s.t.Fatal(err)
	}
	defer v.Close()
	part := make([]byte, s.unit())
	var out strings.Builder
	for u := int64(0); s.place(u)+s.unit() <= v.Size(); u++ {
		if err := v.ReadAt(part, s.place(u)); err != nil {
			return "error: " + err.Error()
		}
		c := part[0]
		switch {
		case bytes.Count(part, part[:1]) != len(part):
			c = '#'
		case c == 0:
			c = '.'
		}
		out.WriteByte(c)
	}
	return out.String()
}
