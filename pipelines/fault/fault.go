// Package fault says whose fault a failure is, so that every error can name what failed and what to do
// next, and a command line can choose its exit code.
package fault

import (
	"context"
	"errors"
	"fmt"
)

// Kind says whose fault an Error is.
type Kind int

const (
	// Usage: the command line, the configuration or the shape of the source is wrong.
	Usage Kind = iota + 1
	// Environment: the machine, the network or a remote service failed; the source is not to blame.
	Environment
	// Interrupted: a person or a supervisor cancelled the run.
	Interrupted
)

// Error is a failure that kept a stage from reaching a verdict. A stage that reached a bad verdict
// returns a result that says so, not an Error.
type Error struct {
	Kind Kind
	// What failed, in a few words that name the thing. Empty if Err does.
	What string
	// Next is what to do about it.
	Next string
	// Err is the cause, if any.
	Err error
}

func (e *Error) Error() string {
	s := e.What
	if e.Err != nil && s != "" {
		s += ": "
	}
	if e.Err != nil {
		s += e.Err.Error()
	}
	if e.Next != "" {
		s += "\n  " + e.Next
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Usagef returns an Error of kind Usage. next is what to do about it.
func Usagef(next, format string, a ...any) error {
	return &Error{Kind: Usage, What: fmt.Sprintf(format, a...), Next: next}
}

// Environmentf returns an Error of kind Environment with the cause err, which may be nil. next is what
// to do about it.
func Environmentf(err error, next, format string, a ...any) error {
	return &Error{Kind: Environment, What: fmt.Sprintf(format, a...), Next: next, Err: err}
}

// Of tells whose fault err is. Anything that does not say so itself is the environment's.
func Of(err error) Kind {
	if errors.Is(err, context.Canceled) {
		return Interrupted
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Environment
}
