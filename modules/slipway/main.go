// A CI pipeline for Go programs: tests under several Go releases, binaries that are proven to be the tested
// ones, a reproducible image that was started before it is published.
//
// Every function takes the source tree. Settings come from slipway.yaml in its root, and from the arguments
// of the constructor, which count. Verdicts, binaries and image digest are the same as those of the slipway
// command without Dagger.
package main

import (
	"context"
	"fmt"

	"dagger/slipway/internal/dagger"

	"github.com/slipway-ci/slipway/pipelines"
)

// Slipway is a pipeline with its settings.
type Slipway struct {
	// +private
	Profile string
	// +private
	GoVersions []string
	// +private
	Platforms []string
	// +private
	Modules []string
	// +private
	Packages []string
	// +private
	Commands []string
	// +private
	Tags []string
	// +private
	Ldflags string
	// +private
	Race bool
	// +private
	Cgo bool
	// +private
	VetChecks []string
	// +private
	Base string
	// +private
	Mirrors []string
	// +private
	User string
	// +private
	Labels []string
	// +private
	GoImage string
	// +private
	Goproxy *dagger.Secret
	// +private
	Goprivate string
	// +private
	Netrc *dagger.Secret
	// +private
	VulnDb string
	// +private
	SignKey *dagger.Secret
	// +private
	SignPassword *dagger.Secret
	// +private
	Parallel int
}

func New(
	// Name of the profile of slipway.yaml to use. Default: the one that the file names, if any.
	// +optional
	profile string,
	// Go releases: 1.22, 1.22.5, stable, oldstable, minimum. Default: minimum, oldstable, stable.
	// +optional
	goVersions []string,
	// Platforms to build for, as os/arch or os/arch/variant. Default: linux with the engine's architecture.
	// +optional
	platforms []string,
	// Directories of the modules to work on. Default: those of go.work, else the root, else all.
	// +optional
	modules []string,
	// Package patterns that vet, test and build work on. Default: ./...
	// +optional
	packages []string,
	// Names of the main packages to build. Default: those in the root and below cmd, else all.
	// +optional
	commands []string,
	// Build tags.
	// +optional
	tags []string,
	// Linker flags, such as "-X main.version=1.2.3".
	// +optional
	ldflags string,
	// Test with the race detector.
	// +optional
	race bool,
	// Let builds and tests use cgo.
	// +optional
	cgo bool,
	// Checks of the vet stage: vet, gofmt, tidy, verify, vendor. Default: all.
	// +optional
	vetChecks []string,
	// Base image: scratch, a short name (distroless, alpine, debian, ubi) or a reference. Default: scratch.
	// +optional
	base string,
	// Where base images are fetched instead, as REGISTRY=MIRROR: docker.io=mirror.example/hub.
	// +optional
	mirrors []string,
	// User that the image runs as. Default: 65532:65532.
	// +optional
	user string,
	// Labels of the image, as KEY=value.
	// +optional
	labels []string,
	// Repository of the golang images, such as a mirror's. Default: golang.
	// +optional
	goImage string,
	// Value of GOPROXY, which may hold credentials. Default: Go's own.
	// +optional
	goproxy *dagger.Secret,
	// Value of GOPRIVATE.
	// +optional
	goprivate string,
	// A .netrc file with credentials for private modules.
	// +optional
	netrc *dagger.Secret,
	// URL of a vulnerability database, such as a mirror's. Default: the public one.
	// +optional
	vulnDb string,
	// Private key that signs image, SBOMs and provenance. Default: nothing is signed.
	// +optional
	signKey *dagger.Secret,
	// Password of that key.
	// +optional
	signPassword *dagger.Secret,
	// How many commands run at the same time. Default: what cores and memory allow.
	// +optional
	parallel int,
) *Slipway {
	return &Slipway{
		Profile: profile, GoVersions: goVersions, Platforms: platforms, Modules: modules, Packages: packages, Commands: commands, Tags: tags, Ldflags: ldflags, Race: race, Cgo: cgo,
		VetChecks: vetChecks, Base: base, Mirrors: mirrors, User: user, Labels: labels, GoImage: goImage, Goproxy: goproxy, Goprivate: goprivate, Netrc: netrc, VulnDb: vulnDb, SignKey: signKey, SignPassword: signPassword, Parallel: parallel,
	}
}

