package pipelines_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// reproduced runs the reproduction of a record over a fake.
func reproduced(t *testing.T, record *pipelines.Record, f *fake, change func(*pipelines.Config)) (*pipelines.Reproduced, *pipelines.Pipeline) {
	t.Helper()
	x, err := pipelines.Reproduce(record)
	require.NoError(t, err)
	c, err := x.Check(x.Config, func(string) bool { return false })
	require.NoError(t, err)
	if change != nil {
		change(&c)
	}
	p := mustPipeline(t, f, c, pipelines.Options{Lock: x.Lock, Origins: x.Origins()})
	require.NoError(t, x.Run(t.Context(), p))
	_, err = p.Finish()
	require.NoError(t, err)
	r, err := x.Compare(p.Record)
	require.NoError(t, err)
	return r, p
}

// asDagger makes a record that of the Dagger engine, which has other toolchains, checksums and an environment without
// a temporary directory.
func asDagger(r *pipelines.Record) *pipelines.Record {
	r.Engine, r.EngineVersion = "dagger", "v0.21.8"
	r.Environment = []string{"CGO_ENABLED=0", "GOCACHE=@dir@", "GOWORK=off"}
	for i := range r.Toolchains {
		r.Toolchains[i].Checksum, r.Toolchains[i].VerifiedBy = "sha256:0123", "registry"
	}
	for release := range r.Lock.Toolchains {
		r.Lock.Toolchains[release] = map[string]string{"golang:" + release: "sha256:0123"}
	}
	return r
}

func TestReproduceSameFailure(t *testing.T) {
	text := recordOf(t, failingTests(t, "TestBad", "TestWorse"), pipelines.Config{Tags: []string{"x"}, Shuffle: "on"})
	for name, record := range map[string]*pipelines.Record{"fake": parseRecord(t, text), "dagger": asDagger(parseRecord(t, text))} {
		t.Run(name, func(t *testing.T) {
			f := failingTests(t, "TestBad", "TestWorse")
			f.versions += " 1.22.11" // came after the run that is reproduced
			r, p := reproduced(t, record, f, nil)
			assert.Equal(t, pipelines.SameFailure, r.Outcome)
			assert.Equal(t, []string{"test: example.com/hello TestBad (Go 1.20.14, 1.22.10)", "test: example.com/hello TestWorse (Go 1.20.14, 1.22.10)"}, r.Same)
			assert.Empty(t, r.Other)
			assert.Empty(t, r.Missing)
			assert.Equal(t, 2, r.Recorded)
			if name == "fake" {
				assert.Empty(t, r.Differs)
			} else {
				require.Len(t, r.Differs, 1)
				assert.Equal(t, "engine", r.Differs[0].Name)
				assert.Equal(t, "dagger v0.21.8", r.Differs[0].A)
			}
			assert.Equal(t, []string{"1.20.14", "1.22.10"}, []string{p.Plan.Releases[0].Exact, p.Plan.Releases[1].Exact})
			assert.Equal(t, record.Stages[1].Seed, p.Record.Stages[1].Seed)
			assert.Equal(t, "record", p.Record.Origins["tags"])
			assert.Zero(t, f.asked("go vet"), "just the stage that failed")
		})
	}
}

func TestReproduceOutcomes(t *testing.T) {
	record := parseRecord(t, recordOf(t, failingTests(t, "TestBad", "TestWorse"), pipelines.Config{}))
	both := []string{"test: example.com/hello TestBad (Go 1.20.14, 1.22.10)", "test: example.com/hello TestWorse (Go 1.20.14, 1.22.10)"}
	for name, c := range map[string]struct {
		fails   []string
		change  func(*pipelines.Config)
		want    pipelines.Reproduced
		differs []string
	}{
		"passes": {nil, nil, pipelines.Reproduced{Outcome: pipelines.PassesHere, Same: []string{}, Other: []string{}, Missing: both}, nil},
		"other": {[]string{"TestNew"}, nil,
			pipelines.Reproduced{Outcome: pipelines.OtherFailure, Same: []string{}, Other: []string{"test: example.com/hello TestNew (Go 1.20.14, 1.22.10)"}, Missing: both}, nil},
		"one of two": {[]string{"TestBad", "TestNew"}, nil,
			pipelines.Reproduced{Outcome: pipelines.SameFailure, Same: both[:1], Other: []string{"test: example.com/hello TestNew (Go 1.20.14, 1.22.10)"}, Missing: both[1:]}, nil},
		"fewer releases": {[]string{"TestBad", "TestWorse"}, func(c *pipelines.Config) { c.GoVersions = []string{"1.20"} },
			pipelines.Reproduced{Outcome: pipelines.SameFailure, Same: both, Other: []string{}, Missing: []string{}}, []string{"config go-versions", "releases", "build release"}},
		"another release": {[]string{"TestBad", "TestWorse"}, func(c *pipelines.Config) { c.GoVersions = []string{"1.27.4"} },
			pipelines.Reproduced{Outcome: pipelines.OtherFailure, Same: []string{}, Missing: both,
				Other: []string{"test: example.com/hello TestBad (Go 1.27.4)", "test: example.com/hello TestWorse (Go 1.27.4)"}}, []string{"config go-versions", "releases", "build release"}},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := reproduced(t, record, failingTests(t, c.fails...), c.change)
			var differs []string
			for _, d := range r.Differs {
				differs = append(differs, d.Name)
			}
			assert.Equal(t, c.differs, differs)
			c.want.Recorded, r.Differs = 2, nil
			assert.Equal(t, c.want, *r)
		})
	}
}

