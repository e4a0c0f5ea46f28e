package pipelines

import (
	"encoding/json"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

const recordSchema = 1

// Record is the run record, run.json: what went in, what every stage said and what came out. It holds no
// absolute path, no secret, no user and no host name.
type Record struct {
	// Schema is the version of this format.
	Schema int `json:"schema"`
	// Verdict is failed if a stage failed, else passed.
	Verdict Verdict `json:"verdict"`
	// Slipway is the program that made the record.
	Slipway ProgramID `json:"slipway"`
	// Engine is the engine's name, EngineVersion its version: slipway's own for the engine that is part of it.
	Engine        string `json:"engine"`
	EngineVersion string `json:"engine_version"`
	// Host is the platform that the calling process ran on.
	Host string `json:"host"`
	// Config is the configuration in force, with the keys of slipway.yaml.
	Config map[string]any `json:"config"`
	// Origins says of each key where its value is from: default, slipway.yaml, profile NAME, flag, record (of a run
	// that was reproduced) or caller. Keys below smoke are there as smoke.KEY.
	Origins map[string]string `json:"origins"`
	// Environment reached every command, beside the places of caches, which stand there as @dir@.
	Environment []string `json:"environment"`
	// Lock is the lock file in force.
	Lock *Lock `json:"lock"`
	Plan *Plan `json:"plan,omitempty"`
	// Platforms are those that were built for.
	Platforms []string `json:"platforms,omitempty"`
	// Toolchains are the Go releases that ran, with what was verified.
	Toolchains []ToolchainID `json:"toolchains,omitempty"`
	// Stages are in the order in which they began.
	Stages []*StageRecord `json:"stages"`
	// Binaries, Image, Attest, Deps, Smoke and Published are the results of those stages.
	Binaries  []Binary      `json:"binaries,omitempty"`
	Image     *ImageResult  `json:"image,omitempty"`
	Attest    *AttestResult `json:"attest,omitempty"`
	Deps      *DepsResult   `json:"deps,omitempty"`
	Smoke     *SmokeResult  `json:"smoke,omitempty"`
	Published []PublishedTo `json:"published,omitempty"`
	// DryRun is what publish would have done.
	DryRun []WouldPublish `json:"dry_run,omitempty"`
	// Compare and Sizes are what was asked for by name.
	Compare *CompareResult `json:"compare,omitempty"`
	Sizes   *SizesResult   `json:"sizes,omitempty"`
	// Notes changed no verdict.
	Notes []string `json:"notes,omitempty"`
	// Started is when the run began, in RFC 3339.
	Started string       `json:"started"`
	Elapsed Milliseconds `json:"elapsed_ms"`
}

// ProgramID identifies a build of slipway.
type ProgramID struct {
	Version string `json:"version"`
	Go      string `json:"go"`
}

// ToolchainID is a Go release that ran and the checksum that was verified before.
type ToolchainID struct {
	Release    string `json:"release"`
	Platform   string `json:"platform"`
	Checksum   string `json:"checksum"`
	VerifiedBy string `json:"verified_by"`
}

// StageRecord is what the record says of one stage.
type StageRecord struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	// Detail is the outcome in a few words.
	Detail string `json:"detail,omitempty"`
	// Reused is when the stage was really done, in RFC 3339, if this is the result of an earlier run with the same
	// inputs. The tasks are those of that run.
	Reused string `json:"reused,omitempty"`
	// Started is the time since the run began.
	Started  Milliseconds `json:"started_ms"`
	Elapsed  Milliseconds `json:"elapsed_ms"`
	Tasks    []TaskRecord `json:"tasks,omitempty"`
	Failures []Failure    `json:"failures,omitempty"`
	// Seed is that of the order of tests, where they were shuffled.
	Seed string `json:"seed,omitempty"`
	// Inputs names what the stage has read: source, lock, toolchains, keys of the configuration, earlier stages.
	Inputs []string `json:"inputs"`
	// Outputs maps each file that the stage has written, relative to the output directory, to its digest. The blobs of
	// an image are named by the digests in its index and not listed.
	Outputs map[string]string `json:"outputs,omitempty"`
}

// TaskRecord is what the record says of one task.
type TaskRecord struct {
	Name    string       `json:"name"`
	Verdict Verdict      `json:"verdict"`
	Detail  string       `json:"detail,omitempty"`
	Started Milliseconds `json:"started_ms"`
	Elapsed Milliseconds `json:"elapsed_ms"`
}

