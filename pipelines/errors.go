package pipelines

import (
	"errors"
	"fmt"
)

// Fault says whose fault an Error is.
type Fault int

const (
	// Usage: the command line, the configuration or the shape of the source is wrong; nothing was run.
	Usage Fault = iota + 1
	// Environment: the machine, the network or a remote service failed; the source is not to blame.
	Environment
)

// Error is a failure that kept a stage from reaching a verdict. A stage that reached a bad verdict
// returns a result that says so, not an Error.
type Error struct {
	Fault Fault
	// What failed, in a few words that name the thing.
	What string
	// Next is what to do about it.
	Next string
	// Err is the cause, if any.
	Err error
}

func (e *Error) Error() string {
	s := e.What
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Next != "" {
		s += "\n  " + e.Next
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// FaultOf tells whose fault err is. Anything that is not an Error is the environment's.
func FaultOf(err error) Fault {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Fault
	}
	return Environment
}

func usageError(next, format string, a ...any) error {
	return &Error{Fault: Usage, What: fmt.Sprintf(format, a...), Next: next}
}

func environmentError(err error, next, format string, a ...any) error {
	return &Error{Fault: Environment, What: fmt.Sprintf(format, a...), Next: next, Err: err}
}
