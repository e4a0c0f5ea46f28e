//go:build !linux

package sandbox

import (
	"context"
	"runtime"
	"slices"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// processRuns tells whether "process" is a way out: only Linux executes what Linux images hold.
const processRuns = false

type roots struct{ Dir string }

func (*roots) close() error { return nil }

func (r *roots) start(_ context.Context, c engine.Container) (engine.Process, error) {
	return nil, r.check(c.Isolation)
}

func (*roots) check(isolation string) error {
	levels := available()
	for _, l := range levels {
		if l.Kind == isolation {
			return &UnavailableError{Levels: []Level{l}}
		}
	}
	return &UnavailableError{Levels: levels}
}

func available() []Level {
	var levels []Level
	for _, kind := range append(slices.Clone(isolating), kindProcess) {
		levels = append(levels, Level{Kind: kind, Reason: "images for Linux cannot be run on " + runtime.GOOS + ", not even without isolation"})
	}
	return levels
}

// Fingerprint tells what the outcome of a start depends on beside the image. Nothing is started here.
func Fingerprint() string { return "" }

// Emulator tells whether programs for an architecture can be executed.
func Emulator(string) (name string, ok bool) { return "", false }