// Failure is one reason for a bad verdict.
type Failure struct {
	// What failed: a test, a check, a binary, a probe.
	What string `json:"what"`
	// Where it failed: file and line, release or platform.
	Where string `json:"where,omitempty"`
	// File and Line are where to look, if that is known.
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
	// Probe is the one that was being asked, of a smoke run.
	Probe string `json:"probe,omitempty"`
	// Message is why, possibly with the last lines of output.
	Message string `json:"message"`
	// Next is what to do about it, if slipway knows.
	Next string `json:"next,omitempty"`
	// Repeat is the configuration that narrows a run of the same stage to this failure.
	Repeat map[string]string `json:"repeat,omitempty"`
}

// Milliseconds is a duration that JSON shows in milliseconds.
type Milliseconds time.Duration

// MarshalJSON implements json.Marshaler.
func (m Milliseconds) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(m).Milliseconds())
}

// UnmarshalJSON implements json.Unmarshaler.
func (m *Milliseconds) UnmarshalJSON(b []byte) error {
	var n int64
	err := json.Unmarshal(b, &n)
	*m = Milliseconds(time.Duration(n) * time.Millisecond)
	return err
}

// Microseconds is a duration that JSON shows in microseconds.
type Microseconds time.Duration

// MarshalJSON implements json.Marshaler.
func (m Microseconds) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(m).Microseconds())
}

// UnmarshalJSON implements json.Unmarshaler.
func (m *Microseconds) UnmarshalJSON(b []byte) error {
	var n int64
	err := json.Unmarshal(b, &n)
	*m = Microseconds(time.Duration(n) * time.Microsecond)
	return err
}

func newRecord(c Config, e engine.Engine) *Record {
	r := &Record{
		Schema:  recordSchema,
		Slipway: ProgramID{Version: slipwayVersion(), Go: runtime.Version()},
		Engine:  e.Name(),
		Host:    runtime.GOOS + "/" + runtime.GOARCH,
		Config:  c.asMap(),
		Stages:  []*StageRecord{},
		Started: time.Now().UTC().Format(time.RFC3339),
	}
	r.EngineVersion, r.Environment = describeEngine(c, e)
	return r
}

// asMap is the configuration with the keys of slipway.yaml.
func (c Config) asMap() map[string]any {
	m := map[string]any{}
	c.Base = shownBase(c.Base)
	c.VulnDB = shownDatabase(c.VulnDB)
	c.Bases = slices.Clone(c.Bases)
	for i := range c.Bases {
		c.Bases[i] = shownBase(c.Bases[i])
	}
	if c.Previous != "" {
		c.Previous = filepath.Base(c.Previous)
	}
	c.Profiles = nil // the settings of the one in force are there
	c.To = slices.Clone(c.To)
	for i := range c.To {
		c.To[i] = shownTarget(c.To[i])
	}
	b, err := yaml.Marshal(c)
	if err == nil {
		err = yaml.Unmarshal(b, &m)
	}
	if err != nil {
		panic(err) // plain data
	}
	// Where a run writes and how many commands run at once change no result, and a path tells of a machine.
	delete(m, "output")
	delete(m, "fresh")
	delete(m, "parallel")
	return m
}

func (r *Record) planned(p *Pipeline) {
	r.Plan, r.Lock = p.Plan, p.Lock
	r.Environment = append(r.Environment, p.Plan.env()...)
	r.Platforms = p.Plan.platformNames()
	for _, x := range p.Plan.Releases {
		t := x.Toolchain
		r.Toolchains = append(r.Toolchains, ToolchainID{Release: t.Release, Platform: t.Platform, Checksum: t.Checksum, VerifiedBy: t.VerifiedBy})
	}
}

// conclude sets the verdict of the run.
func (r *Record) conclude() {
	r.Verdict = Passed
	for _, s := range r.Stages {
		if s.Verdict != Passed && s.Verdict != NotRun && s.Verdict != Skipped {
			r.Verdict = Failed
		}
	}
}

// slipwayVersion is the version of this slipway, from its build info.
func slipwayVersion() string {
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, m := range append(b.Deps, &b.Main) {
			if m.Path == "github.com/slipway-ci/slipway" && m.Version != "" {
				return m.Version
			}
		}
	}
	return "(devel)"
}
