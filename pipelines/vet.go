package pipelines

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/internal/tail"
)

// vetChecks are the checks of the vet stage.
var vetChecks = []string{"vet", "gofmt", "tidy", "verify", "vendor"}

// VetResult is what the vet stage found.
type VetResult struct {
	Verdict  Verdict   `json:"verdict"`
	Findings []Finding `json:"findings"`
	// NotChecked are the checks that could not be done, each with the reason.
	NotChecked []string `json:"not_checked,omitempty"`
}

// Finding is one complaint about the source.
type Finding struct {
	// Check is the check that complains: vet, gofmt, tidy, verify or vendor.
	Check string `json:"check"`
	// Analyzer is the one of go vet that complains, such as printf, if that is known.
	Analyzer string `json:"analyzer,omitempty"`
	// Releases are the Go releases that complain, where the check runs under several.
	Releases []string `json:"releases,omitempty"`
	// File is slash-separated and relative to the source's root; Line and Column are 1-based, 0 when unknown.
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column,omitempty"`
	Message string `json:"message"`
}

func (f Finding) where() string {
	s := f.File
	if f.Line > 0 {
		s += ":" + strconv.Itoa(f.Line)
	}
	if f.Column > 0 {
		s += ":" + strconv.Itoa(f.Column)
	}
	return s
}

// Vet runs go vet under every release, and gofmt and the checks of the module files once, with the
// release that builds.
func (p *Pipeline) Vet(ctx context.Context) (*VetResult, error) {
	return stored(p, "vet", func() (*VetResult, error) { return p.runVet(ctx) })
}

func (r *VetResult) final() bool                              { return r.Verdict == Passed && len(r.NotChecked) == 0 }
func (r *VetResult) more() any                                { return nil }
func (r *VetResult) restore(*Pipeline, json.RawMessage) error { return nil }

func (p *Pipeline) runVet(ctx context.Context) (*VetResult, error) {
	s := p.stage("vet")
	v := &vetting{p: p, result: &VetResult{Verdict: Passed, Findings: []Finding{}}}
	type job struct {
		check, name string
		run         func(ctx context.Context) ([]Finding, error)
	}
	var jobs []job
	for _, r := range p.Plan.Releases {
		jobs = append(jobs, job{"vet", "vet " + r.Exact, func(ctx context.Context) ([]Finding, error) { return v.vet(ctx, r.Exact) }})
	}
	jobs = append(jobs, job{"gofmt", "gofmt", v.gofmt}, job{"tidy", "go mod tidy", v.tidy}, job{"verify", "go mod verify", v.verify}, job{"vendor", "go mod vendor", v.vendor})
	vendored := slices.ContainsFunc(p.Plan.Modules, func(m Module) bool { return m.Vendored })
	jobs = slices.DeleteFunc(jobs, func(j job) bool {
		return !slices.Contains(p.Config.VetChecks, j.check) || j.check == "vendor" && !vendored
	})
	err := p.parallel(ctx, len(jobs), func(ctx context.Context, i int) error {
		return s.task(ctx, jobs[i].name, func(ctx context.Context, progress func(string)) (Verdict, string, error) {
			if jobs[i].check == "vet" {
				progress("compiling what the packages import, then looking at them")
			}
			found, err := jobs[i].run(ctx)
			if n, ok := errors.AsType[notChecked](err); ok {
				v.skip(jobs[i].name, string(n))
				return NotRun, string(n), nil
			}
			if err != nil {
				return "", "", err
			}
			v.add(found)
			if len(found) > 0 {
				return Failed, plural(len(found), "finding", "findings"), nil
			}
			return Passed, "", nil
		})
	})
	if err != nil {
		return nil, err
	}
	result := v.result
	slices.SortFunc(result.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Check, b.Check), cmp.Compare(a.Message, b.Message))
	})
	slices.Sort(result.NotChecked)
	detail := "no findings"
	if n := len(result.Findings); n > 0 {
		result.Verdict, detail = Failed, plural(n, "finding", "findings")
		for _, f := range result.Findings {
			failure := Failure{What: f.Check, Where: f.where(), Message: f.Message, File: f.File, Line: f.Line, Repeat: map[string]string{"vet-checks": f.Check}}
			if len(f.Releases) > 0 {
				failure.What += " (Go " + strings.Join(f.Releases, ", ") + ")"
				failure.Repeat["go-versions"] = f.Releases[0]
			}
			s.fail(failure)
		}
	}
	s.end(result.Verdict, detail)
	return result, p.writeJSON("vet.json", result)
}

