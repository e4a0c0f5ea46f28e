package pipelines

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"go/version"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/binary"
)

// BuildResult is what the build stage made.
type BuildResult struct {
	Verdict  Verdict  `json:"verdict"`
	Binaries []Binary `json:"binaries"`
}

// Binary is one program for one platform. Paths are slash-separated and relative to the output directory.
type Binary struct {
	// Name is the command's name, without .exe.
	Name     string `json:"name"`
	Package  string `json:"package"`
	Platform string `json:"platform"`
	// Path is the stripped program.
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	// Full is the program as the linker wrote it; the same as Path where the linker itself stripped it.
	Full       string `json:"full"`
	FullSize   int64  `json:"full_size"`
	FullSHA256 string `json:"full_sha256"`
	// StrippedBy is "slipway" (after linking; see Verify) or "linker" (-s -w, for PE and Mach-O).
	StrippedBy string `json:"stripped_by"`
	// Dynamic tells that the program needs shared libraries at run time.
	Dynamic bool `json:"dynamic"`
	// BuildInfo is what the program says of its build.
	BuildInfo BuildInfo `json:"build_info"`

	platform Platform
	info     *debug.BuildInfo
	forbids  []string // paths of the build, which must not be in the program
}

// BuildInfo is what a binary says of its own build, read back from it.
type BuildInfo struct {
	Go       string            `json:"go"`
	Module   string            `json:"module"`
	Settings map[string]string `json:"settings"`
}

// Build compiles every command for every platform, strips what can be stripped, and reads back from each
// binary that it is what was asked for. It writes the binaries, one archive per platform, and SHA256SUMS.
func (p *Pipeline) Build(ctx context.Context) (*BuildResult, error) {
	if p.build != nil {
		return p.build, nil
	}
	if err := p.checkCommands(); err != nil {
		return nil, err
	}
	return stored(p, "build", func() (*BuildResult, error) { return p.runBuild(ctx) })
}

func (r *BuildResult) final() bool { return r.Verdict == Passed }

// more are the paths of the builds, which verify looks for.
func (r *BuildResult) more() any {
	var forbids [][]string
	for _, b := range r.Binaries {
		forbids = append(forbids, b.forbids)
	}
	return forbids
}

func (r *BuildResult) restore(p *Pipeline, more json.RawMessage) error {
	var forbids [][]string
	if err := json.Unmarshal(more, &forbids); err != nil {
		return err
	}
	if len(forbids) != len(r.Binaries) {
		return errors.New("not a build")
	}
	for i := range r.Binaries {
		b := &r.Binaries[i]
		var err error
		if b.platform, err = ParsePlatform(b.Platform); err != nil {
			return err
		}
		if b.info, err = buildinfo.ReadFile(p.path(b.Full)); err != nil {
			return err
		}
		b.forbids = forbids[i]
	}
	p.build, p.Record.Binaries = r, r.Binaries
	return nil
}

func (p *Pipeline) runBuild(ctx context.Context) (*BuildResult, error) {
	s := p.stage("build")
	platforms := p.Plan.Platforms
	built := make([][]Binary, len(platforms))
	err := p.parallel(ctx, len(platforms), func(ctx context.Context, i int) error {
		return s.task(ctx, "build "+platforms[i].String(), func(ctx context.Context, progress func(string)) (Verdict, string, error) {
			progress("compiling and linking " + plural(len(p.Plan.Commands), "command", "commands"))
			binaries, failures, err := p.buildPlatform(ctx, platforms[i])
			if err != nil {
				return "", "", err
			}
			if len(failures) > 0 {
				s.fail(failures...)
				return Failed, failures[0].What, nil
			}
			built[i] = binaries
			var size int64
			for _, b := range binaries {
				size += b.Size
			}
			return Passed, fmt.Sprintf("%s, %s", plural(len(binaries), "binary", "binaries"), humanBytes(size)), nil
		})
	})
	if err != nil {
		return nil, err
	}
	result := &BuildResult{Verdict: Passed, Binaries: slices.Concat(built...)}
	detail := fmt.Sprintf("%s for %s", plural(len(p.Plan.Commands), "command", "commands"), plural(len(platforms), "platform", "platforms"))
	if len(s.record.Failures) > 0 {
		slices.SortFunc(s.record.Failures, func(a, b Failure) int { return cmp.Compare(a.Where, b.Where) })
		result.Verdict, detail = Failed, plural(len(s.record.Failures), "failure", "failures")
	} else if err := s.task(ctx, "archives", func(ctx context.Context, _ func(string)) (Verdict, string, error) {
		return Passed, "", p.writeArchives(ctx, result.Binaries)
	}); err != nil {
		return nil, err
	}
	p.build = result
	p.Record.Binaries = result.Binaries
	s.end(result.Verdict, detail)
	return result, nil
}

