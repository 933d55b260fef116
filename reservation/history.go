package reservation

// History remembers what an area used, to say how fast it grows: of the last hour by the minute, of the last day by the
// quarter of an hour. Times are seconds of any clock that does not go back.
type History struct {
	hour, day []sample
}

type sample struct{ at, used int64 }

const (
	minute = 60
	hour   = 60 * minute
	day    = 24 * hour
)

// Note adds what is used now. It may be called as often as one likes; most calls change nothing.
func (h *History) Note(at, used int64) {
	h.hour = note(h.hour, at, used, minute, hour)
	h.day = note(h.day, at, used, 15*minute, day)
}

func note(s []sample, at, used, every, span int64) []sample {
	if n := len(s); n > 0 && at < s[n-1].at+every {
		return s
	}
	first := 0
	for first < len(s) && s[first].at <= at-span {
		first++
	}
	return append(s[first:], sample{at, used})
}

// Rates is how fast the use grew, in blocks a day: over the last hour, and over the last day, as far as each is known. Less than
// five minutes are no hour, and less than two hours no day.
func (h *History) Rates(at, used int64) (rates []float64) {
	for _, of := range []struct {
		s     []sample
		least int64
	}{{h.hour, 5 * minute}, {h.day, 2 * hour}} {
		if len(of.s) > 0 && at-of.s[0].at >= of.least {
			rates = append(rates, float64(used-of.s[0].used)/float64(at-of.s[0].at)*day)
		}
	}
	return rates
}