// vetting collects the findings of checks that run at the same time.
type vetting struct {
	p      *Pipeline
	mu     sync.Mutex
	result *VetResult
}

// notChecked is the reason why a check could not be done.
type notChecked string

func (n notChecked) Error() string { return string(n) }

func (v *vetting) skip(name, reason string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.result.NotChecked = append(v.result.NotChecked, name+": "+reason)
}

// add merges findings that several releases share.
func (v *vetting) add(found []Finding) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, f := range found {
		i := slices.IndexFunc(v.result.Findings, func(g Finding) bool {
			return f.Check == g.Check && f.File == g.File && f.Line == g.Line && f.Column == g.Column && f.Message == g.Message
		})
		if i < 0 {
			v.result.Findings = append(v.result.Findings, f)
			continue
		}
		g := &v.result.Findings[i]
		g.Analyzer = cmp.Or(g.Analyzer, f.Analyzer)
		g.Releases = append(g.Releases, f.Releases...)
		slices.Sort(g.Releases)
		g.Releases = slices.Compact(g.Releases)
	}
}

// position matches what compilers, vet and gofmt print: file:line:column: message.
var position = regexp.MustCompile(`^(?:vet: )?(\S.*?\.(?:go|mod|s|c|h)):(\d+)(?::(\d+))?: (.*)$`)

func parsePositions(check, release, dir string, text []byte) []Finding {
	var found []Finding
	for line := range strings.Lines(string(text)) {
		m := position.FindStringSubmatch(strings.TrimRight(line, "\r\n"))
		if m == nil {
			continue
		}
		f := Finding{Check: check, File: path.Join(dir, filepath.ToSlash(m[1])), Line: number(m[2]), Column: number(m[3]), Message: m[4]}
		if filepath.IsAbs(m[1]) {
			f.File = path.Clean(filepath.ToSlash(m[1])) // of the toolchain, or of a module
		}
		if release != "" {
			f.Releases = []string{release}
		}
		found = append(found, f)
	}
	return found
}

func (v *vetting) vet(ctx context.Context, release string) ([]Finding, error) {
	var all []Finding
	for _, m := range v.p.Plan.Modules {
		patterns := v.p.Plan.patterns(m, v.p.Config.Packages)
		if len(patterns) == 0 {
			continue
		}
		args := append([]string{"go", "vet", "-trimpath"}, tagFlags(v.p.Config.Tags)...)
		c := engine.Command{
			Name: "go vet (" + release + ")", Toolchain: release, Dir: m.Dir, Args: append(args, patterns...), Env: v.p.Plan.env(), CGO: v.p.Config.CGO,
		}
		r, err := v.p.run(ctx, c)
		if err != nil {
			return nil, err
		}
		found := parsePositions("vet", release, m.Dir, append(r.Stderr, r.Stdout...))
		if len(found) > 0 {
			if err := v.nameAnalyzers(ctx, c, found); err != nil {
				return nil, err
			}
		}
		if r.ExitCode != 0 && len(found) == 0 {
			text := v.p.explain(ctx, m, patterns, tail.Lines(r.Stderr, 5))
			found = []Finding{{Check: "vet", Releases: []string{release}, File: modFileName(m), Message: text}}
		}
		all = append(all, found...)
	}
	return all, nil
}