func (p *Pipeline) checkCommands() error {
	if len(p.Plan.Commands) > 0 {
		return nil
	}
	return fault.Usagef("A library has nothing to build: use `slipway vet` and `slipway test`. Otherwise check --packages and build tags.", "no main package in %s", p.Plan.Modules[0].Path)
}

func (p *Pipeline) buildPlatform(ctx context.Context, platform Platform) ([]Binary, []Failure, error) {
	var binaries []Binary
	for _, m := range p.Plan.Modules {
		commands := p.Plan.moduleCommands(m)
		if len(commands) == 0 {
			continue
		}
		out, err := os.MkdirTemp(p.dist.temp, "build-")
		if err != nil {
			return nil, nil, p.dist.error(err)
		}
		r, err := p.compile(ctx, m, commands, platform, out, false)
		if err != nil {
			return nil, nil, err
		}
		if bytes.Contains(r.Stderr, []byte("unsupported GOOS/GOARCH pair")) {
			return nil, nil, fault.Usagef("`go tool dist list` lists the platforms that Go builds for.", "platforms: Go %s does not build for %s", p.Plan.BuildRelease, platform)
		}
		if r.ExitCode != 0 {
			return nil, []Failure{p.buildFailure(ctx, m, commands, platform, r)}, nil
		}
		for _, c := range commands {
			b, failure, err := p.finishBinary(ctx, c, platform, out, r.Dir)
			if err != nil {
				return nil, nil, err
			}
			if failure != nil {
				return nil, []Failure{*failure}, nil
			}
			binaries = append(binaries, *b)
		}
	}
	return binaries, nil, nil
}

// compile runs the one go command that builds all commands of a module for a platform, into directory out.
func (p *Pipeline) compile(ctx context.Context, m Module, commands []Command, platform Platform, out string, relocate bool) (*engine.Result, error) {
	args := []string{"go", "build", "-trimpath", "-buildvcs=false", "-o", engine.OutDir + "/"}
	args = append(args, tagFlags(p.Config.Tags)...)
	if flags := p.linkerFlags(platform); flags != "" {
		args = append(args, "-ldflags="+flags)
	}
	var outputs []string
	args = append(args, packagesOf(commands)...)
	for _, c := range commands {
		outputs = append(outputs, c.Name+platform.exe())
	}
	name := "go build (" + platform.String() + ")"
	if relocate {
		name = "rebuild (" + platform.String() + ")"
	}
	return p.run(ctx, engine.Command{
		Name: name, Toolchain: p.Plan.BuildRelease, Dir: m.Dir, Args: args, Env: append(p.Plan.env(), platform.env()...), CGO: p.Config.CGO,
		Outputs: outputs, OutputDir: out, Relocate: relocate, Keep: !relocate,
	})
}

func packagesOf(commands []Command) []string {
	var all []string
	for _, c := range commands {
		all = append(all, c.Package)
	}
	return all
}

// linkerFlags are those of the configuration, and -s -w where stripping after linking is not possible.
func (p *Pipeline) linkerFlags(platform Platform) string {
	if platform.elf() {
		return p.Config.LDFlags
	}
	return strings.TrimSpace(p.Config.LDFlags + " -s -w")
}