// Lines move, and findings of go vet name releases.
func TestReproduceFindings(t *testing.T) {
	vet := func(line string) *fake {
		f := goModule("1.20")
		f.answer = func(c engine.Command) (*engine.Result, error) {
			if c.Args[1] == "vet" {
				return &engine.Result{ExitCode: 1, Stderr: []byte("main.go:" + line + ": what is this?\n")}, nil
			}
			return nil, nil
		}
		return f
	}
	output := filepath.Join(t.TempDir(), "dist")
	p := mustPipeline(t, vet("3:5"), pipelines.Config{GoVersions: []string{"1.20", "1.22"}}, pipelines.Options{Output: output})
	_, err := p.Vet(t.Context())
	require.NoError(t, err)
	_, err = p.Finish()
	require.NoError(t, err)
	record, err := pipelines.ReadRecord(filepath.Join(output, "run.json"))
	require.NoError(t, err)
	r, _ := reproduced(t, record, vet("14:7"), nil)
	assert.Equal(t, pipelines.SameFailure, r.Outcome)
	r, _ = reproduced(t, record, vet("3:5"), func(c *pipelines.Config) { c.GoVersions = []string{"1.22"} })
	assert.Equal(t, pipelines.SameFailure, r.Outcome)
}

func TestReproduceErrors(t *testing.T) {
	_, err := pipelines.Reproduce(parseRecord(t, recordOf(t, failingTests(t), pipelines.Config{})))
	requireFault(t, err, fault.Usage, "nothing failed in the recorded run")

	text := recordOf(t, failingTests(t, "TestBad"), pipelines.Config{Base: "oci:/somewhere/base", VulnDB: "/somewhere/db", To: []string{"registry.example/app:1"}})
	assert.NotContains(t, string(text), "/somewhere")
	record := parseRecord(t, text)
	none := func(string) bool { return false }
	x, err := pipelines.Reproduce(record)
	require.NoError(t, err)
	c, err := x.Check(x.Config, none)
	require.NoError(t, err, "tests need none of that")
	assert.Empty(t, c.To)
	assert.Empty(t, c.VulnDB)

	record.Stages[1].Name = "image"
	x, err = pipelines.Reproduce(record)
	require.NoError(t, err)
	_, err = x.Check(x.Config, none)
	requireFault(t, err, fault.Usage, "base: oci:base lay on the disk of the machine that made the record", "--base")
	_, err = x.Check(x.Config, func(key string) bool { return key == "base" })
	require.NoError(t, err)

	record.Stages[1].Name, record.Config["base"] = "publish", "scratch"
	x, err = pipelines.Reproduce(record)
	require.NoError(t, err)
	_, err = x.Check(x.Config, none)
	requireFault(t, err, fault.Usage, "pushes only to where --to says")

	// What cannot be tried is not what passes.
	record.Stages[1].Name = "smoke"
	record.Stages[1].Tasks = []pipelines.TaskRecord{{Name: "smoke linux/arm64", Verdict: pipelines.Failed}}
	now := parseRecord(t, recordOf(t, failingTests(t), pipelines.Config{}))
	now.Stages[1].Name = "smoke"
	now.Stages[1].Tasks = []pipelines.TaskRecord{{Name: "smoke linux/arm64", Verdict: pipelines.NotRun, Detail: "it is for arm64"}}
	x, err = pipelines.Reproduce(record)
	require.NoError(t, err)
	_, err = x.Compare(now)
	requireFault(t, err, fault.Environment, "smoke linux/arm64 failed in the record and cannot be tried here: it is for arm64")
}

