package dagger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"dagger.io/dagger"
	"go.opentelemetry.io/otel"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// Directories in the containers. None of them is one that a program could name by chance: they are looked
// for in what was built.
const (
	sourceDir   = "/slipway/source"
	rebuildDir  = "/slipway/rebuild/source"
	outDir      = "/slipway/out"
	homeDir     = "/slipway/home"
	modCache    = "/slipway/cache/mod"
	buildCache  = "/slipway/cache/build"
	emptyCache  = "/slipway/rebuild/cache"
	streamedOut = "/slipway/stdout"
	toolDir     = "/slipway/tool"
	inputDir    = "/slipway/input"
)

// Run implements engine.Engine. Command.Keep means nothing here: an exec whose inputs are unchanged is
// answered from the Dagger engine's cache. For the same reason a rebuild is done once for each input. Commands
// that see the network, and tests, are run every time: what they say may change, and a failure must not stay.
func (e *Engine) Run(ctx context.Context, c engine.Command) (*engine.Result, error) {
	// The span groups the exec under the command's name, where somebody collects traces.
	ctx, span := otel.Tracer("github.com/slipway-ci/slipway").Start(ctx, c.Name)
	defer span.End()
	root := sourceDir
	if c.Relocate {
		root = rebuildDir
	}
	ctr, err := e.prepare(c, root)
	if err != nil {
		return nil, err
	}
	if c.Input != "" {
		ctr = ctr.WithMountedDirectory(inputDir, e.client.Host().Directory(c.Input))
	}
	replace := strings.NewReplacer(engine.OutDir, outDir, engine.SourceDir, root, engine.InputDir, inputDir, engine.InputURL, "file://"+inputDir)
	for _, v := range c.Env {
		name, value, _ := strings.Cut(v, "=")
		ctr = ctr.WithEnvVariable(name, replace.Replace(value))
	}
	args := make([]string, len(c.Args))
	for i, a := range c.Args {
		args[i] = replace.Replace(a)
	}
	if c.Tool != "" {
		tool, err := e.tool(ctx, c.Tool)
		if err != nil {
			return nil, err
		}
		args[0] = toolDir + "/" + args[0]
		ctr = ctr.WithMountedFile(args[0], tool)
	}
	// A command that fails has outputs too.
	o := dagger.ContainerWithExecOpts{Expect: dagger.ReturnTypeAny}
	if c.Stdout != nil {
		o.RedirectStdout = streamedOut // as a file it may have any size
	}
	start := time.Now()
	ctr, err = ctr.WithExec(args, o).Sync(ctx)
	r := &engine.Result{Dir: root}
	if x, ok := errors.AsType[*dagger.ExecError](err); ok {
		// Exit codes from 128 on, those of signals, are errors to Dagger whatever was expected.
		r.ExitCode, r.Stdout, r.Stderr, r.Duration = x.ExitCode, []byte(x.Stdout), hide(x.Stderr, root), time.Since(start)
		return r, nil
	}
	if err != nil {
		return nil, e.fault(ctx, err, c.Name)
	}
	r.Duration = time.Since(start)
	if err := e.collect(ctx, c, ctr, root, r); err != nil {
		return nil, err
	}
	return r, nil
}

func hide(text, root string) []byte {
	return bytes.ReplaceAll([]byte(text), []byte(root), []byte("."))
}

// collect fetches exit code, texts and outputs of a command that has run.
func (e *Engine) collect(ctx context.Context, c engine.Command, ctr *dagger.Container, root string, r *engine.Result) error {
	var err error
	if r.ExitCode, err = ctr.ExitCode(ctx); err != nil {
		return e.fault(ctx, err, c.Name)
	}
	stderr, err := ctr.Stderr(ctx)
	if err != nil {
		return e.fault(ctx, err, c.Name)
	}
	r.Stderr = hide(stderr, root)
	if c.Stdout != nil {
		err = e.stream(ctx, ctr.File(streamedOut), c.Stdout)
	} else {
		var stdout string
		stdout, err = ctr.Stdout(ctx)
		r.Stdout = []byte(stdout)
	}
	if err != nil {
		return e.fault(ctx, err, "output of "+c.Name)
	}
	if len(c.Outputs) == 0 {
		return nil
	}
	var below, above []string
	for _, o := range c.Outputs {
		if name, ok := strings.CutPrefix(o, engine.SourceDir+"/"); ok {
			above = append(above, pattern(name))
		} else {
			below = append(below, pattern(o))
		}
	}
	outputs := e.client.Directory()
	if len(below) > 0 {
		outputs = outputs.WithDirectory("/", ctr.Directory(outDir), dagger.DirectoryWithDirectoryOpts{Include: below})
	}
	if len(above) > 0 {
		outputs = outputs.WithDirectory("/", ctr.Directory(root), dagger.DirectoryWithDirectoryOpts{Include: above})
	}
	if _, err := outputs.Export(ctx, c.OutputDir); err != nil {
		return e.fault(ctx, err, "outputs of "+c.Name)
	}
	return nil
}

