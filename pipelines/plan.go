package pipelines

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"go/version"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/tail"
)

// Plan is what a pipeline will do: the answer to everything that configuration, lock file and source
// leave open. It is a value; making it runs nothing but questions to the go command.
type Plan struct {
	// Name is the last element of the first module's path; archives are named after it.
	Name string `json:"name"`
	// Source identifies the tree.
	Source SourceID `json:"source"`
	// Modules are the modules to work on, sorted by directory.
	Modules []Module `json:"modules"`
	// Releases are the matrix, oldest first.
	Releases []Release `json:"releases"`
	// Excluded are the releases that were asked for and cannot be used.
	Excluded []Exclusion `json:"excluded,omitempty"`
	// BuildRelease is the exact release that builds: the newest of Releases.
	BuildRelease string `json:"build_release"`
	// Commands are the main packages to build, sorted by name.
	Commands []Command `json:"commands"`
	// Platforms to build for, sorted.
	Platforms []Platform `json:"-"`
	// Notes are what a person should know about the plan.
	Notes []string `json:"notes,omitempty"`

	goWork string // value of GOWORK for every command
}

// SourceID identifies a source tree.
type SourceID struct {
	// Digest is a SHA256 over names, executable bits and contents of all files but slipway.lock.
	Digest string `json:"digest"`
	Commit string `json:"commit,omitempty"`
	// Time is in seconds since 1970: SOURCE_DATE_EPOCH, else the commit's time, else 0.
	Time  int64 `json:"time"`
	Dirty bool  `json:"dirty,omitempty"`
	// Changed are the files in which the tree differs from the commit, at most 20.
	Changed []string `json:"changed,omitempty"`
	Files   int      `json:"files"`
}

// Module is one Go module of the source.
type Module struct {
	// Dir is slash-separated and relative to the source's root.
	Dir  string `json:"dir"`
	Path string `json:"path"`
	// Go is the module's go line, "1.16" where it has none.
	Go       string `json:"go"`
	Vendored bool   `json:"vendored,omitempty"`
}

// Release is one Go release of the matrix.
type Release struct {
	// Requested is how it was asked for; several requests for one release are joined by commas.
	Requested string `json:"requested"`
	// Exact is the exact release.
	Exact string `json:"exact"`
	// Toolchain is what the engine has made ready and verified.
	Toolchain engine.Toolchain `json:"-"`
}

// Exclusion is a release that was asked for and cannot be used.
type Exclusion struct {
	Requested string `json:"requested"`
	Exact     string `json:"exact"`
	Reason    string `json:"reason"`
}

// Command is one main package.
type Command struct {
	// Name is the name of the program.
	Name string `json:"name"`
	// Package is its import path.
	Package string `json:"package"`
	// Module is the directory of its module.
	Module string `json:"module"`
}

// oldestRelease is the oldest that slipway supports; older ones lack flags that it needs.
const oldestRelease = "1.20"

// makePlan answers what the source alone decides: modules, matrix and platforms. Toolchains are ready
// and verified when it returns, and l holds what it pinned. Commands are found later, by findCommands,
// because they need the modules' requirements.
func makePlan(ctx context.Context, e engine.Engine, c Config, l *Lock, progress func(string)) (*Plan, error) {
	src := e.Source()
	p := &Plan{Source: identify(src), goWork: "off"}
	if err := p.findModules(src.FS, c.Modules); err != nil {
		return nil, err
	}
	p.Name = programName(p.Modules[0].Path)
	for _, s := range c.Platforms {
		platform, err := ParsePlatform(s)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(p.Platforms, platform) {
			p.Platforms = append(p.Platforms, platform)
		}
	}
	slices.SortFunc(p.Platforms, func(a, b Platform) int { return cmp.Compare(a.String(), b.String()) })
	progress("looking for Go releases")
	if err := p.makeMatrix(ctx, e, c.GoVersions, l); err != nil {
		return nil, err
	}
	for _, x := range p.Platforms {
		if x.Arch == "arm64" && x.Variant != "" && version.Compare("go"+p.BuildRelease, "go1.23") < 0 {
			return nil, fault.Usagef("Build with Go 1.23 or newer, or for linux/arm64.", "platforms: Go %s cannot build for %s: it knows no variants of arm64", p.BuildRelease, x)
		}
	}
	used := map[string]bool{}
	for i, r := range p.Releases {
		progress(fmt.Sprintf("Go %s, %d of %d: fetching it the first time, verifying it", r.Exact, i+1, len(p.Releases)))
		t, err := e.Toolchain(ctx, r.Exact, l.Toolchains[r.Exact])
		if err != nil {
			// Proxies differ in what they say of what does not exist. The list of releases is clear.
			if known, listErr := listReleases(ctx, e); listErr == nil && !slices.Contains(known, r.Exact) {
				return nil, noRelease(r.Exact)
			}
			return nil, err
		}
		l.setToolchain(r.Exact, t.Pin, t.Checksum)
		p.Releases[i].Toolchain = t
		used[r.Exact] = true
	}
	for _, exact := range l.Go {
		used[exact] = true
	}
	l.prune(used)
	return p, nil
}

