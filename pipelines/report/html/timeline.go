package html

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/slipway-ci/slipway/pipelines"
)

// timeline is what ran when.
type timeline struct {
	Total pipelines.Milliseconds
	Rows  []timed
	// Path are the names of the tasks that decided how long the run took, PathTime the time that they took together.
	Path     []timed
	PathTime pipelines.Milliseconds
	// Reused are the stages that did not run.
	Reused []string
}

// timed is a task with its place on the time line, in percent of the whole.
type timed struct {
	pipelines.TaskRecord
	Stage    string
	First    bool // of its stage
	Critical bool
	Parts    []part
}

func (t timed) end() pipelines.Milliseconds { return t.Started + t.Elapsed }

// newTimeline puts the tasks of a run in the order in which they began. The times of a reused stage are of an
// earlier run, so they have no place here.
func newTimeline(r *pipelines.Record) timeline {
	t := timeline{Total: r.Elapsed}
	for _, s := range r.Stages {
		if s.Reused != "" {
			t.Reused = append(t.Reused, s.Name)
			continue
		}
		tasks := slices.Clone(s.Tasks)
		slices.SortStableFunc(tasks, func(a, b pipelines.TaskRecord) int { return cmp.Compare(a.Started, b.Started) })
		for i, x := range tasks {
			t.Rows = append(t.Rows, timed{TaskRecord: x, Stage: s.Name, First: i == 0})
			t.Total = max(t.Total, x.Started+x.Elapsed)
		}
	}
	for _, i := range criticalPath(t.Rows) {
		t.Rows[i].Critical = true
		t.Path = append(t.Path, t.Rows[i])
		t.PathTime += t.Rows[i].Elapsed
	}
	for i := range t.Rows {
		x := &t.Rows[i]
		class := "c"
		switch {
		case x.Verdict == pipelines.Failed:
			class = "f"
		case x.Critical:
			class = "a"
		}
		width := max(percent(x.Elapsed, t.Total), 0.4) // What there was can be seen.
		x.Parts = []part{{class, fmt.Sprintf("%.2f%%", min(percent(x.Started, t.Total), 100-width)), fmt.Sprintf("%.2f%%", width)}}
	}
	return t
}

func percent(part, whole pipelines.Milliseconds) float64 {
	if whole <= 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}

// criticalPath are the tasks that decided how long the run took. It goes back from the one that ended last: each
// began when the one before it had ended, be it that it needed what that made or that it needed its place.
func criticalPath(rows []timed) []int {
	const slack = pipelines.Milliseconds(1e6) // Times of a record are cut to milliseconds.
	last := func(by pipelines.Milliseconds, taken []int) int {
		found := -1
		for i, x := range rows {
			if x.end() > by || slices.Contains(taken, i) {
				continue
			}
			if found < 0 || x.end() > rows[found].end() || x.end() == rows[found].end() && x.Elapsed > rows[found].Elapsed {
				found = i
			}
		}
		return found
	}
	var path []int
	by := pipelines.Milliseconds(1<<63 - 1)
	for {
		i := last(by, path)
		if i < 0 {
			break
		}
		path = append(path, i)
		by = min(by, rows[i].Started+slack)
	}
	slices.Reverse(path)
	return path
}

// Longest is the longest task of the critical path.
func (t timeline) Longest() timed {
	if len(t.Path) == 0 {
		return timed{}
	}
	return slices.MaxFunc(t.Path, func(a, b timed) int { return cmp.Compare(a.Elapsed, b.Elapsed) })
}

// Share is how much of the whole a time is.
func (t timeline) Share(m pipelines.Milliseconds) string {
	return fmt.Sprintf("%.0f %%", percent(m, t.Total))
}
