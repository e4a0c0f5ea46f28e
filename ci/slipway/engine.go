package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/engine/dagger"
	"github.com/slipway-ci/slipway/pipelines/engine/host"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

var engines = []string{"host", "dagger"}

// openEngine opens the engine that was asked for, and returns it with what closes it.
func openEngine(ctx context.Context, in *input) (engine.Engine, func() error, error) {
	if home, err := os.UserHomeDir(); err == nil && !slices.ContainsFunc(in.given, func(s string) bool { return strings.HasPrefix(s, "source=") }) && sameDir(in.source, home) &&
		!slices.ContainsFunc([]string{"go.mod", "go.work", ".git", pipelines.ConfigFile}, func(name string) bool { return exists(home, name) }) {
		return nil, nil, fault.Usagef("Change to the directory of a module, or name it with --source.", "source: this is the home directory, and no module")
	}
	switch in.config.Engine {
	case "", "host":
		e, err := host.Open(ctx, in.source, host.Options{Exclude: in.ownFiles()})
		if err != nil {
			return nil, nil, err
		}
		return e, e.Close, nil
	case "dagger":
		client, err := dagger.Connect(ctx)
		if err != nil {
			return nil, nil, err
		}
		e, err := dagger.Open(ctx, client, in.source, dagger.Options{Exclude: in.ownFiles(), GoImage: in.config.GoImage, Env: moduleEnv(), Netrc: netrc()})
		if err != nil {
			return nil, nil, errors.Join(err, client.Close())
		}
		return e, func() error { return errors.Join(e.Close(), client.Close()) }, nil
	}
	return nil, nil, fault.Usagef(fault.Nearest(in.config.Engine, engines)+" It is host or dagger.", "engine: there is no engine %q", in.config.Engine)
}

func sameDir(a, b string) bool {
	x, errA := os.Stat(a)
	y, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(x, y)
}

// moduleEnv is what this machine says about where modules come from.
func moduleEnv() []string {
	var env []string
	for _, name := range []string{"GOPROXY", "GOSUMDB", "GONOSUMDB", "GOPRIVATE", "GONOPROXY", "GOINSECURE", "GOVCS"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// netrc is the user's file of credentials, where there is one.
func netrc() string {
	name := os.Getenv("NETRC")
	if home, err := os.UserHomeDir(); err == nil && name == "" {
		name = filepath.Join(home, ".netrc")
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return "" // whoever needs one learns it from the module proxy
	}
	return string(b)
}
