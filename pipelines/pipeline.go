// Package pipelines is slipway's pipeline as Go functions: stages with plain data in and out.
//
// A [Pipeline] binds an engine, a configuration and the plan made of them. Its methods are the stages, in
// the order Vet, Test, Build, Verify, Image, Smoke, Attest, Publish; each runs the ones that it needs, and All
// runs all of them. A stage returns its data with a verdict in it. Its error is for what kept it from a
// verdict; see package fault.
package pipelines

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/tail"
	"github.com/slipway-ci/slipway/pipelines/sign"
)

// Options are what a pipeline needs beside its configuration.
type Options struct {
	// Output is the directory that Finish replaces by what the run wrote. Its parent must exist.
	Output string
	// Cache is a directory for what can be fetched again, such as base images.
	Cache string
	// Lock holds the pins to use; new ones are added to it. Nil is the source's lock file.
	Lock *Lock
	// Observe, if set, is called with every event, from several goroutines.
	Observe func(Event)
	// Credentials are for publishing; without them the usual places are asked.
	Credentials Credentials
	// DryRun lets publish ask what would travel, and send nothing.
	DryRun bool
	// Branch and Tag are what a CI service says is being built. Branch counts where none is checked out, Tag
	// besides those of the source.
	Branch, Tag string
	// Signer signs the image and the documents about it. Nil signs nothing.
	Signer sign.Signer
	// Origins says where values of the configuration are from, for the record; see [ConfigOrigins].
	Origins map[string]string
}

// Credentials are a user and a password for the registry that publish pushes to.
type Credentials struct{ Username, Password string }

// Pipeline runs stages over one source tree with one engine. Stages are called one at a time.
type Pipeline struct {
	Config Config
	Plan   *Plan
	Lock   *Lock
	Record *Record

	given  Config // without defaults
	engine engine.Engine
	opts   Options
	dist   *dist
	start  time.Time

	reuse *reuse
	// smokeAhead tells that a smoke run is to come, foreseen that foreseeSmoke has looked at the machine for it.
	smokeAhead, foreseen bool

	mu sync.Mutex // guards Record

	// Results of stages that later ones build on.
	build  *BuildResult
	verify *VerifyResult
	image  *ImageResult
	attest *AttestResult
}

// New plans a pipeline: it finds modules and commands, resolves the matrix, and fetches and verifies
// toolchains and modules. The caller must Close the pipeline.
func New(ctx context.Context, e engine.Engine, c Config, o Options) (*Pipeline, error) {
	given := c
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	p := &Pipeline{Config: c, given: given, Lock: o.Lock, engine: e, opts: o, start: time.Now(), reuse: newReuse(e, c, o)}
	if p.Lock == nil {
		if p.Lock, err = ReadLock(e.Source().FS); err != nil {
			return nil, err
		}
	}
	if p.dist, err = newDist(o.Output); err != nil {
		return nil, err
	}
	p.Record = newRecord(c, e)
	p.Record.Origins = origins(c, given, o.Origins)
	if err := p.plan(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Pipeline) plan(ctx context.Context) error {
	_, err := stored(p, "plan", func() (*Plan, error) {
		err := p.newPlan(ctx)
		return p.Plan, err
	})
	return err
}

func (p *Pipeline) newPlan(ctx context.Context) error {
	s := p.stage("plan")
	err := s.task(ctx, "plan", func(ctx context.Context, progress func(string)) (Verdict, string, error) {
		var err error
		if p.Plan, err = makePlan(ctx, p.engine, p.Config, p.Lock, progress); err != nil {
			return "", "", err
		}
		return Passed, p.Plan.summary(), nil
	})
	if err == nil {
		err = s.task(ctx, "modules", func(ctx context.Context, progress func(string)) (Verdict, string, error) {
			progress("fetching what they require")
			if err := p.fetchModules(ctx); err != nil {
				return "", "", err
			}
			if err := p.Plan.findCommands(ctx, p.engine, p.Config); err != nil {
				return "", "", err
			}
			return Passed, plural(len(p.Plan.Modules), "module", "modules") + ", " + plural(len(p.Plan.Commands), "command", "commands"), nil
		})
	}
	if err != nil {
		return err
	}
	p.Record.planned(p)
	for _, x := range p.Plan.Excluded {
		p.note("plan", "Go %s is excluded: %s", x.Requested, x.Reason)
	}
	for _, n := range p.Plan.Notes {
		p.note("plan", "%s", n)
	}
	s.end(Passed, p.Plan.summary())
	return nil
}

// fetchModules brings all required modules into the module cache. It is the one step that sees the
// user's credentials for module proxies.
func (p *Pipeline) fetchModules(ctx context.Context) error {
	for _, m := range p.Plan.Modules {
		if m.Vendored {
			continue
		}
		r, err := p.engine.Run(ctx, engine.Command{
			Name: "go mod download", Toolchain: p.Plan.BuildRelease, Dir: m.Dir, Args: []string{"go", "mod", "download"},
			Env: p.Plan.env(), Network: true, Writes: true, // it may add to go.sum
		})
		if err != nil {
			return err
		}
		if r.ExitCode != 0 {
			return fetchError(m, r)
		}
	}
	return nil
}

func fetchError(m Module, r *engine.Result) error {
	cause := errors.New(tail.Lines(r.Stderr, 4))
	if !unreachable(r.Stderr) {
		return fault.Usagef("`go mod download` in that directory shows the same; `go mod tidy` mends most of it.", "the requirements of module %s cannot be met: %v", m.Path, cause)
	}
	next := "Check the network, GOPROXY, and credentials (netrc) for private modules; with a warm module cache or vendor/ no network is needed."
	if bytes.Contains(r.Stderr, []byte("403 Forbidden")) {
		next = "The module proxy answers and refuses: see that the version exists, and that the proxy's rules and your credentials (netrc) allow it."
	}
	return fault.Environmentf(cause, next, "the modules that %s requires cannot be fetched", m.Path)
}

// stage is one stage of the run while it runs.
type stage struct {
	p      *Pipeline
	record *StageRecord
	start  time.Time
}

func (p *Pipeline) stage(name string) *stage {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &stage{p: p, record: &StageRecord{Name: name, Started: p.since()}, start: time.Now()}
	p.Record.Stages = append(p.Record.Stages, s.record)
	return s
}

func (p *Pipeline) since() Milliseconds { return Milliseconds(time.Since(p.start)) }

func (s *stage) end(v Verdict, detail string) {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.record.Verdict, s.record.Detail, s.record.Elapsed = v, detail, Milliseconds(time.Since(s.start))
}

func (s *stage) fail(f ...Failure) {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.record.Failures = append(s.record.Failures, f...)
}

// task runs one named part of a stage and reports it. The function returns its verdict and its outcome in
// a few words.
func (s *stage) task(ctx context.Context, name string, f func(ctx context.Context, progress func(string)) (Verdict, string, error)) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	start := time.Now()
	t := TaskRecord{Name: name, Started: s.p.since()}
	s.p.observe(Event{Kind: EventStart, Stage: s.record.Name, Task: name})
	var mu sync.Mutex
	last := ""
	v, detail, err := f(ctx, func(now string) {
		mu.Lock()
		defer mu.Unlock()
		if now != last {
			last = now
			s.p.observe(Event{Kind: EventProgress, Stage: s.record.Name, Task: name, Detail: now})
		}
	})
	elapsed := time.Since(start)
	t.Verdict, t.Detail, t.Elapsed = v, detail, Milliseconds(elapsed)
	if err != nil {
		t.Verdict, t.Detail = Failed, "stopped"
	}
	s.p.observe(Event{Kind: EventDone, Stage: s.record.Name, Task: name, Verdict: t.Verdict, Detail: t.Detail, Elapsed: elapsed})
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.record.Tasks = append(s.record.Tasks, t)
	return err
}