// Go vet under every release, gofmt, and the module files. Calling it fails where there are findings.
//
// +cache="session"
func (m *Slipway) Vet(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
) (*Result, error) {
	return m.run(ctx, source, stage((*pipelines.Pipeline).Vet))
}

// Go test under every release. Calling it fails where tests do; its files are there in any case:
// `test --source=. junit`.
//
// +cache="session"
func (m *Slipway) Test(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
) (*Result, error) {
	return m.run(ctx, source, stage((*pipelines.Pipeline).Test))
}

// Look for known vulnerabilities that affect the program. Calling it fails where one does; that the database
// cannot be reached is no failure and no good answer: the summary says "not run".
//
// +cache="never"
func (m *Slipway) Vuln(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
) (*Result, error) {
	return m.run(ctx, source, stage((*pipelines.Pipeline).Vuln))
}

// Say on what the programs depend: double major versions, heavy packages, unused requirements, as JSON.
func (m *Slipway) Deps(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
) (*dagger.File, error) {
	dist, err := m.dist(ctx, source, stage((*pipelines.Pipeline).Deps))
	if err != nil {
		return nil, err
	}
	return dist.File("deps.json"), nil
}

// Compile every command for every platform, strip, and read back: binaries, archives and SHA256SUMS.
func (m *Slipway) Build(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
) (*dagger.Directory, error) {
	return m.dist(ctx, source, stage((*pipelines.Pipeline).Build))
}

// Prove that the stripped binaries are the ones that were built: the evidence, as JSON.
func (m *Slipway) Verify(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
) (*dagger.File, error) {
	dist, err := m.dist(ctx, source, stage((*pipelines.Pipeline).Verify))
	if err != nil {
		return nil, err
	}
	return dist.File("verification.json"), nil
}

// The image of one platform, for chaining: terminal, as-service, file. What is published is the OCI layout.
func (m *Slipway) Image(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
	// Platform of the image. Default: the only one, else the engine's.
	// +optional
	platform string,
) (*dagger.Container, error) {
	return m.container(ctx, source, platform)
}

// The image of all platforms as an OCI layout, byte for byte what publish pushes.
func (m *Slipway) OciLayout(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
) (*dagger.Directory, error) {
	dist, err := m.dist(ctx, source, stage((*pipelines.Pipeline).Image))
	if err != nil {
		return nil, err
	}
	return dist.Directory("image"), nil
}

// Start the image as production would, ask it, and stop it. Calling it fails where the image does.
//
// +cache="session"
func (m *Slipway) Smoke(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
) (*Result, error) {
	return m.run(ctx, source, stage((*pipelines.Pipeline).Smoke))
}

// Say what the image is made of: its layers, and the packages of the programs in it, as sizes.json, layers.svg and
// packages.svg. An image that is larger than it may be has them too.
func (m *Slipway) Sizes(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
) (*dagger.Directory, error) {
	var sizes *pipelines.SizesResult
	r, err := m.run(ctx, source, func(p *pipelines.Pipeline, ctx context.Context) (err error) {
		sizes, err = p.Explain(ctx)
		return err
	})
	if err == nil && sizes.Verdict != pipelines.Passed {
		_, err = r.Assert()
	}
	if err != nil {
		return nil, err
	}
	return r.Dist.Filter(dagger.DirectoryFilterOpts{Include: []string{"sizes.json", "layers.svg", "packages.svg"}}), nil
}

// Put the program on several base images and tell what each of them brings along, as compare.json and compare.svg.
// A base image that cannot be had is a row that says so.
//
// +cache="never"
func (m *Slipway) Compare(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
	// Base images to compare. Default: scratch, distroless, alpine, debian, ubi.
	// +optional
	bases []string,
) (*dagger.Directory, error) {
	r, err := m.passed(ctx, source, call{settings: func(c *pipelines.Config) {
		if len(bases) > 0 {
			c.Bases = bases
		}
	}}, stage((*pipelines.Pipeline).Compare))
	if err != nil {
		return nil, err
	}
	return r.Dist.Filter(dagger.DirectoryFilterOpts{Include: []string{"compare.json", "compare.svg"}}), nil
}

