package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"lunar/lun"
)

// maxDescription bounds descriptions, in bytes.
const maxDescription = 1024

// reservedLabel begins the labels that are the server's own.
const reservedLabel = "lunar."

// parseLUN checks the name of a LUN.
func parseLUN(s string) (string, error) {
	return s, asUsage(lun.CheckName("LUN", s))
}

// parseSnapshotRef reads LUN@NAME.
func parseSnapshotRef(s string) (lun.SnapshotRef, error) {
	ref, err := parseVersion(s)
	if err == nil && ref.Name == "" {
		err = usagef("snapshot %q: want LUN@NAME", s)
	}
	return ref, err
}

// parseVersion reads LUN or LUN@NAME; without @ the name is empty.
func parseVersion(s string) (lun.SnapshotRef, error) {
	name, snapshot, at := strings.Cut(s, "@")
	if err := lun.CheckName("LUN", name); err != nil {
		return lun.SnapshotRef{}, asUsage(err)
	}
	if at {
		if err := lun.CheckName("snapshot", snapshot); err != nil {
			return lun.SnapshotRef{}, asUsage(lun.Errorf(lun.ErrInvalid, "%q: %w", s, err))
		}
	}
	return lun.SnapshotRef{LUN: name, Name: snapshot}, nil
}

func parseSnapshotRefs(args []string) ([]lun.SnapshotRef, error) {
	refs := make([]lun.SnapshotRef, len(args))
	for i, arg := range args {
		ref, err := parseSnapshotRef(arg)
		if err != nil {
			return nil, err
		}
		refs[i] = ref
	}
	return refs, nil
}

// parseLUNSize reads the size of a LUN.
func parseLUNSize(s string) (int64, error) {
	n, err := lun.ParseSize(s)
	if err == nil {
		if err = lun.CheckLUNSize(n); err != nil {
			err = lun.Errorf(lun.ErrInvalid, "size %q: %w", s, err)
		}
	}
	return n, asUsage(err)
}

func parseCapacity(s string) (int64, error) {
	n, err := lun.ParseSize(s)
	if err != nil {
		return 0, asUsage(err)
	}
	if n < minCapacity {
		return 0, usagef("capacity %q: want at least %s", s, humanSize(minCapacity))
	}
	return n, nil
}

// checkDescription holds the rule for descriptions.
func checkDescription(s string) error {
	if len(s) > maxDescription {
		return lun.Errorf(lun.ErrInvalid, "description: %d bytes are too many; want at most %d", len(s), maxDescription)
	}
	if !utf8.ValidString(s) || strings.Map(printable, s) != s {
		return lun.Errorf(lun.ErrInvalid, "description %q: want one line of text without control characters", s)
	}
	return nil
}

// checkLabel holds the rule for labels of snapshots.
func checkLabel(key, value string) error {
	if strings.HasPrefix(key, reservedLabel) {
		return lun.Errorf(lun.ErrInvalid, "label %q: names that begin with %q are the server's own", key, reservedLabel)
	}
	if err := lun.CheckName("label", key); err != nil {
		return err
	}
	if len(value) > 255 || !utf8.ValidString(value) || strings.Map(printable, value) != value {
		return lun.Errorf(lun.ErrInvalid, "label %s=%q: want a value of at most 255 bytes without control characters", key, value)
	}
	return nil
}

// maxTTL keeps the end of a TTL within what a time can say.
const maxTTL = 100 * 365 * 24 * time.Hour

var ttlUnits = map[byte]time.Duration{
	's': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour,
}

// parseSpan reads 12h, 3d or 2w (also seconds and minutes); what names it in the
// message.
func parseSpan(what, s string) (time.Duration, error) {
	if s != "" {
		unit := ttlUnits[s[len(s)-1]]
		n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
		if unit > 0 && err == nil && n > 0 && n <= uint64(maxTTL/unit) {
			return time.Duration(n) * unit, nil
		}
	}
	return 0, fmt.Errorf("%s %q: want a whole number with s, m, h, d or w, as 12h, 3d or 2w", what, s)
}

// The flag types below parse while cobra does, so that a bad value is a usage
// error that names its flag.

// spanFlag is a span of time, and none where noneToo.
type spanFlag struct {
	what    string // in messages
	noneToo bool
	text    string
	d       time.Duration
}

