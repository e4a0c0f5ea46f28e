// Command slipway tests, builds, verifies, packs, tries and publishes a Go program, with one command and
// the same result on every machine. It parses, calls package pipelines, and prints.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

// The exit codes.
const (
	exitGood        = 0
	exitVerdict     = 1
	exitUsage       = 2
	exitEnvironment = 3
	exitInterrupted = 130
)

func main() {
	// The first signal ends the run in order; after it the signals do what they always do, so that a
	// second one ends slipway at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// errVerdict says that a stage's verdict is bad, which has been printed.
var errVerdict = errors.New("a stage failed")

func run(ctx context.Context, args []string, stdout io.Writer, stderr *os.File) int {
	err := dispatch(ctx, args, stdout, stderr)
	switch {
	case err == nil, errors.Is(err, pflag.ErrHelp):
		return exitGood
	case errors.Is(err, errVerdict):
		return exitVerdict
	case ctx.Err() != nil, fault.Of(err) == fault.Interrupted:
		fmt.Fprintln(stderr, "slipway: interrupted; the output directory is as it was")
		return exitInterrupted
	}
	fmt.Fprintln(stderr, "slipway: "+err.Error())
	if fault.Of(err) == fault.Usage {
		return exitUsage
	}
	return exitEnvironment
}