// Each engine has kinds of isolation of its own.
func TestReproduceIsolation(t *testing.T) {
	record := parseRecord(t, recordOf(t, failingTests(t, "TestBad"), pipelines.Config{Smoke: pipelines.Smoke{Isolation: "runc"}}))
	x, err := pipelines.Reproduce(record)
	require.NoError(t, err)
	given := ""
	check := func(engine string) string {
		c := x.Config
		c.Engine = engine
		c, err := x.Check(c, func(key string) bool { return key == given })
		require.NoError(t, err)
		return c.Smoke.Isolation
	}
	assert.Equal(t, "runc", check("fake"))
	assert.Equal(t, "auto", check("dagger"))
	given = "smoke"
	assert.Equal(t, "runc", check("dagger"))
}

func TestReproduceSource(t *testing.T) {
	text := recordOf(t, failingTests(t, "TestBad"), pipelines.Config{})
	const commit = "0123456789abcdef0123456789abcdef01234567"
	same := failingTests(t)
	other := failingTests(t)
	other.files["main.go"].Data = []byte("package main // changed\n")
	other.files[pipelines.LockFile] = same.files["go.mod"]
	advise := func(f *fake, change func(*pipelines.SourceID)) (pipelines.SourceAdvice, error) {
		r := parseRecord(t, text)
		if change != nil {
			change(&r.Plan.Source)
		}
		x, err := pipelines.Reproduce(r)
		require.NoError(t, err)
		return x.Source(f.Source())
	}
	a, err := advise(same, nil)
	require.NoError(t, err)
	assert.True(t, a.Same)
	assert.Empty(t, a.Checkout)
	assert.Empty(t, a.Words, "no lock file is no other one")
	same.files[pipelines.LockFile] = &fstest.MapFile{Data: []byte(`{"schema":1,"go":{"1.22":"1.22.12","stable":"1.27.4"}}`)}
	a, err = advise(same, nil)
	require.NoError(t, err)
	assert.True(t, a.Same, "the lock file is no part of it")
	assert.Equal(t, []string{"lock: go 1.22 was 1.22.10 and is 1.22.12 here; the recorded one is used"}, a.Words)
	_, err = advise(other, nil)
	requireFault(t, err, fault.Usage, "slipway.lock cannot be read")
	delete(other.files, pipelines.LockFile)
	a, err = advise(other, nil)
	require.NoError(t, err)
	assert.False(t, a.Same)
	assert.Empty(t, a.Checkout)
	a, err = advise(other, func(s *pipelines.SourceID) { s.Commit = commit })
	require.NoError(t, err)
	assert.Equal(t, commit, a.Checkout)
	a, err = advise(other, func(s *pipelines.SourceID) { s.Commit, s.Dirty, s.Changed = commit, true, []string{"a.go"} })
	require.NoError(t, err)
	assert.Empty(t, a.Checkout)
	all, err := json.Marshal(a.Words)
	require.NoError(t, err)
	assert.Contains(t, string(all), "the recorded one was a changed tree")
	assert.Contains(t, string(all), "commit "+commit+", with changes in a.go")
}

func TestRecordOfLayout(t *testing.T) {
	dir := t.TempDir()
	r := parseRecord(t, recordOf(t, failingTests(t), pipelines.Config{}))
	r.Image = &pipelines.ImageResult{Verdict: pipelines.Passed, Digest: "sha256:1111"}
	text, err := json.Marshal(r)
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "image"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "run.json"), text, 0o600))
	layout := "oci:" + filepath.Join(dir, "image")
	_, err = pipelines.ReadRecord(layout)
	requireFault(t, err, fault.Usage, "is no image")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "image", "index.json"), []byte(`{"manifests":[{"digest":"sha256:2222"}]}`), 0o600))
	_, err = pipelines.ReadRecord(layout)
	requireFault(t, err, fault.Usage, "is of another image")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "image", "index.json"), []byte(`{"manifests":[{"digest":"sha256:1111"}]}`), 0o600))
	_, err = pipelines.ReadRecord(layout)
	require.NoError(t, err)
}
