package pipelines

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/internal/binary"
)

// VerifyResult is the evidence for every binary.
type VerifyResult struct {
	Verdict  Verdict    `json:"verdict"`
	Binaries []Evidence `json:"binaries"`
}

// Evidence is what was found out about one binary. What does not hold is in the failures of the stage.
type Evidence struct {
	Name     string `json:"name"`
	Platform string `json:"platform"`
	// Format is elf, pe or macho.
	Format string `json:"format"`
	// FullSHA256 and SHA256 are the file before and after strip. Where slipway strips, they differ.
	FullSHA256 string `json:"full_sha256"`
	SHA256     string `json:"sha256"`
	// Claim says in words what holds between the two.
	Claim string `json:"claim"`
	// Loaded is a SHA256 over everything that the kernel loads, the same before and after strip; empty
	// where the linker stripped and there is no before.
	Loaded string `json:"loaded_sha256,omitempty"`
	// BuildID is Go's build ID, the same before and after strip.
	BuildID string `json:"build_id"`
	// Removed are the sections that strip removed and Kept those that stayed, with their sizes in bytes.
	Removed map[string]uint64 `json:"removed,omitempty"`
	Kept    map[string]uint64 `json:"kept"`
	// Libraries are the shared libraries that the program names; a static one names none.
	Libraries []string `json:"libraries,omitempty"`
	// CgoPackages are the packages outside of the standard library that brought cgo in.
	CgoPackages []string `json:"cgo_packages,omitempty"`
	// StripAgain is the SHA256 after stripping a second time: the same as SHA256.
	StripAgain string `json:"strip_again_sha256,omitempty"`
	// Rebuild is the SHA256 of the same program linked again in another directory with an empty build
	// cache: the same as FullSHA256. Empty when rebuild is switched off.
	Rebuild string `json:"rebuild_sha256,omitempty"`
	// Paths tells that the directory of the build, the user's home directory and the host's name were looked
	// for in the program and not found.
	Paths bool `json:"no_build_path"`
}

// Verify proves that each stripped binary is the one that was built: what the kernel loads is the same
// before and after strip, a rebuild gives the same file, and no path of the build is in it.
func (p *Pipeline) Verify(ctx context.Context) (*VerifyResult, error) {
	if p.verify != nil {
		return p.verify, nil
	}
	build, err := p.Build(ctx)
	if err != nil || build.Verdict != Passed {
		return &VerifyResult{Verdict: Skipped}, err
	}
	return stored(p, "verify", func() (*VerifyResult, error) { return p.runVerify(ctx, build) })
}

func (r *VerifyResult) final() bool { return r.Verdict == Passed }
func (r *VerifyResult) more() any   { return nil }
func (r *VerifyResult) restore(p *Pipeline, _ json.RawMessage) error {
	p.verify = r
	return nil
}

func (p *Pipeline) runVerify(ctx context.Context, build *BuildResult) (*VerifyResult, error) {
	var err error
	s := p.stage("verify")
	result := &VerifyResult{Verdict: Passed, Binaries: make([]Evidence, len(build.Binaries))}
	err = p.parallel(ctx, len(build.Binaries), func(ctx context.Context, i int) error {
		b := &build.Binaries[i]
		return s.task(ctx, "strip "+b.Name+" "+b.Platform, func(ctx context.Context, _ func(string)) (Verdict, string, error) {
			e, problems, err := p.examine(ctx, b)
			if err != nil {
				return "", "", err
			}
			result.Binaries[i] = *e
			s.fail(p.verifyFailures(b, problems)...)
			if len(problems) > 0 {
				return Failed, problems[0], nil
			}
			return Passed, e.Claim, nil
		})
	})
	if err == nil && (p.Config.Rebuild == nil || *p.Config.Rebuild) {
		err = p.parallel(ctx, len(p.Plan.Platforms), func(ctx context.Context, i int) error {
			return s.task(ctx, "rebuild "+p.Plan.Platforms[i].String(), func(ctx context.Context, progress func(string)) (Verdict, string, error) {
				progress("compiling everything again, the standard library too")
				return p.rebuild(ctx, s, p.Plan.Platforms[i], build.Binaries, result.Binaries)
			})
		})
	}
	if err != nil {
		return nil, err
	}
	detail := plural(len(result.Binaries), "binary", "binaries") + " proven"
	if n := len(s.record.Failures); n > 0 {
		slices.SortFunc(s.record.Failures, func(a, b Failure) int { return cmp.Or(cmp.Compare(a.What, b.What), cmp.Compare(a.Where, b.Where)) })
		result.Verdict, detail = Failed, plural(n, "failure", "failures")
	}
	s.end(result.Verdict, detail)
	p.verify = result
	return result, p.writeJSON("verification.json", result)
}

func (p *Pipeline) verifyFailures(b *Binary, problems []string) []Failure {
	var all []Failure
	for _, text := range problems {
		all = append(all, Failure{What: b.Name, Where: b.Platform, Message: text, Repeat: map[string]string{"platforms": b.Platform, "commands": b.Name}})
	}
	return all
}

