package pipelines

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/mod/modfile"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/internal/store"
)

// What passed need not be done again as long as nothing has changed that it depends on. Each stage from vet to
// smoke is kept under a digest of all of that, with the files that it wrote. Failed stages, and those that ask the
// network, are always done.

// reuse is how a pipeline takes part in that; its zero value keeps and finds nothing.
type reuse struct {
	store *store.Store
	fixed string // digest of what is the same for all stages and runs with this engine and source
	built string // the same for the verify stage, which compiles the source and does nothing else with it

	// prepare makes toolchains and modules ready, where the plan is from an earlier run.
	prepare func(context.Context) error
	once    sync.Once
	err     error
}

// A Fingerprinter is an engine that can tell on what its machine has, beside all inputs, the outcome of commands
// and of smoke runs depends. Results of other engines are not kept.
type Fingerprinter interface{ Fingerprint() string }

// newReuse decides whether results are kept.
func newReuse(e engine.Engine, c Config, o Options) *reuse {
	f, ok := e.(Fingerprinter)
	// A C compiler is no input that slipway knows, and tests in another order are another question each time.
	if !ok || o.Cache == "" || c.CGO || c.Race || c.Shuffle == "on" || leadsOut(e.Source().FS) {
		return &reuse{}
	}
	source, compiled := identify(e.Source()), e.Source()
	compiled.Files = compiledFiles(compiled)
	machine := fmt.Sprintf("%d %q %q %s %s/%s\n", recordSchema, thisProgram(), e.Name(), f.Fingerprint(), runtime.GOOS, runtime.GOARCH)
	digest := func(source string) string {
		sum := sha256.Sum256([]byte(machine + source))
		return hex.EncodeToString(sum[:])
	}
	return &reuse{
		store: store.Open(filepath.Join(o.Cache, "results")),
		fixed: digest(fmt.Sprintf("%s %q %d %t\n", source.Digest, source.Commit, source.Time, source.Dirty)),
		built: digest(identify(compiled).Digest),
	}
}

// compiledFiles leaves out the files that no compilation can read, of those that people change while they set up a
// pipeline: settings and CI jobs. Only Go files beside or above a file can embed it, and only assembly beside it include
// it; where there is source among the CI jobs, nothing is left out.
func compiledFiles(s engine.Source) []engine.File {
	settings := func(name string) bool {
		return name == ConfigFile || name == ".gitlab-ci.yml" || strings.HasPrefix(name, ".github/") || strings.HasPrefix(name, ".gitlab/")
	}
	for _, f := range s.Files {
		source := slices.Contains([]string{".go", ".s", ".S"}, path.Ext(f.Name)) || path.Base(f.Name) == "go.mod"
		switch {
		case source && settings(f.Name):
			return s.Files
		case !source || path.Dir(f.Name) != "." || path.Base(f.Name) == "go.mod":
			continue
		}
		text, err := fs.ReadFile(s.FS, f.Name)
		if err != nil || path.Ext(f.Name) != ".go" || bytes.Contains(text, []byte("//go:embed")) {
			return s.Files
		}
	}
	return slices.DeleteFunc(slices.Clone(s.Files), func(f engine.File) bool { return settings(f.Name) })
}

// leadsOut tells whether a module of the source is replaced by a directory anywhere on this machine. What is there
// is no part of the source. A file that cannot be read is the plan's to complain about.
func leadsOut(source fs.FS) bool {
	absolute := func(replaced []*modfile.Replace) bool {
		return slices.ContainsFunc(replaced, func(r *modfile.Replace) bool { return r.New.Version == "" && filepath.IsAbs(r.New.Path) })
	}
	if text, err := fs.ReadFile(source, "go.work"); err == nil {
		f, err := modfile.ParseWork("go.work", text, nil)
		if err != nil || absolute(f.Replace) || slices.ContainsFunc(f.Use, func(u *modfile.Use) bool { return filepath.IsAbs(u.Path) }) {
			return true
		}
	}
	dirs, err := modulesBelow(source)
	if err != nil {
		return true
	}
	for _, dir := range dirs {
		name := path.Join(dir, "go.mod")
		text, err := fs.ReadFile(source, name)
		if err != nil {
			return true
		}
		if f, err := modfile.Parse(name, text, nil); err != nil || absolute(f.Replace) {
			return true
		}
	}
	return false
}