func identify(s engine.Source) SourceID {
	h := sha256.New()
	for _, f := range s.Files {
		if f.Name != LockFile { // an input of its own, and written by the first run
			fmt.Fprintf(h, "%q %t %q %s\n", f.Name, f.Executable, f.Link, f.SHA256)
		}
	}
	id := SourceID{Digest: "sha256:" + hex.EncodeToString(h.Sum(nil)), Commit: s.Commit, Dirty: s.Dirty && s.Commit != "", Files: len(s.Files)}
	if id.Dirty {
		id.Changed = s.Changed[:min(len(s.Changed), 20)]
	}
	if !s.Time.IsZero() {
		id.Time = s.Time.Unix()
	}
	return id
}

// findModules finds the modules of the source: those that were asked for, else those of go.work, else
// the one in the root, else every one in the tree.
func (p *Plan) findModules(source fs.FS, asked []string) error {
	dirs := asked
	work, err := fs.ReadFile(source, "go.work")
	switch {
	case err == nil:
		f, err := modfile.ParseWork("go.work", work, nil)
		if err != nil {
			return fault.Usagef("Mend it; `go work edit -fmt` shows the same error.", "%v", err)
		}
		p.goWork = engine.SourceDir + "/go.work"
		if len(dirs) == 0 {
			for _, u := range f.Use {
				dirs = append(dirs, u.Path)
			}
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fault.Environmentf(err, "", "go.work")
	}
	nested, err := modulesBelow(source)
	if err != nil {
		return err
	}
	if len(dirs) == 0 && slices.Contains(nested, ".") {
		dirs = []string{"."}
		if others := len(nested) - 1; others > 0 {
			p.Notes = append(p.Notes, fmt.Sprintf("%d nested modules are not part of this run (%s); a go.work file or `modules` would include them", others, shorten(nested[1:], 3)))
		}
	}
	if len(dirs) == 0 {
		dirs = nested
	}
	if len(dirs) == 0 {
		return fault.Usagef("Run slipway in the root of a Go module, or name it with --source. `go mod init` makes one.", "no go.mod in the source")
	}
	for _, d := range dirs {
		m, err := readModule(source, path.Clean(d))
		if err != nil {
			return err
		}
		p.Modules = append(p.Modules, m)
	}
	slices.SortFunc(p.Modules, func(a, b Module) int { return cmp.Compare(a.Dir, b.Dir) })
	p.Modules = slices.Compact(p.Modules)
	return nil
}

// modulesBelow lists the directories that hold a go.mod and that the go command would look into.
func modulesBelow(source fs.FS) ([]string, error) {
	var dirs []string
	err := fs.WalkDir(source, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() && name != "." && (base == "testdata" || base == "vendor" || base[0] == '.' || base[0] == '_') {
			return fs.SkipDir
		}
		if base == "go.mod" && !d.IsDir() {
			dirs = append(dirs, path.Dir(name))
		}
		return nil
	})
	slices.Sort(dirs)
	return dirs, err
}

