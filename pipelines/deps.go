package pipelines

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"runtime/debug"

	"github.com/slipway-ci/slipway/pipelines/internal/deps"
)

// Types of the dependency report.
type (
	// Duplicate is a module of which a program holds several major versions.
	Duplicate = deps.Duplicate
	// Requirement is a module that go.mod requires and no program holds.
	Requirement = deps.Requirement
	// Weight says what takes how much of a program's file.
	Weight = deps.Weight
)

// DepsResult says on what the programs depend. It is a report: nothing in it is bad by itself.
type DepsResult struct {
	Verdict  Verdict      `json:"verdict"`
	Binaries []BinaryDeps `json:"binaries"`
	Modules  []ModuleDeps `json:"modules"`
}

// BinaryDeps is what one program holds.
type BinaryDeps struct {
	Name     string `json:"name"`
	Platform string `json:"platform"`
	// Linked is the number of modules in the program besides its own.
	Linked     int         `json:"linked"`
	Duplicates []Duplicate `json:"duplicates,omitempty"`
	// Weight is that of the full program, nil where the linker strips.
	Weight *Weight `json:"weight,omitempty"`
}

// ModuleDeps is what a module requires and none of its programs holds.
type ModuleDeps struct {
	Dir      string        `json:"dir"`
	Path     string        `json:"path"`
	Unlinked []Requirement `json:"unlinked"`
}

// Deps builds every command and reports on what they depend.
func (p *Pipeline) Deps(ctx context.Context) (*DepsResult, error) {
	build, err := p.Build(ctx)
	if err != nil || build.Verdict != Passed {
		return &DepsResult{Verdict: Skipped}, err
	}
	s := p.stage("deps")
	result := &DepsResult{Verdict: Passed, Binaries: []BinaryDeps{}, Modules: []ModuleDeps{}}
	err = s.task(ctx, "deps", func(context.Context, func(string)) (Verdict, string, error) {
		infos := map[string][]*debug.BuildInfo{} // by directory of the module
		for _, b := range build.Binaries {
			dir := p.Plan.command(b.Package).Module
			infos[dir] = append(infos[dir], b.info)
			w, err := p.weigh(b)
			if err != nil {
				return "", "", err
			}
			result.Binaries = append(result.Binaries, BinaryDeps{Name: b.Name, Platform: b.Platform, Linked: len(b.info.Deps), Duplicates: deps.Duplicates(b.info), Weight: w})
		}
		for _, m := range p.Plan.Modules {
			if len(infos[m.Dir]) == 0 {
				continue
			}
			text, err := fs.ReadFile(p.engine.Source().FS, path.Join(m.Dir, "go.mod"))
			if err != nil {
				return "", "", err
			}
			unlinked, err := deps.Unlinked(text, infos[m.Dir]...)
			if err != nil {
				return "", "", err
			}
			result.Modules = append(result.Modules, ModuleDeps{Dir: m.Dir, Path: m.Path, Unlinked: unlinked})
		}
		return Passed, plural(len(result.Binaries), "program", "programs"), nil
	})
	if err != nil {
		return nil, err
	}
	s.end(Passed, plural(len(result.Binaries), "program", "programs")+" looked at")
	p.Record.Deps = result
	return result, p.writeJSON("deps.json", result)
}

func (p *Pipeline) weigh(b Binary) (*Weight, error) {
	f, size, err := openSized(p.path(b.Full))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	w, err := deps.Weigh(f, size)
	if errors.Is(err, deps.ErrNoSymbols) {
		return nil, nil
	}
	return w, err
}
