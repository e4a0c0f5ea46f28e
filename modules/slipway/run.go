package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"dagger/slipway/internal/dagger"

	"github.com/slipway-ci/slipway/pipelines"
	engine "github.com/slipway-ci/slipway/pipelines/engine/dagger"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/report"
	"github.com/slipway-ci/slipway/pipelines/report/formats"
	"github.com/slipway-ci/slipway/pipelines/sign"
)

// runner runs stages of a pipeline.
type runner func(*pipelines.Pipeline, context.Context) error

func stage[T any](f func(*pipelines.Pipeline, context.Context) (T, error)) runner {
	return func(p *pipelines.Pipeline, ctx context.Context) error {
		_, err := f(p, ctx)
		return err
	}
}

// finished is a run whose files lie in the function's working directory.
type finished struct {
	dir    string // relative to the working directory
	record *pipelines.Record
}

// call is what a function was asked for beside its stages.
type call struct {
	login pipelines.Credentials
	// settings are those of the function itself, and come after the constructor's. Without any, no place to publish
	// to that slipway.yaml names counts: only a call that says so publishes.
	settings func(*pipelines.Config)
}

// start runs stages over a source.
func (m *Slipway) start(ctx context.Context, source *dagger.Directory, asked call, run runner) (f *finished, err error) {
	dir, err := os.MkdirTemp(".", "run-")
	if err != nil {
		return nil, err
	}
	tree := filepath.Join(dir, "source")
	if _, err := source.Export(ctx, tree); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	c, err := pipelines.ReadConfig(tree, m.Profile)
	if err != nil {
		return nil, err
	}
	if err := m.configure(&c); err != nil {
		return nil, err
	}
	if asked.settings == nil {
		c.To = nil
	} else {
		asked.settings(&c)
	}
	o := engine.Options{GoImage: c.GoImage, Exclude: pipelines.OutputNames(filepath.Base(cmp.Or(c.Output, "dist")))}
	if o.Env, err = m.env(ctx); err != nil {
		return nil, err
	}
	if m.Netrc != nil {
		if o.Netrc, err = m.Netrc.Plaintext(ctx); err != nil {
			return nil, err
		}
	}
	client, err := engine.Connect(ctx)
	if err != nil {
		return nil, err
	}
	e, err := engine.Open(ctx, client, tree, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	options := pipelines.Options{Output: filepath.Join(dir, "dist"), Cache: filepath.Join(dir, "cache"), Observe: show, Credentials: asked.login, Origins: pipelines.ConfigOrigins(tree, m.Profile)}
	if options.Signer, err = m.signer(ctx); err != nil {
		return nil, err
	}
	p, err := pipelines.New(ctx, e, c, options)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if err := run(p, ctx); err != nil {
		return nil, err
	}
	if _, err := formats.Write(p, ""); err != nil {
		return nil, err
	}
	if _, err := p.Finish(); err != nil {
		return nil, err
	}
	return &finished{dir: dir, record: p.Record}, nil
}

// signer is the key that signs, nil if there is none.
func (m *Slipway) signer(ctx context.Context) (sign.Signer, error) {
	if m.SignKey == nil {
		return nil, nil
	}
	key, err := m.SignKey.Plaintext(ctx)
	if err != nil {
		return nil, err
	}
	var password string
	if m.SignPassword != nil {
		if password, err = m.SignPassword.Plaintext(ctx); err != nil {
			return nil, err
		}
	}
	k, err := sign.LoadKey([]byte(key), []byte(strings.TrimRight(password, "\r\n")))
	if err != nil {
		return nil, err
	}
	return k, nil
}

func (m *Slipway) verifyImage(ctx context.Context, reference string, key *dagger.File, username string, password *dagger.Secret) (text string, err error) {
	var o pipelines.VerifyImageOptions
	if o.Credentials, err = credentials(ctx, username, password); err != nil {
		return "", err
	}
	if key != nil {
		pem, err := key.Contents(ctx)
		if err != nil {
			return "", err
		}
		if o.Key, err = sign.LoadPublicKey([]byte(pem)); err != nil {
			return "", err
		}
	}
	if o.Cache, err = os.MkdirTemp(".", "verify-"); err != nil {
		return "", err
	}
	r, err := pipelines.VerifyImage(ctx, reference, o)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	if err := report.Image(&b, r); err != nil {
		return "", err
	}
	if r.Verdict != pipelines.Passed {
		return "", fmt.Errorf("failed\n%s", b.String())
	}
	return b.String(), nil
}

// show prints what has been done into the trace.
func show(e pipelines.Event) {
	switch e.Kind {
	case pipelines.EventDone:
		fmt.Fprintln(os.Stderr, e.Verdict, report.Clean(e.Task), report.Elapsed(e.Elapsed), report.Clean(e.Detail))
	case pipelines.EventNote:
		fmt.Fprintln(os.Stderr, "note:", report.Clean(e.Detail))
	}
}

// configure puts the constructor's arguments over the configuration file.
func (m *Slipway) configure(c *pipelines.Config) error {
	for _, x := range []struct {
		to   *[]string
		from []string
	}{{&c.GoVersions, m.GoVersions}, {&c.Platforms, m.Platforms}, {&c.Modules, m.Modules}, {&c.Packages, m.Packages}, {&c.Commands, m.Commands}, {&c.Tags, m.Tags}, {&c.VetChecks, m.VetChecks}} {
		if len(x.from) > 0 {
			*x.to = x.from
		}
	}
	c.LDFlags, c.Base, c.User, c.GoImage = cmp.Or(m.Ldflags, c.LDFlags), cmp.Or(m.Base, c.Base), cmp.Or(m.User, c.User), cmp.Or(m.GoImage, c.GoImage)
	c.VulnDB = cmp.Or(m.VulnDb, c.VulnDB)
	c.Race, c.CGO, c.Parallel = m.Race || c.Race, m.Cgo || c.CGO, cmp.Or(m.Parallel, c.Parallel)
	if err := pairs(&c.Labels, m.Labels, "labels", "KEY=value"); err != nil {
		return err
	}
	return pairs(&c.Mirrors, m.Mirrors, "mirrors", "REGISTRY=MIRROR")
}

// pairs adds what an argument gives in the given form to a setting.
func pairs(to *map[string]string, from []string, argument, form string) error {
	for _, pair := range from {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			return fault.Usagef("Write it as "+form+".", "%s: %q has no value", argument, pair)
		}
		if *to == nil {
			*to = map[string]string{}
		}
		(*to)[name] = value
	}
	return nil
}

