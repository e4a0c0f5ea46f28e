package pipelines

import "time"

// Verdict is what a stage says of its subject.
type Verdict string

// The verdicts of stages and tasks.
const (
	Passed Verdict = "passed"
	Failed Verdict = "failed"
	// Skipped: not done because it was switched off or an earlier stage failed.
	Skipped Verdict = "skipped"
	// NotRun: wanted, but this machine cannot do it, such as running an image of another platform.
	NotRun Verdict = "not run"
)

// EventKind tells what an Event reports.
type EventKind string

// The kinds of events.
const (
	// EventStart: the task begins.
	EventStart EventKind = "start"
	// EventProgress: Detail says what the task does now, such as the test that runs.
	EventProgress EventKind = "progress"
	// EventDone: the task ended with Verdict; Detail is its outcome in a few words.
	EventDone EventKind = "done"
	// EventNote: Detail is something that a person should know and that changes no verdict.
	EventNote EventKind = "note"
)

// Event is one step of a running pipeline, for progress displays. Events of one task come in order;
// those of tasks that run in parallel are interleaved.
type Event struct {
	Time time.Time `json:"time"`
	Kind EventKind `json:"event"`
	// Stage is the stage's name: "vet", "test", ...
	Stage string `json:"stage"`
	// Task names the task within the run, such as "test 1.22.12" or "build linux/arm64".
	Task    string  `json:"task"`
	Verdict Verdict `json:"verdict,omitempty"`
	Detail  string  `json:"detail,omitempty"`
	// Elapsed is the task's duration; set with EventDone.
	Elapsed time.Duration `json:"elapsed_ns,omitempty"`
}