// A Kubernetes manifest (YAML) that fits the image and what its smoke run saw. Calling it fails where that does.
//
// +cache="session"
func (m *Slipway) Kube(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
	// Where the image will be, such as registry.example/team/app:1.4.2; the manifest names it by digest. Default:
	// where slipway.yaml publishes to.
	// +optional
	to string,
) (string, error) {
	var manifest []byte
	_, err := m.passed(ctx, source, call{settings: func(c *pipelines.Config) {
		if to != "" {
			c.To = []string{to}
		}
	}}, func(p *pipelines.Pipeline, ctx context.Context) (err error) {
		manifest, err = p.Kube(ctx)
		return err
	})
	return string(manifest), err
}

// SBOMs and provenance of the image, signed if there is a key: the whole dist/.
func (m *Slipway) Attest(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
) (*dagger.Directory, error) {
	return m.dist(ctx, source, stage((*pipelines.Pipeline).Attest))
}

// Check a published image: content, signature, provenance, SBOM, labels and user. It fails where one is bad.
//
// +cache="never"
func (m *Slipway) VerifyImage(
	ctx context.Context,
	// The image, such as registry.example/team/app:1.4.2.
	reference string,
	// Public key that its signatures must be of.
	// +optional
	key *dagger.File,
	// User at the registry.
	// +optional
	username string,
	// Password or token of that user.
	// +optional
	password *dagger.Secret,
) (string, error) {
	return m.verifyImage(ctx, reference, key, username, password)
}

// Push the image after everything before has passed, and read it back. Gives references with digests.
//
// +cache="never"
func (m *Slipway) Publish(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
	// Where to push: references such as registry.example/team/app:1.4.2.
	to []string,
	// User at the registry.
	// +optional
	username string,
	// Password or token of that user.
	// +optional
	password *dagger.Secret,
) (string, error) {
	r, err := m.publish(ctx, source, to, username, password, stage((*pipelines.Pipeline).Publish))
	if err != nil {
		return "", err
	}
	return r.published, nil
}

// Every stage, and publish if a place to push to is given: the whole dist/. It fails where a stage does;
// `run` hands over the files in any case.
//
// +cache="never"
func (m *Slipway) All(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
	// Where to push: references such as registry.example/team/app:1.4.2. Default: nowhere.
	// +optional
	to []string,
	// User at the registry.
	// +optional
	username string,
	// Password or token of that user.
	// +optional
	password *dagger.Secret,
) (*dagger.Directory, error) {
	r, err := m.publish(ctx, source, to, username, password, (*pipelines.Pipeline).All)
	if err != nil {
		return nil, err
	}
	return r.Dist, nil
}

// Every stage but publish, with its files also where a stage fails: `run --source=. dist`.
//
// +cache="session"
func (m *Slipway) Run(
	ctx context.Context,
	// The source tree, with its .git if labels shall name the commit.
	source *dagger.Directory,
) (*Result, error) {
	return m.run(ctx, source, (*pipelines.Pipeline).All)
}

// Result is what a run came to: its files and, separately, its verdict.
type Result struct {
	// Everything that the run wrote.
	Dist *dagger.Directory
	// passed or failed.
	Verdict string
	// Stages, artefacts and failures, as the command line prints them.
	Summary string

	published string
}

// The tests as a JUnit report.
func (r *Result) Junit() *dagger.File { return r.Dist.File("junit.xml") }

// The coverage profile of the release that builds.
func (r *Result) Coverage() *dagger.File { return r.Dist.File("coverage.out") }

// The run record.
func (r *Result) Json() *dagger.File { return r.Dist.File("run.json") }

// Fails with what failed, or gives the summary.
func (r *Result) Assert() (string, error) {
	if r.Verdict != string(pipelines.Passed) {
		return "", fmt.Errorf("failed\n%s", r.Summary)
	}
	return r.Summary, nil
}

// Fails with what failed, or gives the summary: a call of the command line that asks for nothing else does
// this.
func (r *Result) Sync() (string, error) { return r.Assert() }
