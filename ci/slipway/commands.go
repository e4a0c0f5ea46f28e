package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/slipway-ci/slipway/ci/internal/view"
	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/engine/host"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/report/formats"
)

// command is one subcommand.
type command struct {
	name, summary, example string
	// run does the work of a command that runs stages.
	run func(ctx context.Context, p *pipelines.Pipeline) error
}

func stageRunner[T any](stage func(*pipelines.Pipeline, context.Context) (T, error)) func(context.Context, *pipelines.Pipeline) error {
	return func(ctx context.Context, p *pipelines.Pipeline) error {
		_, err := stage(p, ctx)
		return err
	}
}

var commands = []command{
	{"all", "run every stage; publish if --to is given", "slipway all --platforms=linux/amd64,linux/arm64 --to=registry.example/team/app:1.4.2",
		func(ctx context.Context, p *pipelines.Pipeline) error { return p.All(ctx) }},
	{"vet", "go vet under every release, gofmt, and the module files", "slipway vet --go-versions=1.22,stable", stageRunner((*pipelines.Pipeline).Vet)},
	{"test", "go test under every release", "slipway test --go-versions=1.20,1.21,1.22 --race", stageRunner((*pipelines.Pipeline).Test)},
	{"vuln", "look for known vulnerabilities that affect the program", "slipway vuln --vuln-db=https://vuln.go.dev", stageRunner((*pipelines.Pipeline).Vuln)},
	{"build", "compile every command for every platform, strip, and read back", "slipway build --platforms=linux/amd64,windows/amd64", stageRunner((*pipelines.Pipeline).Build)},
	{"verify", "prove that the stripped binaries are the ones that were built; or check an image: verify REFERENCE", "slipway verify registry.example/team/app:1.4.2 --key=cosign.pub", stageRunner((*pipelines.Pipeline).Verify)},
	{"image", "put the verified binaries into an image, as an OCI layout", "slipway image --base=distroless --size-limit=20MiB", stageRunner((*pipelines.Pipeline).Image)},
	{"smoke", "start the image as production would, ask it, and stop it", "slipway smoke", stageRunner((*pipelines.Pipeline).Smoke)},
	{"attest", "write SBOMs and provenance of the image, and sign them", "slipway attest --sign-key=cosign.key --sign-password=env:COSIGN_PASSWORD", stageRunner((*pipelines.Pipeline).Attest)},
	{"publish", "push the image and read it back", "slipway publish --to=127.0.0.1:5000/hello:1.0.0", stageRunner((*pipelines.Pipeline).Publish)},
	{"deps", "say on what the programs depend: double major versions, heavy packages, unused requirements", "slipway deps", stageRunner((*pipelines.Pipeline).Deps)},
	{"compare", "put the program on several base images: size, files, shell, libc, packages, cold start", "slipway compare --bases=scratch,distroless,alpine", stageRunner((*pipelines.Pipeline).Compare)},
	{"kube", "print a Kubernetes manifest that fits the image and its smoke run", "slipway kube --to=registry.example/team/app:1.4.2 > app.yaml", stageRunner((*pipelines.Pipeline).Kube)},
	{"reproduce", "repeat what failed in a recorded run: reproduce RECORD", "slipway reproduce dist/run.json", nil},
	{"explain", "say what two recorded runs have differently, and why: explain A B", "slipway explain before/run.json dist/run.json", nil},
	{"report", "write report.html again, or compare two runs in comparison.html: report RECORD [RECORD]", "slipway report dist/run.json", nil},
	{"init", "write slipway.yaml and a CI job for this repository", "slipway init --ci=github", nil},
	{"plan", "show what would be done", "slipway plan", nil},
	{"lock", "resolve what the configuration leaves open and write slipway.lock", "slipway lock --update", nil},
	{"doctor", "tell what this machine can do, and what to do about the rest", "slipway doctor", nil},
	{"completion", "print what lets a shell complete commands and flags", "source <(slipway completion bash)", nil},
	{"version", "show the version of slipway", "slipway version", nil},
}

func find(name string) *command {
	for i := range commands {
		if commands[i].name == name {
			return &commands[i]
		}
	}
	return nil
}

func dispatch(ctx context.Context, args []string, stdout io.Writer, stderr *os.File) error {
	if len(args) == 0 || args[0] == "help" && len(args) == 1 || args[0] == "-h" || args[0] == "--help" {
		return printUsage(stdout)
	}
	name, args := args[0], args[1:]
	if name == "help" {
		name, args = args[0], []string{"--help"}
	}
	if name == "--version" {
		name = "version"
	}
	c := find(name)
	if c == nil {
		var names []string
		for _, c := range commands {
			names = append(names, c.name)
		}
		return fault.Usagef(fault.Nearest(name, names)+" `slipway --help` lists the commands.", "there is no command %q", name)
	}
	if c.plain() {
		return runPlain(c, args, stdout)
	}
	in, err := parse(c, args, stdout)
	if err != nil {
		return err
	}
	switch name {
	case "doctor":
		return doctor(ctx, in, stdout)
	case "reproduce":
		return reproduce(ctx, in, stdout, stderr)
	case "explain":
		return explain(in, stdout)
	case "report":
		return writeReport(ctx, in, stdout)
	}
	if in.reference != "" {
		return verifyImage(ctx, in, stdout, stderr)
	}
	return execute(ctx, c, in, stdout, stderr)
}

