package pipelines_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/slipway-ci/slipway/pipelines"
)

// published is the record of a run that made and published an image for two platforms.
func published(t *testing.T) *pipelines.Record {
	r := parseRecord(t, recordOf(t, failingTests(t), pipelines.Config{Platforms: []string{"linux/amd64", "linux/arm64"}, To: []string{"registry.example/app:1"}}))
	r.Slipway.Version = "v1.0.0"
	r.Image = &pipelines.ImageResult{Verdict: pipelines.Passed, Digest: "sha256:index", Compressor: "gzip 1"}
	for _, platform := range []string{"linux/amd64", "linux/arm64"} {
		r.Binaries = append(r.Binaries, pipelines.Binary{Name: "hello", Platform: platform, SHA256: "stripped-" + platform, FullSHA256: "full-" + platform})
		r.Image.Platforms = append(r.Image.Platforms, pipelines.PlatformImage{Platform: platform, Manifest: "sha256:manifest-" + platform, Config: "sha256:config-" + platform, Layers: []pipelines.Layer{
			{Kind: "tmp", Digest: "sha256:tmp", DiffID: "sha256:tmp-id"}, {Kind: "commands", Digest: "sha256:commands-" + platform, DiffID: "sha256:commands-id-" + platform},
		}})
	}
	r.Published = []pipelines.PublishedTo{{Reference: "registry.example/app@sha256:index", Digest: "sha256:index"}}
	return r
}

func chains(e *pipelines.Explanation) []string {
	var all []string
	for _, o := range e.Outputs {
		s := strings.Join(o.Chain, " > ")
		if o.Defect {
			s = "defect " + s
		}
		all = append(all, s)
	}
	return all
}

