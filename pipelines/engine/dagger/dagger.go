// Package dagger is the engine that runs commands in containers, through a Dagger engine.
//
// Commands run in the official golang images, each as one exec, so that each is a span of the trace and is
// cached by the Dagger engine. Everything else is the same code as with the host engine, in the calling
// process: the source is read there and sent to the engine, and outputs are brought back.
package dagger

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"dagger.io/dagger"
	"golang.org/x/mod/semver"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/engine/internal/source"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// oldestEngine is the oldest Dagger engine that was tried.
const oldestEngine = "v0.21.8"

// DefaultGoImage is the repository of the official images of Go.
const DefaultGoImage = "golang"

// Options change how an engine works. The zero value is right where the engine reaches public registries.
type Options struct {
	// Exclude names files and directories that are not part of the source, relative to its root: what
	// slipway itself writes.
	Exclude []string
	// GoImage is the repository to take the golang images from, such as a mirror's. Their tags are exact
	// releases. Empty means DefaultGoImage.
	GoImage string
	// Env are variables for commands that reach module proxies: GOPROXY, GOPRIVATE and their like, as
	// "KEY=value". Values may hold credentials.
	Env []string
	// Netrc is the content of a .netrc file with credentials for private modules.
	Netrc string
}

// Engine is the Dagger engine. It implements engine.Engine.
type Engine struct {
	client *dagger.Client
	opts   Options
	temp   string // holds the copy of the source that was sent, and what travels
	source engine.Source
	tree   *dagger.Directory
	// run sets commands apart from those of earlier runs which the engine must not answer from its cache.
	run      string
	platform string
	version  string // of the Dagger engine

	mu      sync.Mutex
	images  map[string]string // exact release to the image's reference with its digest
	newest  string            // the newest release of images
	agents  sync.Once
	agent   *dagger.File
	agentIs error
}

var _ engine.Engine = (*Engine)(nil)

// Connect connects to a Dagger engine: to the session that the process runs in (a module function,
// `dagger run`), else to the engine that the dagger command on the PATH finds. The caller must Close the
// client.
func Connect(ctx context.Context) (*dagger.Client, error) {
	const next = "Install the dagger command and a container runtime for its engine, or set _EXPERIMENTAL_DAGGER_RUNNER_HOST to a running engine (such as unix:///run/dagger/engine.sock); --engine=host needs neither."
	if os.Getenv("DAGGER_SESSION_PORT") == "" && os.Getenv("_EXPERIMENTAL_DAGGER_CLI_BIN") == "" {
		// Without this the SDK would download a program and run it.
		path, err := exec.LookPath("dagger")
		if err != nil {
			return nil, fault.Environmentf(nil, next, "no dagger command on the PATH")
		}
		if err := os.Setenv("_EXPERIMENTAL_DAGGER_CLI_BIN", path); err != nil {
			return nil, fault.Environmentf(err, "", "dagger")
		}
	}
	client, err := dagger.Connect(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fault.Environmentf(clean(err), next, "no Dagger engine can be reached")
	}
	return client, nil
}

// Open binds an engine to the source tree in dir, a directory of the calling process. Inside of a module
// function that is where the function has exported its Directory to. The client stays the caller's.
func Open(ctx context.Context, client *dagger.Client, dir string, o Options) (*Engine, error) {
	if i, err := os.Stat(dir); err != nil || !i.IsDir() {
		return nil, fault.Usagef("Give the directory of a Go module with --source.", "source %s is not a directory", dir)
	}
	if o.GoImage == "" {
		o.GoImage = DefaultGoImage
	}
	e := &Engine{client: client, opts: o, run: rand.Text(), images: map[string]string{}}
	if err := e.open(ctx, dir); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

func (e *Engine) open(ctx context.Context, dir string) error {
	version, err := e.client.Version(ctx)
	if err != nil {
		return e.fault(ctx, err, "the Dagger engine")
	}
	if semver.IsValid(version) && semver.Compare(version, oldestEngine) < 0 {
		return fault.Environmentf(nil, "Update the Dagger engine and the dagger command.", "the Dagger engine is %s, slipway needs %s", version, oldestEngine)
	}
	e.version = version
	platform, err := e.client.DefaultPlatform(ctx)
	if err != nil {
		return e.fault(ctx, err, "the Dagger engine")
	}
	e.platform = string(platform)
	if e.source, err = source.Read(ctx, dir, e.opts.Exclude); err != nil {
		return err
	}
	if e.temp, err = os.MkdirTemp("", "slipway-dagger-"); err != nil {
		return tempError(err)
	}
	tree := source.Tree{From: dir, Root: filepath.Join(e.temp, "source"), Files: e.source.Files}
	if err := tree.Sync(); err != nil {
		return tempError(err)
	}
	e.source.FS = os.DirFS(tree.Root)
	e.tree = e.client.Host().Directory(tree.Root)
	return nil
}

func tempError(err error) error {
	return fault.Environmentf(err, "Set TMPDIR to a directory that can be written and has space.", "directory for temporary files")
}

// Name implements engine.Engine.
func (e *Engine) Name() string { return "dagger" }

// Source implements engine.Engine.
func (e *Engine) Source() engine.Source { return e.source }

// Close implements engine.Engine. It leaves the client open.
func (e *Engine) Close() error {
	if e.temp == "" {
		return nil
	}
	return source.RemoveAll(e.temp)
}

// fault is the error for a question that the Dagger engine did not answer.
func (e *Engine) fault(ctx context.Context, err error, what string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fault.Environmentf(clean(err), "`dagger version` and `dagger core version` tell whether the engine answers; its own log says more.", "%s", what)
}

// clean is an error of the Dagger engine without what only a GraphQL client needs.
func clean(err error) error {
	text := err.Error()
	if i := strings.LastIndex(text, " [traceparent:"); i >= 0 {
		text = text[:i]
	}
	text = strings.TrimPrefix(strings.TrimPrefix(text, "input: "), "Post \"http://dagger/query\": ")
	return &cleanError{text: text, err: err}
}

type cleanError struct {
	text string
	err  error
}

func (e *cleanError) Error() string { return e.text }
func (e *cleanError) Unwrap() error { return e.err }