// execute runs one command over one source.
func execute(ctx context.Context, c *command, in *input, stdout io.Writer, stderr *os.File) (err error) {
	if (c.name == "publish" || in.dryRun) && len(in.config.To) == 0 {
		return fault.Usagef("Name a reference, oci:DIR, tar:FILE or embedded, such as --to=registry.example/team/app:1.4.2.", "publish needs a place to push to")
	}
	if c.name == "init" {
		if _, _, _, err := initTargets(in); err != nil {
			return err
		}
	}
	e, closeEngine, err := openEngine(ctx, in)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, closeEngine())
		if err != nil && !errors.Is(err, errVerdict) && in.json {
			_ = json.NewEncoder(stdout).Encode(map[string]any{"event": "end", "schema": view.Schema, "error": err.Error()})
		}
	}()
	cache, err := host.CacheDir("")
	if err != nil {
		return err
	}
	lock, err := pipelines.ReadLock(e.Source().FS)
	if err != nil {
		return err
	}
	if in.update {
		lock.Forget()
	}

	if c.run == nil {
		// A question writes no output, so it needs no place for one.
		dir, err := os.MkdirTemp("", "slipway-"+c.name+"-")
		if err != nil {
			return fault.Environmentf(err, "Check TMPDIR.", "temporary directory")
		}
		defer os.RemoveAll(dir)
		in.output = filepath.Join(dir, "output")
	}
	progress := view.Choose(stderr, false, os.Getenv)
	switch {
	case in.json:
		progress = view.JSON(stdout)
	case in.timestamps:
		progress = view.Plain(view.Stamped(stderr))
	}
	options := pipelines.Options{Output: in.output, Cache: cache, Lock: lock, Observe: progress.Event, Credentials: in.credentials, Signer: in.signer, DryRun: in.dryRun, Origins: in.origins}
	options.Branch, options.Tag = ciRef(os.Getenv, e.Source().Commit)
	p, err := pipelines.New(ctx, e, in.config, options)
	if err == nil {
		defer func() { err = errors.Join(err, p.Close()) }()
		switch {
		case in.explain:
			_, err = p.Explain(ctx)
		case c.run != nil:
			err = c.run(ctx, p)
		case c.name == "lock":
			err = p.LockBase(ctx)
		}
	}
	progress.Close()
	if err != nil {
		return err
	}
	wrote, lockErr := lock.Write(in.source)
	if lockErr != nil && c.name == "lock" {
		return fault.Environmentf(lockErr, "The source directory must be writable for this.", "%s cannot be written", pipelines.LockFile)
	}
	out := &printer{w: stdout, in: in, p: p, command: c.name}
	switch {
	case c.name == "init":
		return initialise(stdout, in, p)
	case c.run == nil && in.json:
		return json.NewEncoder(stdout).Encode(map[string]any{"event": "end", "schema": view.Schema, "plan": p.Plan, "platforms": p.Record.Platforms})
	case c.run == nil:
		// The engine's copy of the source has the lock file as it was.
		before, err := pipelines.ReadLock(e.Source().FS)
		if err != nil {
			return err
		}
		return out.plan(wrote, lock.Changes(before))
	}
	reports, err := formats.Write(p, inRepository(in.source, os.Getenv))
	if err != nil {
		return err
	}
	writePage(in, p, e.Source().FS, stderr)
	kept, err := p.Finish()
	if err != nil {
		return err
	}
	if c.name == "kube" && !in.json && p.Record.Verdict == pipelines.Passed {
		return out.file("kube.yaml")
	}
	services := stdout
	if in.json {
		services = stderr
		err = json.NewEncoder(stdout).Encode(map[string]any{"event": "end", "schema": view.Schema, "verdict": p.Record.Verdict, "record": p.Record})
	} else {
		if lockErr != nil {
			fmt.Fprintf(stderr, "note: %s cannot be written (%v): the next run resolves anew\n", pipelines.LockFile, reason(lockErr))
		}
		resume := quiet(stdout, os.Getenv)
		err = out.summary(wrote, kept)
		resume()
	}
	if err == nil {
		tellServices(services, out, reports, os.Getenv)
	}
	if err == nil && p.Record.Verdict != pipelines.Passed {
		err = errVerdict
	}
	return err
}

func reason(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

// ownFiles are what slipway itself writes into the source.
func (in *input) ownFiles() []string {
	var names []string
	for _, name := range append(pipelines.OutputNames(in.output), in.records...) {
		if source, err := filepath.EvalSymlinks(in.source); err == nil {
			if rel, err := filepath.Rel(source, name); err == nil && filepath.IsLocal(rel) {
				names = append(names, filepath.ToSlash(rel))
			}
		}
	}
	return names
}