func readModule(source fs.FS, dir string) (Module, error) {
	name := path.Join(dir, "go.mod")
	if !fs.ValidPath(dir) {
		return Module{}, fault.Usagef("Modules must lie inside the source; name a directory that holds all with --source.", "module %s is outside of the source", dir)
	}
	text, err := fs.ReadFile(source, name)
	if errors.Is(err, fs.ErrNotExist) {
		return Module{}, fault.Usagef("Check `modules` and the use lines of go.work; files that git ignores are not part of the source.", "there is no %s", name)
	}
	if err != nil {
		return Module{}, fault.Environmentf(err, "", "%s", name)
	}
	f, err := modfile.Parse(name, text, nil)
	if err != nil {
		return Module{}, fault.Usagef("Mend it; `go mod edit -fmt` shows the same error.", "%v", err)
	}
	if f.Module == nil {
		return Module{}, fault.Usagef("Add a line like: module example.com/name", "%s has no module line", name)
	}
	m := Module{Dir: dir, Path: f.Module.Mod.Path, Go: "1.16"} // https://go.dev/ref/mod#go-mod-file-go
	if f.Go != nil {
		m.Go = f.Go.Version
	}
	// The go command looks into vendor/ from go 1.14 on: https://go.dev/ref/mod#vendoring
	if _, err = fs.Stat(source, path.Join(dir, "vendor", "modules.txt")); err == nil {
		m.Vendored = f.Go != nil && version.Compare("go"+m.Go, "go1.14") >= 0
	}
	return m, nil
}

// findCommands lists the main packages.
func (p *Plan) findCommands(ctx context.Context, e engine.Engine, c Config) error {
	var all []Command
	for _, m := range p.Modules {
		patterns := p.patterns(m, c.Packages)
		if len(patterns) == 0 {
			continue
		}
		args := append([]string{"go", "list", "-e", "-json=ImportPath,Name"}, tagFlags(c.Tags)...)
		r, err := e.Run(ctx, engine.Command{
			Name: "go list", Toolchain: p.BuildRelease, Dir: m.Dir, Args: append(args, patterns...),
			Env: append(p.env(), p.Platforms[0].env()...), CGO: c.CGO,
		})
		if err != nil {
			return err
		}
		if r.ExitCode != 0 {
			return fault.Usagef("The same command must work by hand: go list "+strings.Join(patterns, " "), "packages of module %s cannot be listed: %s", m.Path, tail.Lines(r.Stderr, 5))
		}
		d := json.NewDecoder(bytes.NewReader(r.Stdout))
		for {
			var pkg struct{ ImportPath, Name string }
			if err := d.Decode(&pkg); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return fmt.Errorf("go list: %w", err)
			}
			if pkg.Name == "main" {
				all = append(all, Command{Name: programName(pkg.ImportPath), Package: pkg.ImportPath, Module: m.Dir})
			}
		}
	}
	chosen := all
	if len(c.Commands) > 0 {
		var err error
		if chosen, err = chooseCommands(all, c.Commands); err != nil {
			return err
		}
	} else if usual := slices.DeleteFunc(slices.Clone(all), func(x Command) bool { return !p.usual(x) }); len(usual) > 0 {
		chosen = usual
	}
	slices.SortFunc(chosen, func(a, b Command) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Package, b.Package)) })
	for i := 1; i < len(chosen); i++ {
		if a, b := chosen[i-1], chosen[i]; a.Name == b.Name {
			return fault.Usagef("Choose with --commands; an import path chooses just one: --commands="+a.Package, "two commands are named %s: %s and %s", a.Name, a.Package, b.Package)
		}
	}
	p.Commands = chosen
	return nil
}

// usual tells whether a main package lies where programs for users lie: the module's root or cmd.
func (p *Plan) usual(c Command) bool {
	for _, m := range p.Modules {
		if m.Dir == c.Module {
			rel := strings.TrimPrefix(strings.TrimPrefix(c.Package, m.Path), "/")
			return rel == "" || strings.HasPrefix(rel, "cmd/")
		}
	}
	return false
}

