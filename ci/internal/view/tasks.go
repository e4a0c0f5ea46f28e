package view

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// task is a task that runs.
type task struct {
	name   string
	stage  *stage // nil if it is of none
	start  time.Time
	detail string    // what runs now
	due    time.Time // when Plain says next that it still runs
}

// stage is a stage of which a task has started.
type stage struct {
	name  string
	start time.Time
	tasks int // that have started
	ended map[pipelines.Verdict]int
}

// outcome is how many tasks of a stage ended, and how.
func (s *stage) outcome() string {
	var parts []string
	for _, v := range []pipelines.Verdict{pipelines.Failed, pipelines.Passed, pipelines.Skipped, pipelines.NotRun} {
		if n := s.ended[v]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, v))
		}
	}
	return strings.Join(parts, ", ")
}

// tasks are the tasks that run, in the order in which they started. The zero value is ready for use.
type tasks struct {
	running []*task
	stages  []*stage // in the order in which they started
	column  int      // width of the column of names
}

// started counts a task of a stage and returns the stage, nil if the name is empty.
func (t *tasks) started(name string, now time.Time) *stage {
	if name == "" {
		return nil
	}
	i := slices.IndexFunc(t.stages, func(s *stage) bool { return s.name == name })
	if i < 0 {
		i = len(t.stages)
		t.stages = append(t.stages, &stage{name: name, start: now, ended: map[pipelines.Verdict]int{}})
	}
	t.stages[i].tasks++
	return t.stages[i]
}

// The column of names starts wide enough for usual names. It grows for longer ones, but a single very
// long one stands out instead of pushing every detail away.
const (
	minColumn = 24
	maxColumn = 28
)

// event notes a start, progress or end, and returns the task's name.
func (t *tasks) event(e pipelines.Event, now time.Time) string {
	name := report.Clean(e.Task)
	if name == "" {
		name = report.Clean(e.Stage)
	}
	i := slices.IndexFunc(t.running, func(r *task) bool { return r.name == name })
	switch e.Kind {
	case pipelines.EventStart, pipelines.EventProgress:
		if i < 0 {
			i = len(t.running)
			t.running = append(t.running, &task{name: name, stage: t.started(report.Clean(e.Stage), now), start: now, due: now.Add(stillRunning)})
		}
		if e.Detail != "" {
			t.running[i].detail = report.Clean(e.Detail)
		}
	case pipelines.EventDone:
		if i >= 0 {
			if s := t.running[i].stage; s != nil {
				s.ended[e.Verdict]++
			}
			t.running = slices.Delete(t.running, i, i+1)
		}
	default:
		return name
	}
	t.column = max(t.column, minColumn)
	if width := ansi.StringWidth(name); width <= maxColumn {
		t.column = max(t.column, width)
	}
	return name
}

// columns is the line of a task, without its mark.
func (t *tasks) columns(name, elapsed, detail string) string {
	return strings.TrimRight(report.Pad(name, t.column)+" "+report.PadLeft(elapsed, 6)+"  "+detail, " ")
}

// elapsed is the duration of a task that ended, empty for one that did nothing.
func elapsed(e pipelines.Event) string {
	if e.Elapsed <= 0 {
		return ""
	}
	return report.Elapsed(e.Elapsed)
}

// note is what an EventNote says, and of which task.
func note(name, detail string) string {
	if name != "" {
		name += ": "
	}
	return name + report.Clean(detail)
}

// unfinished is said of a task that had not ended when the view was closed.
const unfinished = "did not finish"

// group is the tasks of a stage that run.
type group struct {
	stage   *stage // nil for tasks of none
	running []*task
}

// heading tells whether a line about the stage says more than those of its tasks.
func (g group) heading() bool { return g.stage != nil && g.stage.tasks > 1 }

// groups are the tasks that run by their stages, in the order in which those started.
func (t *tasks) groups() []group {
	var all []group
	for _, r := range t.running {
		i := slices.IndexFunc(all, func(g group) bool { return g.stage == r.stage })
		if i < 0 {
			i = len(all)
			all = append(all, group{stage: r.stage})
		}
		all[i].running = append(all[i].running, r)
	}
	return all
}