// thisProgram identifies what decides over results, also where slipway was built from a changed tree.
func thisProgram() string {
	id := slipwayVersion() + " " + runtime.Version()
	if name, err := os.Executable(); err == nil {
		if i, err := os.Stat(name); err == nil {
			id += fmt.Sprintf(" %d %d", i.Size(), i.ModTime().UnixNano())
		}
	}
	return id
}

// Keys of the configuration that no stage from vet to smoke depends on, and those that only the later ones do.
var (
	keysOfNone  = []string{"profile", "profiles", "output", "parallel", "fresh", "to", "bases", "vuln", "vuln-mode", "vuln-db", "go-image"}
	keysOfImage = slices.Concat(imageKeys, imageLimits)
	keysOfSmoke = []string{"smoke"}
)

// key is the digest of everything that the result of a stage depends on. Where that is what an earlier stage has
// written, the files count as they are now.
func (p *Pipeline) key(stage string) (string, error) {
	without := slices.Clone(keysOfNone)
	image := stage == "image" || stage == "smoke"
	if stage != "smoke" {
		without = append(without, keysOfSmoke...)
	}
	if !image {
		without = append(without, keysOfImage...)
	}
	text, err := yaml.Marshal(p.Config)
	if err != nil {
		return "", err
	}
	var config map[string]any
	if err := yaml.Unmarshal(text, &config); err != nil {
		return "", err
	}
	for _, name := range without {
		delete(config, name)
	}
	p.Lock.mu.Lock()
	inputs := map[string]any{"stage": stage, "config": config, "go": p.Lock.Go, "toolchains": p.Lock.Toolchains}
	if image {
		inputs["bases"] = p.Lock.Bases
		for key, name := range map[string]string{"base": layoutIndex(p.Config.Base), "previous": p.Config.Previous} {
			if name != "" {
				// What cannot be read has no digest; the stage will say what is wrong.
				inputs[key], _, _ = hashFile(name)
			}
		}
	}
	if stage == "verify" || image {
		for _, b := range p.build.Binaries {
			for _, name := range []string{b.Path, b.Full} {
				if inputs[name], _, err = hashFile(p.path(filepath.FromSlash(name))); err != nil {
					break // found out by the stage
				}
			}
		}
	}
	if stage == "smoke" {
		inputs["image"] = p.image.Digest
	}
	text, err = json.Marshal(inputs)
	p.Lock.mu.Unlock()
	if err != nil {
		return "", err
	}
	fixed := p.reuse.fixed
	if stage == "verify" {
		fixed = p.reuse.built
	}
	sum := sha256.Sum256(append(text, fixed...))
	return hex.EncodeToString(sum[:]), nil
}

// layoutIndex is the file that decides over a base image on disk, empty for other base images.
func layoutIndex(base string) string {
	if dir, ok := strings.CutPrefix(base, "oci:"); ok {
		return filepath.Join(dir, "index.json")
	}
	return ""
}

// keptStage is what the store holds of a stage.
type keptStage struct {
	Result json.RawMessage `json:"result"`
	// More is what the result has beside what JSON shows.
	More  json.RawMessage `json:"more,omitempty"`
	Stage *StageRecord    `json:"stage"`
	Notes []string        `json:"notes,omitempty"`
}

// A keepable is the result of a stage that may be kept.
type keepable interface {
	// final tells that the stage has passed and left nothing open that may be answered otherwise next time.
	final() bool
	// more is what MarshalJSON leaves out, and restore takes it back.
	more() any
	restore(p *Pipeline, more json.RawMessage) error
}

