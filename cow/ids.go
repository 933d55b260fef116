package cow

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// IDs is a set of versions, ascending. Its text is short where ids are regular,
// as those of snapshots taken in turn are: "7", "7-9", "10-90/2" (every second
// one), separated by commas.
type IDs []VersionID

// sortedIDs returns the set of ids.
func sortedIDs(ids []VersionID) IDs {
	out := IDs(slices.Clone(ids))
	slices.Sort(out)
	return slices.Compact(out)
}

// MarshalText writes the set.
func (s IDs) MarshalText() ([]byte, error) {
	var b []byte
	for i := 0; i < len(s); {
		n := s.regular(i)
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(s[i]), 10)
		if n > 2 {
			b = append(b, '-')
			b = strconv.AppendUint(b, uint64(s[i+n-1]), 10)
			if step := s[i+1] - s[i]; step != 1 {
				b = append(b, '/')
				b = strconv.AppendUint(b, uint64(step), 10)
			}
			i += n
			continue
		}
		i++
	}
	return b, nil
}

// regular returns how many ids from i on have equal distances.
func (s IDs) regular(i int) int {
	n := 1
	for i+n < len(s) && (n == 1 || s[i+n]-s[i+n-1] == s[i+1]-s[i]) {
		n++
	}
	return n
}

// maxIDs bounds what one text may stand for.
const maxIDs = 1 << 22

// UnmarshalJSON reads the text, or the plain list of numbers of format 1.
func (s *IDs) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		var list []VersionID
		if err := json.Unmarshal(b, &list); err != nil {
			return err
		}
		*s = list
		return nil
	}
	var text string
	if err := json.Unmarshal(b, &text); err != nil {
		return err
	}
	*s = (*s)[:0]
	if text == "" {
		return nil
	}
	for item := range strings.SplitSeq(text, ",") {
		if err := s.parse(item); err != nil {
			return err
		}
	}
	return nil
}

func (s *IDs) parse(item string) error {
	bad := fmt.Errorf("ids %q: want a, a-b or a-b/step, ascending", item)
	item, stepText, stepped := strings.Cut(item, "/")
	fromText, toText, ranged := strings.Cut(item, "-")
	from, err := strconv.ParseUint(fromText, 10, 64)
	if err != nil || stepped && !ranged {
		return bad
	}
	to, step := from, uint64(1)
	if ranged {
		if to, err = strconv.ParseUint(toText, 10, 64); err != nil || to < from {
			return bad
		}
	}
	if stepped {
		if step, err = strconv.ParseUint(stepText, 10, 64); err != nil || step == 0 {
			return bad
		}
	}
	if n := len(*s); n > 0 && uint64((*s)[n-1]) >= from || (to-from)/step >= maxIDs-uint64(len(*s)) {
		return bad
	}
	for n := (to - from) / step; ; n-- {
		*s = append(*s, VersionID(from))
		if n == 0 {
			return nil
		}
		from += step
	}
}