// parallel runs f for 0 to n-1, as many at a time as the configuration allows. The first error cancels
// the rest.
func (p *Pipeline) parallel(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(p.Config.Parallel)
	for i := range n {
		g.Go(func() error { return f(ctx, i) })
	}
	return g.Wait()
}

func (p *Pipeline) observe(e Event) {
	if p.opts.Observe != nil {
		e.Time = time.Now()
		p.opts.Observe(e)
	}
}

func (p *Pipeline) note(stage, format string, a ...any) {
	text := fmt.Sprintf(format, a...)
	p.mu.Lock()
	p.Record.Notes = append(p.Record.Notes, text)
	p.mu.Unlock()
	p.observe(Event{Kind: EventNote, Stage: stage, Detail: text})
}

// All runs every stage until one has a bad verdict, which is in the record.
func (p *Pipeline) All(ctx context.Context) error {
	if err := p.checkImage(); err != nil {
		return err
	}
	if _, err := p.publishTags(); err != nil {
		return err
	}
	p.smokeAhead = true
	vet, err := p.Vet(ctx)
	if err != nil {
		return err
	}
	// Findings of vet are no reason not to know what the tests say.
	test, err := p.Test(ctx)
	if err != nil {
		return err
	}
	vuln := &VulnResult{Verdict: Skipped}
	if p.Config.Vuln != "off" {
		if vuln, err = p.Vuln(ctx); err != nil {
			return err
		}
	}
	if vet.Verdict != Passed || test.Verdict != Passed || vuln.Verdict == Failed {
		return nil
	}
	if len(p.Config.To) > 0 {
		_, err = p.Publish(ctx)
		return err
	}
	smoke, err := p.Smoke(ctx)
	if err != nil || smoke.Verdict == Failed {
		return err
	}
	_, err = p.Attest(ctx)
	return err
}

// Finish writes the run record and replaces the output directory by what the run wrote. When a failed
// run replaces a passed one, that one is kept beside it, with ".passed" added to its name; kept tells so.
func (p *Pipeline) Finish() (kept bool, err error) {
	p.Conclude()
	if err := p.recordFiles(); err != nil {
		return false, p.dist.error(err)
	}
	return p.dist.publish(p.Record)
}

// Close removes what Finish has not put into place.
func (p *Pipeline) Close() error { return p.dist.discard() }

// defaultParallel is how many go commands run well side by side here: each runs several compilers or one
// linker, which on a large program take about 1.5 GiB.
func defaultParallel() int {
	n := maxProcs()
	if m := availableMemory(); m > 0 {
		n = min(n, int(m/(3<<29)))
	}
	return max(n, 1)
}

func (p *Pipeline) path(name ...string) string {
	return filepath.Join(append([]string{p.dist.dir}, name...)...)
}

func (p *Pipeline) writeFile(name string, b []byte) error {
	if err := os.WriteFile(p.path(name), b, 0o644); err != nil {
		return p.dist.error(err)
	}
	return nil
}

// writeJSON writes a result for people and programs to read.
func (p *Pipeline) writeJSON(name string, result any) error {
	b, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		return err
	}
	return p.writeFile(name, append(b, '\n'))
}