// pattern is a pattern that matches just one name.
func pattern(name string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(name)
}

func (e *Engine) stream(ctx context.Context, f *dagger.File, w io.Writer) error {
	dir, err := os.MkdirTemp(e.temp, "stdout-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "stdout")
	if _, err := f.Export(ctx, name); err != nil {
		return err
	}
	r, err := os.Open(name)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}

// prepare is the container that a command runs in: the toolchain's image, the source, the caches, and an
// environment in which nothing is left to the image.
func (e *Engine) prepare(c engine.Command, root string) (*dagger.Container, error) {
	ctr, err := e.container(c.Toolchain)
	if err != nil {
		return nil, err
	}
	if len(c.Args) == 0 || c.Args[0] != "go" && c.Args[0] != "gofmt" && c.Tool == "" {
		return nil, fmt.Errorf("%s: not a command of a Go toolchain", c.Name)
	}
	dir := path.Join(root, c.Dir)
	if c.Dir == engine.OutDir {
		dir = outDir
	}
	cgo := "0"
	if c.CGO {
		cgo = "1"
	}
	ctr = ctr.
		// Else the first go command in a new home starts a process of its own.
		WithNewFile(homeDir+"/.config/go/telemetry/mode", "off\n").
		WithDirectory(outDir, e.client.Directory()).
		WithMountedCache(modCache, e.client.CacheVolume("slipway-mod")).
		WithMountedDirectory(root, e.tree).
		WithWorkdir(dir).
		WithEnvVariable("HOME", homeDir).WithEnvVariable("GOPATH", homeDir+"/go").WithEnvVariable("GOMODCACHE", modCache).
		WithEnvVariable("GOENV", "off").WithEnvVariable("GOFLAGS", "").WithEnvVariable("GOTOOLCHAIN", "local").WithEnvVariable("GOWORK", "off").
		WithEnvVariable("GO111MODULE", "on").WithEnvVariable("LANG", "C.UTF-8").WithEnvVariable("TZ", "UTC").WithEnvVariable("CGO_ENABLED", cgo) // [Engine.Describe] has them too
	if c.Relocate {
		ctr = ctr.WithEnvVariable("GOCACHE", emptyCache)
	} else {
		release := c.Toolchain
		if release == "" {
			release = "any"
		}
		ctr = ctr.WithMountedCache(buildCache, e.client.CacheVolume("slipway-build-"+release)).WithEnvVariable("GOCACHE", buildCache)
	}
	if c.Network || c.Writes {
		ctr = ctr.WithEnvVariable("SLIPWAY_RUN", e.run)
	}
	if !c.Network {
		return ctr.WithEnvVariable("GOPROXY", "off").WithEnvVariable("GOSUMDB", "off"), nil
	}
	for _, v := range e.opts.Env {
		name, value, _ := strings.Cut(v, "=")
		if strings.Contains(value, "@") {
			ctr = ctr.WithSecretVariable(name, e.client.SetSecret("slipway-"+name, value))
		} else {
			ctr = ctr.WithEnvVariable(name, value)
		}
	}
	if e.opts.Netrc != "" {
		ctr = ctr.WithMountedSecret(homeDir+"/.netrc", e.client.SetSecret("slipway-netrc", e.opts.Netrc))
	}
	return ctr, nil
}

// compileAgent compiles the agent, once, with the newest toolchain that is ready.
func (e *Engine) compileAgent(ctx context.Context) (*dagger.File, error) {
	e.agents.Do(func() {
		ctr, err := e.prepare(engine.Command{Name: "agent", Args: []string{"go"}, Dir: engine.OutDir, Toolchain: e.newest}, sourceDir)
		if err != nil {
			e.agentIs = err
			return
		}
		ctr, err = ctr.WithNewFile(outDir+"/agent.go", agentSource).
			WithExec([]string{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", "agent", "agent.go"}).Sync(ctx)
		if err != nil {
			e.agentIs = e.fault(ctx, err, "the program that watches the smoke run cannot be compiled")
			return
		}
		e.agent = ctr.File(outDir + "/agent")
	})
	if e.agentIs != nil {
		return nil, fault.Environmentf(e.agentIs, "", "smoke run")
	}
	return e.agent, nil
}