// explain puts before what the go command says that packages need cgo, where that is behind it.
func (p *Pipeline) explain(ctx context.Context, m Module, packages []string, text string) string {
	if p.Config.CGO || !strings.Contains(text, "build constraints exclude all Go files") {
		return text
	}
	if why := p.cgoMissing(ctx, m, packages, nil); why != "" {
		return why + "; --cgo switches it on\n" + text
	}
	return text
}

// gofmt checks the Go files that belong to packages: not those of testdata and vendor.
func (v *vetting) gofmt(ctx context.Context) ([]Finding, error) {
	var names []string
	for _, f := range v.p.engine.Source().Files {
		if f.Link == "" && path.Ext(f.Name) == ".go" && !slices.ContainsFunc(strings.Split(f.Name, "/"), func(e string) bool {
			return e == "testdata" || e == "vendor" || e[0] == '.' || e[0] == '_'
		}) {
			names = append(names, f.Name)
		}
	}
	var all []Finding
	for chunk := range slices.Chunk(names, 200) { // a command line has its limits
		r, err := v.p.run(ctx, engine.Command{Name: "gofmt", Toolchain: v.p.Plan.BuildRelease, Args: append([]string{"gofmt", "-d", "--"}, chunk...)})
		if err != nil {
			return nil, err
		}
		all = append(all, parsePositions("gofmt", "", "", r.Stderr)...)
		all = append(all, parseDiff("gofmt", r.Stdout, "not formatted: gofmt -w mends it")...)
		if len(all) == 0 && r.ExitCode != 0 {
			return nil, fmt.Errorf("gofmt: %s", tail.Lines(r.Stderr, 5))
		}
	}
	return all, nil
}

var hunk = regexp.MustCompile(`^@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@`)

// parseDiff finds the first change of every file in a unified diff.
func parseDiff(check string, diff []byte, message string) []Finding {
	var found []Finding
	file := ""            // empty when it has its finding
	line := 0             // of the old file, that comes next
	before, after := 0, 0 // lines that the hunk still has of the old and the new file: they may look like headers
	for text := range strings.Lines(string(diff)) {
		if before <= 0 && after <= 0 {
			if name, ok := strings.CutPrefix(text, "+++ "); ok {
				file, _, _ = strings.Cut(strings.TrimRight(name, "\r\n"), "\t")
			} else if m := hunk.FindStringSubmatch(text); m != nil {
				line, before, after = number(m[1]), number(cmp.Or(m[2], "1")), number(cmp.Or(m[3], "1"))
			}
			continue
		}
		if (text[0] == '-' || text[0] == '+') && file != "" {
			found = append(found, Finding{Check: check, File: file, Line: max(line, 1), Message: message})
			file = ""
		}
		switch text[0] {
		case '-':
			before--
		case '+':
			after--
		case '\\': // No newline at end of file
		default:
			before, after, line = before-1, after-1, line+1
		}
	}
	return found
}

// number is 0 for what is too large to be one.
func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0
	}
	return n
}

