package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// humanSize is for tables: binary units, two significant digits.
func humanSize(n int64) string {
	if n < 0 {
		return "-" + humanize.IBytes(uint64(-n))
	}
	return humanize.IBytes(uint64(n))
}

// humanAndExact shows a size for people and for comparing: "1.0 GiB (1073741824)".
func humanAndExact(n int64) string {
	return fmt.Sprintf("%s (%d)", humanSize(n), n)
}

// humanLimit shows a limit, where nil is none.
func humanLimit(n *int64) string {
	if n == nil {
		return "none"
	}
	return humanSize(*n)
}

// exactLimit is humanLimit with the bytes beside it.
func exactLimit(n *int64) string {
	if n == nil {
		return "none"
	}
	return humanAndExact(*n)
}

// humanTime is a point in time for tables.
func humanTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// orDash is for cells that may be empty.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func deref(s *string) string {
	if s == nil {
		return "-"
	}
	return orDash(*s)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// percentOf is part of whole in whole percent, rounded down; 0 of nothing.
func percentOf(part, whole int64) int {
	if whole <= 0 {
		return 0
	}
	return int(float64(part) / float64(whole) * 100)
}

// humanDays shows "full in N days".
func humanDays(d *float64) string {
	if d == nil {
		return "-"
	}
	return strconv.FormatFloat(*d, 'f', 1, 64) + " d"
}

// bar draws a share as a bar of n cells.
func bar(percent, n int) string {
	full := min(max(percent*n/100, 0), n)
	return "[" + strings.Repeat("#", full) + strings.Repeat("-", n-full) + "]"
}

// plural is "1 client", "2 clients".
func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}
