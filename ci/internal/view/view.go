// Package view shows the events of a pipeline while it runs: to a person at a terminal ([Live]), to
// whoever reads a log later ([Plain]) or to a program ([JSON]).
//
// Details of events come from the output of tested programs. Live and Plain never let a
// control character of theirs reach the terminal: see [report.Clean].
package view

import (
	"os"

	"golang.org/x/term"

	"github.com/slipway-ci/slipway/pipelines"
)

// View shows a pipeline's events to a person or a program. A failing write is ignored: a run does not
// fail because nobody can watch it.
type View interface {
	// Event shows one event. It may be called concurrently.
	Event(e pipelines.Event)
	// Close shows what is still to be shown and leaves the output to the caller. Tasks that have not
	// ended by then are named as such. Later events are ignored.
	Close()
}

// Choose returns the view that fits w: JSON when asked for, Live for a person at a terminal, otherwise
// Plain. The variables TERM, CI and NO_COLOR are read with getenv, usually os.Getenv.
func Choose(w *os.File, json bool, getenv func(string) string) View {
	switch {
	case json:
		return JSON(w)
	case term.IsTerminal(int(w.Fd())) && getenv("TERM") != "dumb" && getenv("CI") == "":
		return Live(w, getenv("NO_COLOR") == "")
	default:
		return Plain(w)
	}
}
