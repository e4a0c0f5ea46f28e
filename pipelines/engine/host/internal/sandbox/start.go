// Package sandbox starts an image of an OCI layout on this machine the way production would, without a
// container engine: with runc or crun where slipway is root and one of them is installed, else with Linux
// namespaces that it makes itself.
//
// Every kind of isolation has a helper: a second process of the running program, which lives in the
// container's network namespace (so that a service is reached without a port on the host), starts the
// container and outlives the caller just long enough to clean up behind it. It is the program itself,
// started anew from /proc/self/exe under a private name; an init function of this package recognises that
// name and never returns. That works in any program that imports this package, test binaries included.
package sandbox

import (
	"context"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// The kinds of isolation, the best first.
const (
	kindRunc       = "runc"
	kindCrun       = "crun"
	kindNamespaces = "namespaces"
	kindProcess    = "process"
)

// isolating are the kinds that isolate, the best first.
var isolating = []string{kindRunc, kindCrun, kindNamespaces}

// Start starts the image that c names and returns once its entrypoint has been executed. ctx bounds the
// start alone: afterwards the process runs until it ends or is closed. When Start fails or ctx is cancelled
// before it returns, nothing is left behind.
//
// The kinds of isolation are "runc" and "crun" (as root, where installed), "namespaces", and "process",
// which is no isolation at all and is used only when asked for by name.
//
// An [*UnavailableError] says that the machine cannot isolate a process, an [*engine.ForeignError] that it
// cannot execute the image. Other errors are faults of the image or of the machine.
func Start(ctx context.Context, c engine.Container) (engine.Process, error) {
	return (*roots)(nil).start(ctx, c)
}

// Roots keeps what images were unpacked into, so that an image that is started again is not unpacked again. Its
// zero value keeps them in a directory of its own. Only root file systems that the process cannot write to are kept.
type Roots struct{ roots }

// Start is like the function [Start]. What it keeps is gone after Close.
func (r *Roots) Start(ctx context.Context, c engine.Container) (engine.Process, error) {
	return r.start(ctx, c)
}

// Check tells, before there is an image, whether Start could isolate one so. Its error is the one of Start.
func (r *Roots) Check(isolation string) error { return r.check(isolation) }

// Close removes what was kept. All processes must have been closed.
func (r *Roots) Close() error { return r.close() }

// Available tries every kind of isolation on this machine, the best first, and tells which of them work.
func Available() []Level { return available() }

// Level is a kind of isolation and whether it works on this machine.
type Level struct {
	// Kind is "runc", "crun", "namespaces" or "process".
	Kind string
	// Reason says why the kind does not work here. It is empty when it does.
	Reason string
	// Missing is what would not be in force although the kind works, as in engine.Isolation.
	Missing []string
}

// UnavailableError says that this machine offers no isolation, or not the kind that was asked for.
type UnavailableError struct {
	// Levels are the kinds that were tried, each with its reason.
	Levels []Level
}

func (e *UnavailableError) Error() string {
	if !processRuns {
		return e.Levels[0].Reason // the same for all of them
	}
	var tried []string
	for _, l := range e.Levels {
		tried = append(tried, l.Kind+": "+l.Reason)
	}
	return "this machine cannot isolate the image's process: " + strings.Join(tried, "; ")
}