// stored gives the result that a stage had with the same inputs, or runs it.
func stored[T any, R interface {
	*T
	keepable
}](p *Pipeline, name string, run func() (R, error)) (R, error) {
	// Who counts how often a test fails asks chance, and anew each time.
	kept := p.reuse.store != nil && (name != "test" || p.Config.Count == 0)
	if kept && !p.Config.Fresh {
		if result, ok := recall[T, R](p, name); ok {
			return result, nil
		}
	}
	if err := p.foreseeSmoke(); err != nil {
		return nil, err
	}
	if !kept {
		return run()
	}
	before := p.dist.files()
	stages, notes := len(p.Record.Stages), len(p.Record.Notes)
	result, err := run()
	if err != nil || !result.final() || len(p.Record.Stages) != stages+1 {
		return result, err
	}
	var names []string
	for name, stamp := range p.dist.files() {
		if before[name] != stamp {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	k := keptStage{Stage: p.Record.Stages[stages], Notes: p.Record.Notes[notes:]}
	if err := p.keep(name, k, result, result.more(), names); err != nil {
		p.note(name, "the result cannot be kept for the next run: %v", withoutPath(err))
	}
	return result, nil
}

func (p *Pipeline) keep(name string, k keptStage, result, more any, files []string) error {
	key, err := p.key(name) // only now the lock file pins all that the stage has used
	if err != nil {
		return err
	}
	if k.Result, err = json.Marshal(result); err != nil {
		return err
	}
	if k.More, err = json.Marshal(more); err != nil {
		return err
	}
	value, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return p.reuse.store.Put(key, value, p.dist.dir, files)
}

// recall takes a result from the store. What does not fit is as good as nothing.
func recall[T any, R interface {
	*T
	keepable
}](p *Pipeline, name string) (R, bool) {
	key, err := p.key(name)
	if err != nil {
		return nil, false
	}
	entry := p.reuse.store.Get(key, p.dist.dir)
	if entry == nil {
		return nil, false
	}
	var k keptStage
	result := R(new(T))
	if json.Unmarshal(entry.Value, &k) != nil || k.Stage == nil || json.Unmarshal(k.Result, result) != nil || result.restore(p, k.More) != nil {
		for _, f := range entry.Files {
			_ = os.Remove(p.path(filepath.FromSlash(f.Name)))
		}
		return nil, false
	}
	p.reused(k, entry.Made)
	return result, true
}

// reused puts a stage of an earlier run into the record of this one.
func (p *Pipeline) reused(k keptStage, made time.Time) {
	k.Stage.Started, k.Stage.Elapsed, k.Stage.Reused = p.since(), 0, made.Format(time.RFC3339)
	p.mu.Lock()
	p.Record.Stages = append(p.Record.Stages, k.Stage)
	p.mu.Unlock()
	p.observe(Event{Kind: EventDone, Stage: k.Stage.Name, Task: k.Stage.Name, Verdict: k.Stage.Verdict, Detail: k.Stage.Outcome()})
	for _, n := range k.Notes {
		p.note(k.Stage.Name, "%s", n)
	}
}

// Outcome is the outcome of the stage in a few words, and since when it is so.
func (s *StageRecord) Outcome() string {
	since, err := time.Parse(time.RFC3339, s.Reused)
	if err != nil {
		return s.Detail
	}
	return strings.TrimPrefix(s.Detail+", unchanged since "+since.Format("2006-01-02 15:04 MST"), ", ")
}

// run runs a command. Where the plan is from an earlier run, toolchains and modules are made ready first.
func (p *Pipeline) run(ctx context.Context, c engine.Command) (*engine.Result, error) {
	if p.reuse.prepare != nil {
		p.reuse.once.Do(func() { p.reuse.err = p.reuse.prepare(ctx) })
		if p.reuse.err != nil {
			return nil, p.reuse.err
		}
	}
	return p.engine.Run(ctx, c)
}

// files lists what has been written so far, with what tells whether it changes.
func (d *dist) files() map[string]string {
	all := map[string]string{}
	_ = filepath.WalkDir(d.dir, func(name string, e fs.DirEntry, err error) error {
		if name == d.temp {
			return fs.SkipDir
		}
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		if i, err := e.Info(); err == nil {
			rel, _ := filepath.Rel(d.dir, name)
			all[filepath.ToSlash(rel)] = fmt.Sprint(i.Size(), i.ModTime().UnixNano(), i.Mode())
		}
		return nil
	})
	return all
}
