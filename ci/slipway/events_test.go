package main

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/slipway-ci/slipway/ci/internal/view"
	"github.com/slipway-ci/slipway/pipelines"
)

// line is one line of --json, of any kind.
type line struct {
	Schema int `json:"schema"`
	pipelines.Event
	// Of the last line.
	Error     string            `json:"error"`
	Record    *pipelines.Record `json:"record"`
	Plan      *pipelines.Plan   `json:"plan"`
	Platforms []string          `json:"platforms"`
}

// lineKeys are the keys that a line of each kind has always, and those that it may have. It is what docs/formats.md
// says: programs rely on it.
var lineKeys = map[pipelines.EventKind]struct{ always, maybe []string }{
	pipelines.EventStart:    {[]string{"time", "event", "stage", "task"}, nil},
	pipelines.EventProgress: {[]string{"time", "event", "stage", "task"}, []string{"detail"}},
	pipelines.EventDone:     {[]string{"time", "event", "stage", "task", "verdict"}, []string{"detail", "elapsed_ns"}},
	pipelines.EventNote:     {[]string{"time", "event", "stage", "task", "detail"}, nil},
	"end":                   {[]string{"schema", "event"}, []string{"error", "verdict", "record", "plan", "platforms"}},
}

// events checks that a file is what docs/formats.md says of --json.
func events(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: events FILE")
	}
	lines := strings.Split(strings.TrimSuffix(ts.ReadFile(args[0]), "\n"), "\n")
	begun := map[string]bool{}
	for i, text := range lines {
		var l line
		d := json.NewDecoder(bytes.NewReader([]byte(text)))
		d.DisallowUnknownFields()
		if err := d.Decode(&l); err != nil {
			ts.Fatalf("line %d: %v: %s", i+1, err, text)
		}
		var has map[string]any
		ts.Check(json.Unmarshal([]byte(text), &has))
		want, ok := lineKeys[l.Kind]
		for _, key := range want.always {
			ok = ok && has[key] != nil
		}
		for key := range has {
			ok = ok && (slices.Contains(want.always, key) || slices.Contains(want.maybe, key) || key == "schema" && i == 0)
		}
		last := i == len(lines)-1
		if !ok || (l.Kind == "end") != last || (i == 0 || last) != (l.Schema == view.Schema) {
			ts.Fatalf("line %d is not as it is documented: %s", i+1, text)
		}
		switch l.Kind {
		case pipelines.EventStart:
			begun[l.Task] = true
		case pipelines.EventDone:
			// What an earlier run has done ends without having begun.
			delete(begun, l.Task)
		}
	}
	if len(begun) > 0 {
		ts.Fatalf("not ended: %v", begun)
	}
}
