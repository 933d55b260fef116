package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"lunar/lun"
)

// accessFlags are the flags of a LUN that say who may attach, and how fast.
type accessFlags struct {
	allow allowFlag
	iops  limitFlag
	bytes limitFlag
	burst burstFlag
}

const accessLong = `--allow says who may attach to the LUN and its snapshots: address ranges
(10.0.0.0/8), cn=NAME for the common name of a client certificate, unix for
connections through unix sockets; separated by commas, one that fits is enough,
"any" is anyone. To others these exports do not exist.

--qos-iops and --qos-bps limit requests and bytes a second, over all connections
to the LUN and its snapshots; "none" is no limit. --qos-burst is how long an idle
LUN saves up what it does not use (default 1s).`

func (f *accessFlags) add(flags *pflag.FlagSet) {
	f.bytes.bytes = true
	flags.Var(&f.allow, "allow", "who may attach: `any|LIST` of address ranges, cn=NAME, unix")
	flags.Var(&f.iops, "qos-iops", "at most so many requests a second, `N|none`")
	flags.Var(&f.bytes, "qos-bps", "at most so many bytes read and written a second, `SIZE|none`")
	flags.Var(&f.burst, "qos-burst", "saved up by an idle LUN, a `TIME` from 10ms to 1m")
}

// qos puts limits together that were given for a new LUN.
func (f *accessFlags) qos() lun.QoS {
	return lun.QoS{IOPS: orZero(f.iops.n), BytesPerSecond: orZero(f.bytes.n), BurstMS: orZero(f.burst.n)}
}

func orZero[T any](v *T) (zero T) {
	if v != nil {
		return *v
	}
	return zero
}

// allowFlag is a list of who may attach; given again it goes on.
type allowFlag struct{ list *lun.Allow }

func (f *allowFlag) Type() string { return "any|LIST" }

func (f *allowFlag) String() string {
	if f.list == nil {
		return ""
	}
	return allowText(*f.list)
}

func (f *allowFlag) Set(s string) error {
	if s == "any" {
		if len(orZero(f.list)) > 0 {
			return errors.New("any beside a list: want one of them")
		}
		f.list = &lun.Allow{}
		return nil
	}
	if f.list != nil && len(*f.list) == 0 {
		return errors.New("a list beside any: want one of them")
	}
	parts, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return fmt.Errorf("%q: want any, or a list as 10.0.0.0/8,cn=NAME,unix", s)
	}
	list, err := lun.ParseAllow(append(append([]string{}, orZero(f.list)...), parts...))
	if err == nil {
		f.list = &list
	}
	return err
}

func allowText(list lun.Allow) string {
	if len(list) == 0 {
		return "any"
	}
	return strings.Join(list, ",")
}

// limitFlag is a limit a second, in requests or in bytes.
type limitFlag struct {
	bytes bool
	text  string
	n     *int64
}

func (f *limitFlag) String() string { return f.text }

func (f *limitFlag) Type() string {
	if f.bytes {
		return "SIZE|none"
	}
	return "N|none"
}

func (f *limitFlag) Set(s string) (err error) {
	var n int64
	switch {
	case s == "none":
	case f.bytes:
		if n, err = lun.ParseSize(s); err == nil && n < lun.MinQoSBytes {
			err = fmt.Errorf("%q: want at least 64K a second, or none", s)
		}
	default:
		var count int
		count, err = parseCount("limit", s, 1, 1e9)
		n = int64(count)
	}
	f.text, f.n = s, &n
	return err
}

// burstFlag is a time, kept in milliseconds.
type burstFlag struct {
	text string
	n    *int64
}

func (f *burstFlag) String() string { return f.text }
func (f *burstFlag) Type() string   { return "TIME" }

func (f *burstFlag) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d < lun.MinQoSBurst || d > lun.MaxQoSBurst {
		return fmt.Errorf("%q: want a time from %v to %v, as 500ms or 2s", s, lun.MinQoSBurst, lun.MaxQoSBurst)
	}
	n := d.Milliseconds()
	f.text, f.n = s, &n
	return nil
}

// qosText is the limits of a LUN for people.
func qosText(q *lun.QoS) string {
	if q == nil {
		return "none"
	}
	var parts []string
	if q.IOPS > 0 {
		parts = append(parts, fmt.Sprintf("%d requests/s", q.IOPS))
	}
	if q.BytesPerSecond > 0 {
		parts = append(parts, humanSize(q.BytesPerSecond)+"/s")
	}
	burst := lun.DefaultQoSBurst
	if q.BurstMS > 0 {
		burst = time.Duration(q.BurstMS) * time.Millisecond
	}
	return strings.Join(append(parts, "burst "+burst.String()), ", ")
}