func (m *Slipway) env(ctx context.Context) ([]string, error) {
	var env []string
	if m.Goproxy != nil {
		value, err := m.Goproxy.Plaintext(ctx)
		if err != nil {
			return nil, err
		}
		env = append(env, "GOPROXY="+value)
	}
	if m.Goprivate != "" {
		env = append(env, "GOPRIVATE="+m.Goprivate)
	}
	return env, nil
}

// run runs stages and hands over what they wrote, whatever the verdict.
func (m *Slipway) run(ctx context.Context, source *dagger.Directory, run runner) (*Result, error) {
	f, err := m.start(ctx, source, call{}, run)
	if err != nil {
		return nil, err
	}
	return m.result(ctx, f)
}

func (m *Slipway) result(ctx context.Context, f *finished) (*Result, error) {
	dist, err := dag.CurrentModule().Workdir(filepath.Join(f.dir, "dist")).Sync(ctx)
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	var table report.Table
	report.Artefacts(&table, f.record)
	err = report.Stages(&text, f.record)
	if err == nil {
		text.WriteString("\n")
		_, err = table.WriteTo(&text)
	}
	if err == nil {
		err = report.Failures(&text, f.record, func(stage string, narrow map[string]string) string {
			call := repeat(stage, narrow)
			if to, ok := f.record.Config["to"].([]any); ok && stage == "publish" {
				for _, x := range to {
					call += fmt.Sprint(" --to=", x)
				}
			}
			return call
		})
	}
	var published []string
	for _, x := range f.record.Published {
		published = append(published, x.Reference)
	}
	return &Result{Dist: dist, Verdict: string(f.record.Verdict), Summary: text.String(), published: strings.Join(published, "\n")}, err
}

// repeat is the call that runs a stage again, narrowed to one failure.
func repeat(stage string, narrow map[string]string) string {
	words := []string{"dagger call"}
	for _, name := range slices.Sorted(maps.Keys(narrow)) {
		words = append(words, "--"+name+"="+narrow[name])
	}
	return strings.Join(append(words, stage, "--source=."), " ")
}

// dist runs stages and gives what they wrote if all of them passed.
func (m *Slipway) dist(ctx context.Context, source *dagger.Directory, run runner) (*dagger.Directory, error) {
	r, err := m.passed(ctx, source, call{}, run)
	if err != nil {
		return nil, err
	}
	return r.Dist, nil
}

// passed runs stages. It fails where one of them does.
func (m *Slipway) passed(ctx context.Context, source *dagger.Directory, asked call, run runner) (*Result, error) {
	f, err := m.start(ctx, source, asked, run)
	if err != nil {
		return nil, err
	}
	r, err := m.result(ctx, f)
	if err == nil {
		_, err = r.Assert()
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// publish is passed with a place to push to.
func (m *Slipway) publish(ctx context.Context, source *dagger.Directory, to []string, username string, password *dagger.Secret, run runner) (*Result, error) {
	login, err := credentials(ctx, username, password)
	if err != nil {
		return nil, err
	}
	return m.passed(ctx, source, call{login, func(c *pipelines.Config) { c.To = to }}, run)
}

func credentials(ctx context.Context, username string, password *dagger.Secret) (c pipelines.Credentials, err error) {
	if (username == "") != (password == nil) {
		return c, fault.Usagef("Without both the registry is asked without credentials.", "username and password go together")
	}
	if password == nil {
		return c, nil
	}
	text, err := password.Plaintext(ctx)
	return pipelines.Credentials{Username: username, Password: strings.TrimRight(text, "\r\n")}, err
}

// container imports the image of one platform.
func (m *Slipway) container(ctx context.Context, source *dagger.Directory, platform string) (*dagger.Container, error) {
	f, err := m.start(ctx, source, call{}, stage((*pipelines.Pipeline).Image))
	if err != nil {
		return nil, err
	}
	if r, err := m.result(ctx, f); err != nil {
		return nil, err
	} else if _, err := r.Assert(); err != nil {
		return nil, err
	}
	images := f.record.Image.Platforms
	if platform == "" && len(images) > 1 {
		native, err := dag.DefaultPlatform(ctx)
		if err != nil {
			return nil, err
		}
		platform = string(native)
	}
	i := slices.IndexFunc(images, func(i pipelines.PlatformImage) bool { return platform == "" || i.Platform == platform })
	if i < 0 {
		return nil, fault.Usagef("Name one of those that are built.", "there is no image for %s", platform)
	}
	archive := filepath.Join(f.dir, "image.tar")
	if err := engine.WriteArchive(archive, filepath.Join(f.dir, "dist", f.record.Image.Layout), images[i].Manifest); err != nil {
		return nil, err
	}
	return dag.Container(dagger.ContainerOpts{Platform: dagger.Platform(images[i].Platform)}).Import(dag.CurrentModule().WorkdirFile(archive)).Sync(ctx)
}
