package view

import (
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
	start  time.Time
	detail string    // what runs now
	due    time.Time // when Plain says next that it still runs
}

// tasks are the tasks that run, in the order in which they started. The zero value is ready for use.
type tasks struct {
	running []*task
	column  int // width of the column of names
}

// The column of names starts wide enough for usual names. It grows for longer ones, but a single very
// long one stands out instead of pushing every detail away.
const (
	minColumn = 20
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
			t.running = append(t.running, &task{name: name, start: now, due: now.Add(stillRunning)})
		}
		if e.Detail != "" {
			t.running[i].detail = report.Clean(e.Detail)
		}
	case pipelines.EventDone:
		if i >= 0 {
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
