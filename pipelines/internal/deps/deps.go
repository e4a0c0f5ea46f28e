// Package deps reports on what a Go program depends: modules that it holds in several major versions,
// requirements of go.mod that are linked into no program, and how much of a program's file each package
// takes.
package deps

import (
	"cmp"
	"fmt"
	"runtime/debug"
	"slices"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
)

// Duplicate is a module of which a program holds several major versions.
type Duplicate struct {
	// Module is the path without the major version: example.com/m for example.com/m/v2, gopkg.in/yaml for
	// gopkg.in/yaml.v3.
	Module string `json:"module"`
	// Versions are two or more, sorted by major version.
	Versions []Version `json:"versions"`
}

// Version is one of several major versions of a module.
type Version struct {
	Path string `json:"path"`
	// Version is empty for a module whose version nobody gave, such as "(devel)".
	Version string `json:"version,omitempty"`
}

// Duplicates returns the modules that were linked into a program in several major versions, sorted. Packages
// are imported by the path of the module that go.mod requires, so that is the path which counts where a
// module is replaced.
func Duplicates(info *debug.BuildInfo) []Duplicate {
	byModule := map[string][]Version{}
	for _, m := range append([]*debug.Module{&info.Main}, info.Deps...) {
		if m == nil || m.Path == "" {
			continue
		}
		v := Version{m.Path, m.Version}
		if m.Replace != nil {
			v.Version = m.Replace.Version
		}
		if v.Version == "(devel)" {
			v.Version = ""
		}
		prefix, _, ok := module.SplitPathVersion(m.Path)
		if ok && !slices.ContainsFunc(byModule[prefix], func(o Version) bool { return o.Path == v.Path }) {
			byModule[prefix] = append(byModule[prefix], v)
		}
	}
	out := []Duplicate{}
	for prefix, versions := range byModule {
		if len(versions) > 1 {
			// Shorter first: no suffix, v2 … v9, v10.
			slices.SortFunc(versions, func(a, b Version) int {
				return cmp.Or(cmp.Compare(len(a.Path), len(b.Path)), cmp.Compare(a.Path, b.Path))
			})
			out = append(out, Duplicate{prefix, versions})
		}
	}
	slices.SortFunc(out, func(a, b Duplicate) int { return cmp.Compare(a.Module, b.Module) })
	return out
}

// Requirement is a module that go.mod requires and no program holds.
type Requirement struct {
	Path    string `json:"path"`
	Version string `json:"version"`
	// Indirect tells that go.mod says "// indirect" of it: no package of the main module imports it.
	Indirect bool `json:"indirect"`
	// Meaning says in words what follows from that.
	Meaning string `json:"meaning"`
}

const (
	unusedMeaning   = "unused in the binaries (tests or tools may use them)"
	indirectMeaning = "only required indirectly and unused in the binaries: it selects the version of a module that another one requires"
)

// Unlinked returns the requirements of a go.mod file of which nothing was linked into any of the programs,
// which should be all programs of the module for all platforms. Those that the module itself imports come
// first, each group is sorted.
func Unlinked(gomod []byte, programs ...*debug.BuildInfo) ([]Requirement, error) {
	// Lax: what a newer Go puts into go.mod other than requirements makes no difference here.
	f, err := modfile.ParseLax("go.mod", gomod, nil)
	if err != nil {
		return nil, fmt.Errorf("deps: %w", err)
	}
	linked := map[string]bool{}
	for _, info := range programs {
		for _, m := range info.Deps {
			if m != nil {
				linked[m.Path] = true
			}
		}
	}
	out := []Requirement{}
	for _, r := range f.Require {
		if linked[r.Mod.Path] {
			continue
		}
		linked[r.Mod.Path] = true // go.mod may say it twice
		meaning := unusedMeaning
		if r.Indirect {
			meaning = indirectMeaning
		}
		out = append(out, Requirement{r.Mod.Path, r.Mod.Version, r.Indirect, meaning})
	}
	slices.SortFunc(out, func(a, b Requirement) int {
		if a.Indirect != b.Indirect {
			if b.Indirect {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Path, b.Path)
	})
	return out, nil
}