// elf tells whether programs of the platform are ELF files.
func (p Platform) elf() bool {
	switch p.OS {
	case "windows", "darwin", "ios", "plan9", "aix", "js", "wasip1":
		return false
	}
	return true
}

func (p Platform) exe() string {
	if p.OS == "windows" {
		return ".exe"
	}
	return ""
}

// buildFailure says why a build failed. Where cgo is switched off, its absence may be the reason.
func (p *Pipeline) buildFailure(ctx context.Context, m Module, commands []Command, platform Platform, r *engine.Result) Failure {
	f := Failure{What: "go build", Where: platform.String(), Message: excerpt(r.Stderr, 10), Repeat: map[string]string{"platforms": platform.String()}}
	if found := parsePositions("build", "", m.Dir, r.Stderr); len(found) > 0 {
		f.What, f.File, f.Line = "go build: "+found[0].where(), found[0].File, found[0].Line
	}
	if p.Config.CGO {
		return f
	}
	if why := p.cgoMissing(ctx, m, packagesOf(commands), platform.env()); why != "" {
		f.What = why
		f.Next = "Use a package without cgo, or build with --cgo (for this machine's platform, on a base image with a C library)."
	}
	return f
}

// cgoMissing says which packages need cgo, of all that the named ones are built from. It is asked where
// cgo is off and something could not be built.
func (p *Pipeline) cgoMissing(ctx context.Context, m Module, packages, env []string) string {
	users, err := p.cgoUsers(ctx, m, packages, env)
	if err != nil || len(users) == 0 {
		return ""
	}
	return "cgo is off, and " + shorten(users, 3) + " needs it"
}

// cgoUsers lists the packages outside of the standard library that use cgo.
func (p *Pipeline) cgoUsers(ctx context.Context, m Module, packages, env []string) ([]string, error) {
	args := append([]string{"go", "list", "-e", "-deps", "-f", "{{if and .CgoFiles (not .Standard)}}{{.ImportPath}}{{end}}"}, tagFlags(p.Config.Tags)...)
	args = append(args, packages...)
	r, err := p.run(ctx, engine.Command{
		Name: "go list (cgo)", Toolchain: p.Plan.BuildRelease, Dir: m.Dir, Args: args, CGO: true, Env: append(p.Plan.env(), env...),
	})
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(r.Stdout)), nil
}

// finishBinary strips a program that the linker has written, puts both into place and reads them back.
func (p *Pipeline) finishBinary(ctx context.Context, c Command, platform Platform, out, builtIn string) (*Binary, *Failure, error) {
	file := c.Name + platform.exe()
	dir := c.Name + "_" + platform.dirName()
	b := &Binary{Name: c.Name, Package: c.Package, Platform: platform.String(), Path: path.Join(dir, file), platform: platform, StrippedBy: "linker", forbids: []string{builtIn}}
	b.Full = b.Path
	linked := filepath.Join(out, file)
	if platform.elf() {
		b.StrippedBy, b.Full = "slipway", path.Join("debug", dir, file)
	}
	for _, name := range []string{b.Path, b.Full} {
		if err := os.MkdirAll(filepath.Dir(p.path(name)), 0o755); err != nil {
			return nil, nil, p.dist.error(err)
		}
	}
	if err := os.Rename(linked, p.path(b.Full)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("go build wrote no %s for %s", file, c.Package)
	} else if err != nil {
		return nil, nil, p.dist.error(err)
	}
	if platform.elf() {
		if err := p.strip(p.path(b.Path), p.path(b.Full)); err != nil {
			return nil, nil, err
		}
	}
	var err error
	if b.FullSHA256, b.FullSize, err = hashFile(p.path(b.Full)); err != nil {
		return nil, nil, err
	}
	if b.SHA256, b.Size, err = hashFile(p.path(b.Path)); err != nil {
		return nil, nil, err
	}
	failure, err := p.readBack(ctx, c, b)
	return b, failure, err
}

