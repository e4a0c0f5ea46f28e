package main

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"

	"github.com/spf13/pflag"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

// plain tells whether a command has nothing to do with any source, its configuration, or flags.
func (c *command) plain() bool { return c.name == "version" || c.name == "completion" }

func runPlain(c *command, args []string, stdout io.Writer) error {
	if slices.Contains(args, "--help") || slices.Contains(args, "-h") {
		return errors.Join(pflag.ErrHelp, printHelp(stdout, c, nil))
	}
	if c.name == "completion" {
		return printCompletion(stdout, args)
	}
	if len(args) > 0 {
		return fault.Usagef("", "version: unexpected argument %q", args[0])
	}
	return printVersion(stdout)
}

// printVersion prints what the go command has written into the program.
func printVersion(w io.Writer) error {
	version, revision := "(devel)", ""
	if b, ok := debug.ReadBuildInfo(); ok {
		if b.Main.Version != "" {
			version = b.Main.Version
		}
		setting := func(key string) string {
			for _, s := range b.Settings {
				if s.Key == key {
					return s.Value
				}
			}
			return ""
		}
		if revision = setting("vcs.revision"); revision != "" {
			revision = "\ncommit " + revision + " of " + setting("vcs.time")
			if setting("vcs.modified") == "true" {
				revision += ", changed"
			}
		}
	}
	_, err := fmt.Fprintf(w, "slipway %s (%s, %s/%s)%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH, revision)
	return err
}