func TestExplain(t *testing.T) {
	above := func(r *pipelines.Record, change string) { // all that comes after the layers
		r.Image.Platforms[0].Manifest += change
		r.Image.Digest += change
		r.Published[0].Digest += change
	}
	binary := func(r *pipelines.Record, change string) {
		r.Binaries[0].SHA256 += change
		r.Image.Platforms[0].Layers[1].Digest += change
		r.Image.Platforms[0].Layers[1].DiffID += change
		r.Image.Platforms[0].Config += change
		above(r, change)
	}
	const to = "layer commands linux/amd64 > "
	for name, c := range map[string]struct {
		change func(r *pipelines.Record)
		inputs []string
		chains []string
	}{
		"nothing": {func(*pipelines.Record) {}, nil, nil},
		"compiler flags": {func(r *pipelines.Record) {
			r.Config["ldflags"] = "-X main.version=2"
			r.Binaries[0].FullSHA256 += "x"
			binary(r, "x")
		}, []string{"config ldflags"}, []string{
			"config ldflags > linked hello linux/amd64", "config ldflags > linked hello linux/amd64 > binary hello linux/amd64",
			"config ldflags > linked hello linux/amd64 > binary hello linux/amd64 > layer commands linux/amd64",
			"config ldflags > linked hello linux/amd64 > binary hello linux/amd64 > " + to + "blob commands linux/amd64",
			"config ldflags > linked hello linux/amd64 > binary hello linux/amd64 > " + to + "config linux/amd64",
			"config ldflags > linked hello linux/amd64 > binary hello linux/amd64 > " + to + "blob commands linux/amd64 > manifest linux/amd64",
			"config ldflags > linked hello linux/amd64 > binary hello linux/amd64 > " + to + "blob commands linux/amd64 > manifest linux/amd64 > index",
			"config ldflags > linked hello linux/amd64 > binary hello linux/amd64 > " + to + "blob commands linux/amd64 > manifest linux/amd64 > index > published 1",
		}},
		"label": {func(r *pipelines.Record) {
			r.Config["labels"] = map[string]any{"a": "b"}
			r.Image.Platforms[0].Config += "x"
			above(r, "x")
		}, []string{"config labels"}, []string{"config labels > config linux/amd64", "config labels > manifest linux/amd64", "config labels > index", "config labels > index > published 1"}},
		"compressor": {func(r *pipelines.Record) {
			r.Image.Compressor = "gzip 2"
			r.Image.Platforms[0].Layers[1].Digest += "x"
			above(r, "x")
		}, []string{"compressor"}, []string{"compressor > blob commands linux/amd64", "compressor > blob commands linux/amd64 > manifest linux/amd64",
			"compressor > blob commands linux/amd64 > manifest linux/amd64 > index", "compressor > blob commands linux/amd64 > manifest linux/amd64 > index > published 1"}},
		"no reason": {func(r *pipelines.Record) {
			r.Engine, r.EngineVersion, r.Host = "dagger", "v0.21.8", "darwin/arm64"
			r.Config["timeout"] = "1m0s"
			binary(r, "x")
		}, []string{"config timeout", "engine", "host"}, []string{"defect binary hello linux/amd64", "binary hello linux/amd64 > layer commands linux/amd64",
			"binary hello linux/amd64 > " + to + "blob commands linux/amd64", "binary hello linux/amd64 > " + to + "config linux/amd64",
			"binary hello linux/amd64 > " + to + "blob commands linux/amd64 > manifest linux/amd64",
			"binary hello linux/amd64 > " + to + "blob commands linux/amd64 > manifest linux/amd64 > index", "binary hello linux/amd64 > " + to + "blob commands linux/amd64 > manifest linux/amd64 > index > published 1"}},
		"engines agree": {func(r *pipelines.Record) { asDagger(r) }, []string{"engine"}, nil},
		"the compressor is no reason for another content": {func(r *pipelines.Record) {
			r.Image.Compressor = "gzip 2"
			r.Image.Platforms[1].Layers[0].DiffID += "x"
		}, []string{"compressor"}, []string{"defect layer tmp linux/arm64"}},
		"a platform less": {func(r *pipelines.Record) {
			r.Config["platforms"] = []any{"linux/amd64"}
			r.Binaries, r.Image.Platforms = r.Binaries[:1], r.Image.Platforms[:1]
			r.Image.Digest += "x"
			r.Published = nil
		}, []string{"config platforms"}, []string{"config platforms > linked hello linux/arm64", "config platforms > binary hello linux/arm64", "config platforms > layer tmp linux/arm64",
			"config platforms > layer commands linux/arm64", "config platforms > blob tmp linux/arm64", "config platforms > blob commands linux/arm64", "config platforms > config linux/arm64",
			"config platforms > manifest linux/arm64", "config platforms > manifest linux/arm64 > index"}},
		"source, commit and lock": {func(r *pipelines.Record) {
			r.Plan.Source.Digest = strings.Replace(r.Plan.Source.Digest, "sha256:", "sha256:0", 1)
			r.Plan.Source.Commit, r.Plan.Source.Time = "0123", 7
			r.Lock.Go["1.22"] = "1.22.12"
			r.Lock.Bases["debian:1"] = "sha256:1"
			r.Slipway.Version = "v1.1.0"
		}, []string{"source", "commit", "source time", "lock go 1.22", "lock base debian:1", "slipway"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := published(t), published(t)
			c.change(b)
			e := pipelines.Explain(a, b)
			var inputs []string
			for _, i := range e.Inputs {
				inputs = append(inputs, i.Name)
			}
			assert.Equal(t, c.inputs, inputs)
			assert.Equal(t, c.chains, chains(e))
			back := pipelines.Explain(b, a)
			assert.ElementsMatch(t, chains(e), chains(back), "the other way round")
		})
	}
}

// A file for docker load holds the image for the machine's own processor.
func TestExplainFileOfAnotherMachine(t *testing.T) {
	a, b := published(t), published(t)
	a.Published[0].Reference, b.Published[0].Reference = "tar:app.tar", "tar:app.tar"
	b.Published[0].Digest += "x"
	assert.Equal(t, []string{"defect published tar 1"}, chains(pipelines.Explain(a, b)))
	b.Host = "linux/riscv64"
	assert.Equal(t, []string{"host > published tar 1"}, chains(pipelines.Explain(a, b)))
}

func TestExplainWhatWasNotMade(t *testing.T) {
	a, b := published(t), published(t)
	b.Image, b.Published, b.Stages[1].Verdict, b.Verdict = nil, nil, pipelines.Failed, pipelines.Failed
	e := pipelines.Explain(a, b)
	assert.Empty(t, e.Outputs)
	assert.Equal(t, []pipelines.Change{{Name: "test", A: "passed", B: "failed"}}, e.Verdicts)
	assert.Regexp(t, "(?m)^only one of the runs has made: .*index", strings.Join(e.Notes, "\n"))
	assert.Equal(t, 4, e.Same)
}
