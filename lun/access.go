package lun

import (
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"lunar/cow"
)

// Access is what decides about the connections of a LUN and of its snapshots.
type Access struct {
	UUID   string // of the LUN: names come and go
	LUN    string
	Online bool // of the LUN; its snapshots are served while it is off line
	Allow  Allow
	QoS    QoS
}

// QoS are the limits of a LUN, over all connections to it and its snapshots.
type QoS = cow.QoS

// Bounds of QoS, so that a request of the largest size ends in a sensible time.
const (
	MinQoSBytes     = 64 << 10 // a second
	MinQoSBurst     = 10 * time.Millisecond
	MaxQoSBurst     = time.Minute
	DefaultQoSBurst = time.Second
)

// Allow says who may attach to a LUN; an empty list is anyone. Entries are
// 10.0.0.0/8 (or an address), cn=NAME (the common name of a verified client
// certificate) and unix (connections through unix sockets). One that fits is
// enough.
type Allow []string

const (
	allowUnix       = "unix"
	allowCommonName = "cn="
	maxAllow        = 64 // entries: they travel in the record of every change of the LUN
)

// ParseAllow checks entries and brings them into the one form that is stored.
func ParseAllow(entries []string) (Allow, error) {
	if len(entries) > maxAllow {
		return nil, Errorf(ErrInvalid, "allow: %d entries are too many; want at most %d", len(entries), maxAllow)
	}
	var out Allow
	for _, e := range entries {
		canonical, err := parseAllowed(strings.TrimSpace(e))
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, canonical) {
			out = append(out, canonical)
		}
	}
	return out, nil
}

func parseAllowed(s string) (string, error) {
	if s == allowUnix {
		return s, nil
	}
	if name, ok := strings.CutPrefix(s, allowCommonName); ok {
		bad := func(r rune) bool { return !unicode.IsPrint(r) || r == ',' }
		if name == "" || len(name) > 64 || !utf8.ValidString(name) || strings.ContainsFunc(name, bad) {
			return "", Errorf(ErrInvalid, "allow %q: want cn=NAME with a common name of 1 to 64 bytes, without commas", s)
		}
		return s, nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()).String(), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return "", Errorf(ErrInvalid, "allow %q: want an address range as 10.0.0.0/8, cn=NAME of a client certificate, or unix", s)
	case p.Addr().Is4In6():
		return "", Errorf(ErrInvalid, "allow %q: want the range in its IPv4 form", s)
	case p != p.Masked():
		return "", Errorf(ErrInvalid, "allow %q: the address has bits beyond the range; want %s, or %s for the one address", s, p.Masked(), p.Addr())
	}
	return p.String(), nil
}

// Match says whether a client may attach: ip is its address, the zero Addr on a
// unix socket; commonName is of its certificate, "" if it has shown none that
// was verified.
func (a Allow) Match(ip netip.Addr, commonName string) bool {
	if len(a) == 0 {
		return true
	}
	ip = ip.Unmap().WithZone("")
	for _, e := range a {
		name, isName := strings.CutPrefix(e, allowCommonName)
		switch {
		case isName:
			if commonName != "" && name == commonName {
				return true
			}
		case e == allowUnix:
			if !ip.IsValid() {
				return true
			}
		default:
			if p, err := netip.ParsePrefix(e); err == nil && ip.IsValid() && p.Contains(ip) {
				return true
			}
		}
	}
	return false
}

// checkQoS holds the rule for limits.
func checkQoS(q QoS) error {
	switch burst := time.Duration(q.BurstMS) * time.Millisecond; {
	case q.IOPS < 0 || q.IOPS > 1e9:
		return Errorf(ErrInvalid, "qos-iops %d: want requests a second up to 1000000000, or 0 for no limit", q.IOPS)
	case q.BytesPerSecond != 0 && (q.BytesPerSecond < MinQoSBytes || q.BytesPerSecond > 1<<50):
		return Errorf(ErrInvalid, "qos-bps %d: want bytes a second from 64K to 1024T, or 0 for no limit", q.BytesPerSecond)
	case q.BurstMS != 0 && (q.BurstMS < 0 || q.BurstMS > MaxQoSBurst.Milliseconds() || burst < MinQoSBurst):
		return Errorf(ErrInvalid, "qos-burst %d ms: want from %v to %v", q.BurstMS, MinQoSBurst, MaxQoSBurst)
	case q.BurstMS != 0 && q.IOPS == 0 && q.BytesPerSecond == 0:
		return Errorf(ErrInvalid, "qos-burst without a limit: want --qos-iops or --qos-bps too")
	}
	return nil
}

// mergeQoS changes what is not nil. Without a limit there is no burst either.
func mergeQoS(q QoS, iops, bytes, burst *int64) (QoS, error) {
	if iops != nil {
		q.IOPS = *iops
	}
	if bytes != nil {
		q.BytesPerSecond = *bytes
	}
	if burst != nil {
		q.BurstMS = *burst
	} else if q.IOPS == 0 && q.BytesPerSecond == 0 {
		q.BurstMS = 0
	}
	return q, checkQoS(q)
}

func accessOf(l *cow.LUN) Access {
	return Access{UUID: l.UUID, LUN: l.Name, Online: !l.Offline, Allow: l.Allow, QoS: l.QoS}
}

// Access tells who may attach to a LUN, and how fast. It waits for no
// administrator's call. ok is false if there is no such LUN.
func (p *Pool) Access(name string) (a Access, ok bool) {
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	l, err := p.tree.LUNByName(name)
	if err != nil {
		return Access{}, false
	}
	return accessOf(l), true
}

// Exports lists what clients can ask for, of the LUNs that visible picks: those
// that are on line, then up to ListSnapshots snapshots.
func (p *Pool) Exports(visible func(Access) bool) []Export {
	p.treeMu.RLock()
	defer p.treeMu.RUnlock()
	var out, snaps []Export
	for _, l := range p.tree.LUNs() {
		if !visible(accessOf(l)) {
			continue
		}
		if !l.Offline {
			out = append(out, Export{l.Name, l.Size, l.Description, l.ReadOnly})
		}
		if len(snaps) >= p.opts.ListSnapshots {
			continue
		}
		for _, s := range p.tree.Snapshots(l.ID) {
			snaps = append(snaps, Export{l.Name + "@" + s.Name, s.Size, s.Description, true})
		}
	}
	return append(out, snaps[:min(len(snaps), p.opts.ListSnapshots)]...)
}