func chooseCommands(all []Command, asked []string) ([]Command, error) {
	var chosen []Command
	var names []string
	for _, c := range all {
		names = append(names, c.Name)
	}
	for _, a := range asked {
		n := len(chosen)
		for _, c := range all {
			if (c.Name == a || c.Package == a) && !slices.Contains(chosen, c) {
				chosen = append(chosen, c)
			}
		}
		if n == len(chosen) {
			return nil, fault.Usagef(fault.Nearest(a, names), "there is no command %q", a)
		}
	}
	return chosen, nil
}

// programName is the name that the go command gives to the program of an import path.
func programName(importPath string) string {
	base := path.Base(importPath)
	// A major version is not a name: example.com/tool/v2 is tool.
	if prefix, version, ok := module.SplitPathVersion(importPath); ok && version == "/"+base {
		base = path.Base(prefix)
	}
	return base
}

// patterns are the package patterns of c that lie in module m, relative to m.
func (p *Plan) patterns(m Module, all []string) []string {
	var mine []string
	for _, pattern := range all {
		if owner := p.owner(pattern); owner != "" && owner != m.Path {
			continue
		}
		if m.Dir == "." || pattern == "./..." || !strings.HasPrefix(pattern, "./") {
			mine = append(mine, pattern)
			continue
		}
		if rest, ok := strings.CutPrefix(pattern, "./"+m.Dir+"/"); ok {
			mine = append(mine, "./"+rest)
		} else if pattern == "./"+m.Dir {
			mine = append(mine, ".")
		}
	}
	return mine
}

// owner is the path of the module that an import path lies in, empty if no module of the plan has it.
func (p *Plan) owner(importPath string) string {
	best := ""
	for _, m := range p.Modules {
		if (importPath == m.Path || strings.HasPrefix(importPath, m.Path+"/")) && len(m.Path) > len(best) {
			best = m.Path
		}
	}
	return best
}

// env is the environment that is the same for every command of the plan.
func (p *Plan) env() []string { return []string{"GOWORK=" + p.goWork} }

func tagFlags(tags []string) []string {
	if len(tags) == 0 {
		return nil
	}
	return []string{"-tags=" + strings.Join(tags, ",")}
}

// summary is the plan in a few words.
func (p *Plan) summary() string {
	return fmt.Sprintf("Go %s; %s", strings.Join(p.exact(), ", "), shorten(p.platformNames(), 4))
}

func (p *Plan) exact() []string {
	var all []string
	for _, r := range p.Releases {
		all = append(all, r.Exact)
	}
	return all
}

func (p *Plan) platformNames() []string {
	var all []string
	for _, x := range p.Platforms {
		all = append(all, x.String())
	}
	return all
}

func shorten(list []string, n int) string {
	if len(list) <= n {
		return strings.Join(list, ", ")
	}
	return strings.Join(list[:n], ", ") + " and " + strconv.Itoa(len(list)-n) + " more"
}

// planMore is what JSON does not show of a plan.
type planMore struct {
	Platforms  []Platform
	Toolchains []engine.Toolchain
	GoWork     string
}

func (p *Plan) final() bool { return true }

func (p *Plan) more() any {
	m := planMore{Platforms: p.Platforms, GoWork: p.goWork}
	for _, r := range p.Releases {
		m.Toolchains = append(m.Toolchains, r.Toolchain)
	}
	return m
}

func (p *Plan) restore(to *Pipeline, more json.RawMessage) error {
	var m planMore
	if err := json.Unmarshal(more, &m); err != nil {
		return err
	}
	if len(m.Toolchains) != len(p.Releases) || len(p.Modules) == 0 {
		return errors.New("not a plan")
	}
	p.Platforms, p.goWork = m.Platforms, m.GoWork
	for i := range p.Releases {
		p.Releases[i].Toolchain = m.Toolchains[i]
	}
	to.Plan = p
	to.Record.planned(to)
	to.reuse.prepare = func(ctx context.Context) error {
		for _, r := range p.Releases {
			if _, err := to.engine.Toolchain(ctx, r.Exact, to.Lock.Toolchains[r.Exact]); err != nil {
				return err
			}
		}
		return to.fetchModules(ctx)
	}
	return nil
}