// examine reads a binary before and after strip and lists what does not hold.
func (p *Pipeline) examine(ctx context.Context, b *Binary) (*Evidence, []string, error) {
	var problems []string
	// The hashes are taken anew: the chain must hold for the files as they are now.
	sha, _, err := hashFile(p.path(b.Path))
	if err != nil {
		return nil, nil, err
	}
	if sha != b.SHA256 {
		problems = append(problems, fmt.Sprintf("%s changed after it was built: SHA256 %s, was %s", b.Path, sha, b.SHA256))
	}
	after, err := readContent(p.path(b.Path))
	if err != nil {
		return nil, []string{err.Error()}, nil
	}
	e := &Evidence{Name: b.Name, Platform: b.Platform, Format: after.Format, FullSHA256: b.FullSHA256, SHA256: sha, BuildID: after.BuildID}
	e.Kept, e.Libraries = map[string]uint64{}, after.Libraries
	for _, x := range after.Sections {
		e.Kept[x.Name] += x.Size
	}
	if p.Config.CGO && b.BuildInfo.Settings["CGO_ENABLED"] == "1" {
		m := p.Plan.module(p.Plan.command(b.Package).Module)
		if e.CgoPackages, err = p.cgoUsers(ctx, m, []string{b.Package}, b.platform.env()); err != nil {
			return nil, nil, err
		}
	}
	found, err := containsPath(p.path(b.Path), append(b.forbids, tellTales()...))
	if err != nil {
		return nil, nil, err
	}
	e.Paths = len(found) == 0
	if len(found) > 0 {
		problems = append(problems, "the directory of the build, the user's home or the host's name is in the program; something embeds it (go:embed of a generated file, -X, cgo flags)")
	}
	if b.StrippedBy != "slipway" {
		e.Claim = "stripped by the linker; there is no file before strip to compare with"
		return e, problems, nil
	}
	before, err := readContent(p.path(b.Full))
	if err != nil {
		return nil, []string{err.Error()}, nil
	}
	e.Loaded = after.Hash
	e.Removed = map[string]uint64{}
	for _, x := range before.Sections {
		if !x.Loaded && !slices.ContainsFunc(after.Sections, func(y binary.Section) bool { return y.Name == x.Name }) {
			e.Removed[x.Name] = x.Size
		}
	}
	for _, d := range binary.Compare(before, after) {
		problems = append(problems, "strip changed what is loaded: "+d.String())
	}
	again := filepath.Join(p.dist.temp, "again-"+strings.ReplaceAll(b.Path, "/", "-"))
	if err := p.strip(again, p.path(b.Path)); err != nil {
		return nil, nil, err
	}
	defer os.Remove(again)
	if e.StripAgain, _, err = hashFile(again); err != nil {
		return nil, nil, err
	}
	if e.StripAgain != sha {
		problems = append(problems, "stripping a second time changed the file")
	}
	e.Claim = "all that is loaded is identical before and after strip"
	return e, problems, nil
}

// tellTales are texts of this machine that no program may hold. A home of the system and a host name that could
// be a word say nothing when they are found, so they are not looked for.
func tellTales() []string {
	var all []string
	if home, err := os.UserHomeDir(); err == nil && strings.Count(filepath.ToSlash(home), "/") > 1 {
		all = append(all, home)
	}
	if name, err := os.Hostname(); err == nil && len(name) >= 8 && strings.ContainsAny(name, "0123456789") {
		all = append(all, name)
	}
	return all
}

func containsPath(name string, paths []string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return binary.Contains(f, paths)
}

// rebuild builds a platform's binaries again, elsewhere and from nothing, and compares the files.
func (p *Pipeline) rebuild(ctx context.Context, s *stage, platform Platform, binaries []Binary, evidence []Evidence) (Verdict, string, error) {
	verdict, detail := Passed, "the same bytes from another directory and an empty build cache"
	for _, m := range p.Plan.Modules {
		commands := p.Plan.moduleCommands(m)
		if len(commands) == 0 {
			continue
		}
		out, err := os.MkdirTemp(p.dist.temp, "rebuild-")
		if err != nil {
			return "", "", p.dist.error(err)
		}
		r, err := p.compile(ctx, m, commands, platform, out, true)
		if err != nil {
			return "", "", err
		}
		if r.ExitCode != 0 {
			s.fail(Failure{What: "rebuild", Where: platform.String(), Message: excerpt(r.Stderr, 10), Repeat: map[string]string{"platforms": platform.String()}})
			return Failed, "does not build in another directory", nil
		}
		for i := range binaries {
			b := &binaries[i]
			if b.platform != platform || p.Plan.command(b.Package).Module != m.Dir {
				continue
			}
			file := filepath.Join(out, b.Name+platform.exe())
			if evidence[i].Rebuild, _, err = hashFile(file); err != nil {
				return "", "", err
			}
			if evidence[i].Rebuild == b.FullSHA256 {
				continue
			}
			verdict, detail = Failed, b.Name+" differs"
			where, err := describeDifference(p.path(b.Full), file)
			if err != nil {
				return "", "", err
			}
			s.fail(p.verifyFailures(b, []string{"a second build in another directory gave another file: " + where})...)
		}
		if err := os.RemoveAll(out); err != nil {
			return "", "", p.dist.error(err)
		}
	}
	return verdict, detail, nil
}

func (p *Plan) command(pkg string) Command {
	i := slices.IndexFunc(p.Commands, func(c Command) bool { return c.Package == pkg })
	return p.Commands[i]
}

// moduleCommands are the commands of a module, sorted by name.
func (p *Plan) moduleCommands(m Module) []Command {
	return slices.DeleteFunc(slices.Clone(p.Commands), func(c Command) bool { return c.Module != m.Dir })
}

func describeDifference(a, b string) (string, error) {
	fa, sizeA, err := openSized(a)
	if err != nil {
		return "", err
	}
	defer fa.Close()
	fb, sizeB, err := openSized(b)
	if err != nil {
		return "", err
	}
	defer fb.Close()
	place, err := binary.FirstDifference(fa, sizeA, fb, sizeB)
	if err != nil || place == nil {
		return "", err
	}
	return place.String(), nil
}

func openSized(name string) (*os.File, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	i, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, i.Size(), nil
}