// readBack compares what a binary says of itself with what was asked for.
func (p *Pipeline) readBack(ctx context.Context, c Command, b *Binary) (*Failure, error) {
	failed := func(format string, a ...any) (*Failure, error) {
		return &Failure{What: "build info of " + b.Name, Where: b.Platform, Message: fmt.Sprintf(format, a...), Repeat: map[string]string{"platforms": b.Platform, "commands": b.Name}}, nil
	}
	info, err := buildinfo.ReadFile(p.path(b.Path))
	if err != nil {
		return failed("cannot be read back: %v", err)
	}
	b.info = info
	b.BuildInfo = BuildInfo{Go: info.GoVersion, Module: info.Main.Path, Settings: map[string]string{}}
	for _, s := range info.Settings {
		b.BuildInfo.Settings[s.Key] = s.Value
	}
	if wanted := "go" + p.Plan.BuildRelease; info.GoVersion != wanted {
		return failed("it was built with %s, not %s", info.GoVersion, wanted)
	}
	if info.Path != c.Package {
		return failed("it is package %s, not %s", info.Path, c.Package)
	}
	for _, s := range p.wantedSettings(b.platform) {
		if got := b.BuildInfo.Settings[s.Key]; got != s.Value {
			return failed("%s is %q, not %q", s.Key, got, s.Value)
		}
	}
	if !b.platform.elf() {
		return nil, nil
	}
	content, err := readContent(p.path(b.Path))
	if err != nil {
		return nil, err
	}
	b.Dynamic = content.Dynamic
	if !content.Dynamic || p.Config.CGO && p.Config.Base != "scratch" || b.platform.OS != "linux" {
		return nil, nil
	}
	users, err := p.cgoUsers(ctx, p.Plan.module(c.Module), []string{c.Package}, b.platform.env())
	if err != nil {
		return nil, err
	}
	if len(users) == 0 {
		users = []string{"the standard library (net, os/user)"}
	}
	return &Failure{
		What: b.Name + " is dynamically linked", Where: b.Platform, Message: fmt.Sprintf("It needs %s; cgo was pulled in by %s.", strings.Join(content.Libraries, ", "), shorten(users, 3)),
		Next:   "Build without --cgo, or choose a base image with a C library, such as --base=gcr.io/distroless/base-debian12.",
		Repeat: map[string]string{"platforms": b.Platform, "commands": b.Name},
	}, nil
}

func (p *Plan) module(dir string) Module {
	i := slices.IndexFunc(p.Modules, func(m Module) bool { return m.Dir == dir })
	return p.Modules[i]
}

// wantedSettings are the build settings that a binary must show. With -trimpath the linker's flags are
// not recorded.
func (p *Pipeline) wantedSettings(platform Platform) []debug.BuildSetting {
	cgo := "0"
	if p.Config.CGO {
		cgo = "1"
	}
	wanted := []debug.BuildSetting{{Key: "CGO_ENABLED", Value: cgo}, {Key: "-trimpath", Value: "true"}, {Key: "-tags", Value: strings.Join(p.Config.Tags, ",")}}
	for _, v := range platform.env() {
		key, value, _ := strings.Cut(v, "=")
		if key == "GOARM64" && version.Compare("go"+p.Plan.BuildRelease, "go1.23") < 0 {
			continue
		}
		wanted = append(wanted, debug.BuildSetting{Key: key, Value: value})
	}
	return wanted
}

func readContent(name string) (*binary.Content, error) {
	f, size, err := openSized(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return binary.Read(f, size)
}

func (p *Pipeline) strip(to, from string) error {
	r, size, err := openSized(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	err = binary.Strip(w, r, size)
	err = errors.Join(err, w.Chmod(0o755), w.Close())
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return p.dist.error(err)
	}
	if err != nil {
		return fmt.Errorf("strip %s: %w", filepath.Base(from), err)
	}
	return nil
}

func hashFile(name string) (string, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), n, err
}

// sourceTime is the one time that outputs carry.
func (p *Pipeline) sourceTime() time.Time { return time.Unix(p.Plan.Source.Time, 0).UTC() }
