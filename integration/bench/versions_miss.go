package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

var missLine = regexp.MustCompile(`BenchmarkPageMiss/([a-z0-9-]+?)(?:-\d+)?\s.* ([0-9.]+) ns/miss`)

// miss runs the Go benchmark of page misses, which needs the inside of the pool.
func (v *versions) miss() (table, error) {
	repeats, seconds := 5, "1s"
	if v.b.quick {
		repeats, seconds = 3, "300ms"
	}
	t := table{
		Title: "Loading the map of 512 blocks that is not in memory",
		Notes: fmt.Sprintf("BenchmarkPageMiss in lun, real file system, median of %d. Clones, rollbacks: 4,096 other branches, each with a version of the page of its own. "+
			"Snapshots on the same branch, a chain of rollbacks: not promised, shown for comparison; there the head's own path is long.", repeats),
		Columns: []string{"other versions of the page", "load", "x none"},
	}
	args := []string{"go", "test", "-run", "^$", "-bench", "PageMiss", "-benchtime", seconds, "-count", fmt.Sprint(repeats), "./lun"}
	v.b.show(args)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return t, fmt.Errorf("%v: %w\n%s", args, err, out)
	}
	found := map[string][]float64{}
	var order []string
	for _, m := range missLine.FindAllStringSubmatch(string(out), -1) {
		ns, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return t, err
		}
		if found[m[1]] == nil {
			order = append(order, m[1])
		}
		found[m[1]] = append(found[m[1]], ns/1000)
	}
	if len(found["none"]) == 0 || len(found["clones"]) == 0 || len(found["rollbacks"]) == 0 {
		return t, fmt.Errorf("%v printed no figures\n%s", args, out)
	}
	none := middle(found["none"])
	for _, name := range order {
		m := t.sample(name+", microseconds", found[name])
		t.row(name, fmt.Sprintf("%.0f us", m), fmt.Sprintf("%.2f", m/none))
	}
	for _, name := range []string{"clones", "rollbacks"} {
		t.Claims = append(t.Claims, claim{Title: "page miss, 4,096 versions on other branches (" + name + ") / none", Value: middle(found[name]) / none, Limit: 3})
	}
	return t, nil
}
