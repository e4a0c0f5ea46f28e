package dagger

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"dagger.io/dagger"
	"golang.org/x/mod/module"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/internal/tail"
)

// tool returns the program that Command.Tool names, built with the newest toolchain that is ready. Its
// version is exact, so that the Dagger engine may answer from its cache.
func (e *Engine) tool(ctx context.Context, name string) (*dagger.File, error) {
	pkg, v, _ := strings.Cut(name, "@")
	if err := module.Check(pkg, v); err != nil || module.CanonicalVersion(v) != v {
		return nil, fmt.Errorf("tool %q: not a package at an exact version", name)
	}
	if slices.Contains(e.opts.Env, "GOSUMDB=off") {
		return nil, &engine.ToolError{Tool: name, Err: errors.New("GOSUMDB is off, so that nothing can vouch for its modules")}
	}
	e.mu.Lock()
	newest := e.newest
	e.mu.Unlock()
	ctr, err := e.prepare(engine.Command{Name: "go install", Args: []string{"go"}, Dir: engine.OutDir, Toolchain: newest, Network: true}, sourceDir)
	if err != nil {
		return nil, err
	}
	// No private-module pattern skips the checksum database. The tool may ask for a newer Go than the image
	// has, which the go command then fetches and verifies.
	ctr, err = ctr.WithoutEnvVariable("SLIPWAY_RUN").
		WithEnvVariable("GOPRIVATE", "").WithEnvVariable("GONOSUMDB", "").WithEnvVariable("GOTOOLCHAIN", "auto").WithEnvVariable("GOBIN", outDir).
		WithExec([]string{"go", "install", "-trimpath", name}).Sync(ctx)
	if x, ok := errors.AsType[*dagger.ExecError](err); ok {
		return nil, &engine.ToolError{Tool: name, Err: errors.New(tail.Lines(x.Stderr, 5))}
	}
	if err != nil {
		return nil, e.fault(ctx, err, name)
	}
	return ctr.File(outDir + "/" + path.Base(pkg)), nil
}