func (f *spanFlag) String() string { return f.text }
func (f *spanFlag) Type() string   { return "TIME" }
func (f *spanFlag) Set(s string) (err error) {
	f.text = s
	if f.noneToo && s == "none" {
		f.d = 0
		return nil
	}
	f.d, err = parseSpan(f.what, s)
	return err
}

// lunSizeFlag is a size that a LUN can have.
type lunSizeFlag struct {
	text string
	n    int64
}

func (f *lunSizeFlag) String() string { return f.text }
func (f *lunSizeFlag) Type() string   { return "SIZE" }
func (f *lunSizeFlag) Set(s string) (err error) {
	f.text = s
	f.n, err = parseLUNSize(s)
	return err
}

// amountFlag is SIZE or PERCENT%, and none where noneToo.
type amountFlag struct {
	amount  *lun.Amount
	noneToo bool
}

func (f *amountFlag) String() string {
	if f.amount == nil {
		return ""
	}
	return f.amount.String()
}

func (f *amountFlag) Type() string {
	if f.noneToo {
		return "PERCENT%|SIZE|none"
	}
	return "PERCENT%|SIZE"
}

func (f *amountFlag) Set(s string) error {
	amount, err := parseAmount(s, f.noneToo)
	f.amount = &amount
	return err
}

func parseAmount(s string, noneToo bool) (lun.Amount, error) {
	amount, err := lun.ParseAmount(s)
	if err == nil && amount.None && !noneToo {
		err = fmt.Errorf("%q: want a size or a percentage; 0 is the least", s)
	}
	return amount, err
}

// onFullFlag is recycle or freeze.
type onFullFlag string

func (f *onFullFlag) String() string { return string(*f) }
func (f *onFullFlag) Type() string   { return "recycle|freeze" }
func (f *onFullFlag) Set(s string) error {
	*f = onFullFlag(s)
	return checkOnFull(s)
}

func checkOnFull(s string) error {
	if s != lun.OnFullRecycle && s != lun.OnFullFreeze {
		return lun.Errorf(lun.ErrInvalid, "policy %q: want recycle or freeze", s)
	}
	return nil
}

// maxLabels bounds the labels of one snapshot.
const maxLabels = 64

// checkLabels holds the rules for a set of labels.
func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return lun.Errorf(lun.ErrInvalid, "%d labels are too many; want at most %d", len(labels), maxLabels)
	}
	for k, v := range labels {
		if err := checkLabel(k, v); err != nil {
			return err
		}
	}
	return nil
}

// labelFilter selects snapshots: KEY=VALUE, or KEY with any value; all of several
// must hold.
type labelFilter []string

func (f *labelFilter) String() string { return strings.Join(*f, " ") }
func (f *labelFilter) Type() string   { return "KEY[=VALUE]" }
func (f *labelFilter) Set(s string) error {
	if key, _, _ := strings.Cut(s, "="); key == "" {
		return fmt.Errorf("label %q: want KEY or KEY=VALUE", s)
	}
	*f = append(*f, s)
	return nil
}

func (f labelFilter) holds(labels map[string]string) bool {
	for _, want := range f {
		key, value, exact := strings.Cut(want, "=")
		if has, ok := labels[key]; !ok || exact && has != value {
			return false
		}
	}
	return true
}

// labelsFlag collects k=v.
type labelsFlag map[string]string

func (f labelsFlag) String() string { return labelText(f) }
func (f labelsFlag) Type() string   { return "KEY=VALUE" }
func (f labelsFlag) Set(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if !ok {
		return fmt.Errorf("label %q: want KEY=VALUE", s)
	}
	if err := checkLabel(key, value); err != nil {
		return err
	}
	f[key] = value
	return nil
}

// descriptionFlag is one line of text.
type descriptionFlag string

func (f *descriptionFlag) String() string { return string(*f) }
func (f *descriptionFlag) Type() string   { return "TEXT" }
func (f *descriptionFlag) Set(s string) error {
	*f = descriptionFlag(s)
	return checkDescription(s)
}

// parseCount reads a whole number between two bounds.
func parseCount(what, s string, least, most int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > most {
		if most == math.MaxInt {
			return 0, fmt.Errorf("%s %q: want a whole number of at least %d", what, s, least)
		}
		return 0, fmt.Errorf("%s %q: want a whole number from %d to %d", what, s, least, most)
	}
	return n, nil
}