// tidy compares go.mod and go.sum with what go mod tidy makes of them.
func (v *vetting) tidy(ctx context.Context) ([]Finding, error) {
	var all []Finding
	for _, m := range v.p.Plan.Modules {
		files := []string{path.Join(m.Dir, "go.mod"), path.Join(m.Dir, "go.sum")}
		found, err := v.regenerate(ctx, m, "tidy", []string{"go", "mod", "tidy"}, files, "`go mod tidy` changes this line")
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// vendor compares vendor/ with what go mod vendor makes of it.
func (v *vetting) vendor(ctx context.Context) ([]Finding, error) {
	var all []Finding
	for _, m := range v.p.Plan.Modules {
		if !m.Vendored {
			continue
		}
		found, err := v.regenerate(ctx, m, "vendor", []string{"go", "mod", "vendor"}, []string{path.Join(m.Dir, "vendor")}, "`go mod vendor` changes this file")
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// regenerate runs a command that rewrites files of the source and compares them with the source.
func (v *vetting) regenerate(ctx context.Context, m Module, check string, args, names []string, message string) ([]Finding, error) {
	out, err := os.MkdirTemp(v.p.dist.temp, check+"-")
	if err != nil {
		return nil, v.p.dist.error(err)
	}
	defer os.RemoveAll(out)
	var wanted []string
	for _, n := range names {
		wanted = append(wanted, engine.SourceDir+"/"+n)
	}
	r, err := v.p.run(ctx, engine.Command{
		Name: strings.Join(args, " "), Toolchain: v.p.Plan.BuildRelease, Dir: m.Dir, Args: args, Env: v.p.Plan.env(), Writes: true, Network: true,
		Outputs: wanted, OutputDir: out,
	})
	if err != nil {
		return nil, err
	}
	for _, other := range v.p.Plan.Modules {
		// The modules of a workspace need not name each other in go.mod, and only the workspace has them.
		if r.ExitCode != 0 && v.p.Plan.goWork != "off" && other.Path != m.Path && bytes.Contains(r.Stderr, []byte("module "+other.Path+":")) {
			return nil, notChecked(strings.Join(args, " ") + " does not look into go.work, and " + m.Path + " finds " + other.Path + " nowhere else")
		}
	}
	if r.ExitCode != 0 && unreachable(r.Stderr) {
		return nil, notChecked("the Go module proxy cannot be reached")
	}
	if r.ExitCode != 0 {
		return []Finding{{Check: check, File: modFileName(m), Message: tail.Lines(r.Stderr, 5)}}, nil
	}
	was, is := map[string][]byte{}, map[string][]byte{}
	for _, n := range names {
		if err := errors.Join(readAll(v.p.engine.Source().FS, n, was), readAll(os.DirFS(out), n, is)); err != nil {
			return nil, err
		}
	}
	var found []Finding
	for name, text := range was {
		if line := firstDifference(text, is[name]); line > 0 {
			found = append(found, Finding{Check: check, File: name, Line: line, Message: message})
		}
	}
	for name := range is {
		if _, ok := was[name]; !ok {
			found = append(found, Finding{Check: check, File: name, Message: "missing: " + message})
		}
	}
	return found, nil
}

// readAll reads a file, or all files below a directory; what does not exist has none.
func readAll(fsys fs.FS, root string, into map[string][]byte) error {
	err := fs.WalkDir(fsys, root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		into[name], err = fs.ReadFile(fsys, name)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// firstDifference is the number of the first line that differs, 0 if none does.
func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return 0
	}
	n := 1
	for i := 0; i < len(a) && i < len(b) && a[i] == b[i]; i++ {
		if a[i] == '\n' {
			n++
		}
	}
	return n
}

func (v *vetting) verify(ctx context.Context) ([]Finding, error) {
	var all []Finding
	for _, m := range v.p.Plan.Modules {
		if m.Vendored {
			continue
		}
		r, err := v.p.run(ctx, engine.Command{Name: "go mod verify", Toolchain: v.p.Plan.BuildRelease, Dir: m.Dir, Args: []string{"go", "mod", "verify"}, Env: v.p.Plan.env()})
		if err != nil {
			return nil, err
		}
		if r.ExitCode != 0 {
			all = append(all, Finding{Check: "verify", File: path.Join(m.Dir, "go.sum"), Message: tail.Lines(append(r.Stdout, r.Stderr...), 5)})
		}
	}
	return all, nil
}

// unreachable tells from what the go command said whether a network was missing.
func unreachable(stderr []byte) bool {
	for _, sign := range []string{"dial tcp", "no such host", "connection refused", "i/o timeout", "network is unreachable", "module lookup disabled",
		"TLS handshake", "connection reset", "unexpected EOF", "proxyconnect", "503 Service", "502 Bad Gateway", "401 Unauthorized", "403 Forbidden", "terminal prompts disabled", "x509:"} {
		if bytes.Contains(stderr, []byte(sign)) {
			return true
		}
	}
	return false
}
