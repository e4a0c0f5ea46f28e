package pipelines

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/tail"
	"github.com/slipway-ci/slipway/pipelines/internal/vulnjson"
)

// vulnTool looks for vulnerabilities. What it finds depends on its version no less than on the database.
const vulnTool = "golang.org/x/vuln/cmd/govulncheck@v1.8.0"

// vulnLimit bounds one look: a database that accepts a connection and never answers must not hold a run for
// ever, and the tool has no limit of its own.
const vulnLimit = 15 * time.Minute

// The values of the keys vuln and vuln-mode.
var (
	vulnValues = []string{"off", "check", "require"}
	vulnModes  = []string{"source", "binary"}
)

// VulnResult is what is known about vulnerabilities of the program and of what it is made from.
type VulnResult struct {
	// Verdict is NotRun when the question has no answer. That is never a good one.
	Verdict Verdict `json:"verdict"`
	// NotChecked says why there is no answer, or none for some platforms.
	NotChecked []string `json:"not_checked,omitempty"`
	// Tool is the program that looked, with its version.
	Tool string `json:"tool"`
	// Release is the Go release that builds. Its standard library is part of the program.
	Release string `json:"release"`
	// Mode is source, where what the packages call is followed, or binary, where what a program holds counts as
	// called.
	Mode string `json:"mode"`
	// Database is a URL, or the name of a directory; Modified is when it was last changed. Its answer to the
	// same question may be another one the day after.
	Database string `json:"database"`
	Modified string `json:"modified,omitempty"`
	// Vulnerabilities are sorted: those that affect the program come first.
	Vulnerabilities []Vulnerability `json:"vulnerabilities"`
}

// Vulnerability is an entry of the database that a module of the program has. It affects the program if its
// level is "called".
type Vulnerability struct {
	vulnjson.Vulnerability
	// In is the module of the source.
	In string `json:"in"`
	// Platforms are those with this level.
	Platforms []string `json:"platforms"`
}

// Affects tells whether the program can call what is vulnerable.
func (v Vulnerability) Affects() bool { return v.Level == vulnjson.Called }

func (v Vulnerability) standard() bool { return v.Module == "stdlib" || v.Module == "toolchain" }

// Vuln asks a vulnerability database about the modules and the Go release that the program is made of, and
// looks which of the entries the program can call, on every platform. Those are failures.
//
// The answer changes without any change of the source. So All asks only when the configuration says so.
func (p *Pipeline) Vuln(ctx context.Context) (*VulnResult, error) {
	if p.Config.VulnMode == "binary" {
		if build, err := p.Build(ctx); err != nil || build.Verdict != Passed {
			return &VulnResult{Verdict: Skipped}, err
		}
	}
	s := p.stage("vuln")
	result := &VulnResult{
		Verdict: Passed, Tool: vulnTool, Release: p.Plan.BuildRelease, Mode: p.Config.VulnMode, Database: cmp.Or(shownDatabase(p.Config.VulnDB), "public"), Vulnerabilities: []Vulnerability{},
	}
	type leg struct {
		found      []Vulnerability
		modified   time.Time
		notChecked string
	}
	legs := make([]leg, len(p.Plan.Platforms))
	err := p.parallel(ctx, len(legs), func(ctx context.Context, i int) error {
		platform := p.Plan.Platforms[i]
		return s.task(ctx, "vuln "+platform.String(), func(ctx context.Context, _ func(string)) (Verdict, string, error) {
			affecting := 0
			for _, x := range p.vulnLooks(platform) {
				report, err := p.lookForVulnerabilities(ctx, platform, x)
				var broken errNoPackages
				if errors.As(err, &broken) {
					s.fail(Failure{What: "packages of module " + x.module.Path, Where: platform.String(), Message: string(broken), Next: "They must compile before anything can be said about them."})
					return Failed, "the packages cannot be loaded", nil
				}
				if n, ok := errors.AsType[notChecked](err); ok {
					legs[i].notChecked = string(n)
					return NotRun, "not checked: " + string(n), nil
				}
				if err != nil {
					return "", "", err
				}
				if legs[i].modified.IsZero() || report.Modified.Before(legs[i].modified) {
					legs[i].modified = report.Modified
				}
				for _, v := range report.Vulnerabilities {
					legs[i].found = append(legs[i].found, Vulnerability{Vulnerability: v, In: x.module.Path, Platforms: []string{platform.String()}})
					if v.Level == vulnjson.Called {
						affecting++
					}
				}
			}
			if affecting > 0 {
				return Failed, plural(affecting, "vulnerability affects the program", "vulnerabilities affect the program"), nil
			}
			return Passed, "", nil
		})
	})
	if err != nil {
		return nil, err
	}
	var modified time.Time
	for _, l := range legs {
		result.add(l.found)
		if l.notChecked != "" {
			result.NotChecked = append(result.NotChecked, l.notChecked)
		} else if !l.modified.IsZero() && (modified.IsZero() || l.modified.Before(modified)) {
			modified = l.modified
		}
	}
	if !modified.IsZero() {
		result.Modified = modified.UTC().Format(time.RFC3339)
	}
	slices.Sort(result.NotChecked)
	result.NotChecked = slices.Compact(result.NotChecked)
	p.judgeVulnerabilities(s, result)
	return result, p.writeJSON("vuln.json", result)
}

// add merges what was found on one platform. Another platform may come nearer to the same vulnerability.
func (r *VulnResult) add(found []Vulnerability) {
	for _, v := range found {
		i := slices.IndexFunc(r.Vulnerabilities, func(o Vulnerability) bool {
			return o.ID == v.ID && o.Module == v.Module && o.Found == v.Found && o.In == v.In
		})
		switch {
		case i < 0:
			r.Vulnerabilities = append(r.Vulnerabilities, v)
		case v.Level.Nearer(r.Vulnerabilities[i].Level):
			r.Vulnerabilities[i] = v
		case v.Level == r.Vulnerabilities[i].Level:
			o := &r.Vulnerabilities[i]
			o.Platforms = append(o.Platforms, v.Platforms...)
			o.Symbols = append(o.Symbols, v.Symbols...)
			slices.Sort(o.Symbols)
			o.Symbols = slices.Compact(o.Symbols)
		}
	}
	slices.SortStableFunc(r.Vulnerabilities, func(a, b Vulnerability) int {
		if a.Level != b.Level {
			if a.Level.Nearer(b.Level) {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Module, b.Module), cmp.Compare(a.In, b.In), cmp.Compare(a.Found, b.Found))
	})
}

// judgeVulnerabilities ends the stage.
func (p *Pipeline) judgeVulnerabilities(s *stage, r *VulnResult) {
	affecting, others := 0, []string{}
	for _, v := range r.Vulnerabilities {
		if v.Affects() {
			affecting++
			s.fail(p.vulnFailure(v))
		} else {
			others = append(others, v.ID)
		}
	}
	detail := "no known vulnerability affects the program"
	if affecting > 0 {
		detail = plural(affecting, "vulnerability affects the program", "vulnerabilities affect the program")
	}
	if others = slices.Compact(others); len(others) > 0 {
		detail += "; not called: " + shorten(others, 3)
	}
	reasons := strings.Join(r.NotChecked, "; ")
	if reasons != "" {
		// It also stands where somebody looks who reads no stages.
		p.note("vuln", "vulnerabilities were not checked: %s", reasons)
	}
	if reasons != "" && p.Config.Vuln == "require" {
		s.fail(Failure{What: "vulnerabilities", Message: "not checked: " + reasons, Next: "`vuln: check` lets a run pass that could not look."})
	}
	switch {
	case len(s.record.Failures) > 0 && reasons != "":
		detail += "; not everything was checked: " + reasons
		if affecting == 0 {
			detail = "not checked: " + reasons
		}
		r.Verdict = Failed
	case len(s.record.Failures) > 0:
		r.Verdict = Failed
		if affecting == 0 {
			detail = "the packages cannot be loaded"
		}
	case reasons != "":
		r.Verdict, detail = NotRun, "not checked: "+reasons
	}
	s.end(r.Verdict, detail)
}

func (p *Pipeline) vulnFailure(v Vulnerability) Failure {
	f := Failure{What: v.ID + " in " + v.Module + " " + v.Found}
	version := strings.TrimPrefix(v.Fixed, "v")
	switch {
	case v.standard():
		f.What = v.ID + " in Go " + strings.TrimPrefix(v.Found, "v")
		f.Next = "Build with Go " + version + " or newer (--go-versions; `slipway lock --update` takes the newest patch releases)."
	default:
		f.Next = "`go get " + v.Module + "@" + v.Fixed + "`, and `go mod vendor` where there is a vendor directory."
	}
	fixed := "Fixed in " + v.Fixed + "."
	if v.standard() {
		fixed = "Fixed in Go " + version + "."
	}
	if v.Fixed == "" {
		fixed, f.Next = "No version is known that is without it.", "Do without what is vulnerable, or replace the module."
	}
	if len(v.Platforms) < len(p.Plan.Platforms) {
		f.Where = "only " + strings.Join(v.Platforms, ", ")
	}
	lines := []string{strings.TrimSpace(v.Summary + " " + bracketed(v.Aliases)), fixed}
	f.Message = strings.Join(append(lines, v.Trace...), "\n")
	for _, m := range p.Plan.Modules {
		if file := path.Join(m.Dir, v.File); m.Path == v.In && v.File != "" && fs.ValidPath(file) {
			if _, err := fs.Stat(p.engine.Source().FS, file); err == nil {
				f.File, f.Line = file, v.Line
			}
		}
	}
	return f
}

func bracketed(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return "(" + strings.Join(list, ", ") + ")"
}

// errNoPackages is what the tool says about source that does not compile.
type errNoPackages string

func (e errNoPackages) Error() string { return string(e) }

// vulnLook is one run of the tool: over packages of a module, or over one program.
type vulnLook struct {
	module   Module
	patterns []string
	program  *Binary // the other one is nil
}

// vulnLooks are what there is to look at for a platform.
func (p *Pipeline) vulnLooks(platform Platform) []vulnLook {
	var all []vulnLook
	if p.Config.VulnMode == "binary" {
		for i := range p.build.Binaries {
			if b := &p.build.Binaries[i]; b.platform == platform {
				all = append(all, vulnLook{module: p.Plan.module(p.Plan.command(b.Package).Module), program: b})
			}
		}
		return all
	}
	for _, m := range p.Plan.Modules {
		if patterns := p.Plan.patterns(m, p.Config.Packages); len(patterns) > 0 {
			all = append(all, vulnLook{module: m, patterns: patterns})
		}
	}
	return all
}

// lookForVulnerabilities runs the tool over packages as they are built for one platform, or over a program. The
// error is a notChecked for whatever kept it from an answer that is not the fault of the source.
func (p *Pipeline) lookForVulnerabilities(ctx context.Context, platform Platform, x vulnLook) (*vulnjson.Report, error) {
	c := engine.Command{
		Name: "govulncheck (" + platform.String() + ")", Toolchain: p.Plan.BuildRelease, Dir: x.module.Dir, Tool: vulnTool,
		Args: []string{"govulncheck", "-format=json", "-scan=symbol"}, Env: append(p.Plan.env(), platform.env()...), CGO: p.Config.CGO,
	}
	if x.program != nil {
		input, err := os.MkdirTemp(p.dist.temp, "vuln-")
		if err != nil {
			return nil, p.dist.error(err)
		}
		defer os.RemoveAll(input)
		if err := os.Link(p.path(x.program.Full), filepath.Join(input, "program")); err != nil {
			return nil, p.dist.error(err)
		}
		c.Input, c.Dir = input, engine.OutDir
		c.Args = append(c.Args, "-mode=binary")
	}
	switch db := p.Config.VulnDB; {
	case db == "":
		c.Network = true
	case isURL(db):
		c.Network = true
		c.Args = append(c.Args, "-db="+db)
	default:
		err := vulnjson.Check(func(name string) ([]byte, error) {
			b, err := os.ReadFile(filepath.Join(db, filepath.FromSlash(name)))
			if x, ok := errors.AsType[*fs.PathError](err); ok {
				err = x.Err // its path is that of this machine
			}
			return b, err
		})
		if err != nil {
			return nil, notChecked("the directory " + filepath.Base(db) + " holds no vulnerability database that can be read: " + oneLine(err.Error()))
		}
		url := engine.InputURL
		if c.Input == "" {
			c.Input = db
		} else {
			// A command reads one directory.
			if err := os.CopyFS(filepath.Join(c.Input, "db"), os.DirFS(db)); err != nil {
				return nil, p.dist.error(err)
			}
			url += "/db"
		}
		c.Args = append(c.Args, "-db="+url)
	}
	if x.program != nil {
		c.Args = append(c.Args, engine.InputDir+"/program")
	} else {
		c.Args = append(append(c.Args, tagFlags(p.Config.Tags)...), x.patterns...)
	}

	limited, cancel := context.WithTimeout(ctx, vulnLimit)
	defer cancel()
	r, err := p.run(limited, c)
	if x, ok := errors.AsType[*engine.ToolError](err); ok {
		return nil, notChecked(oneLine(x.Error()))
	}
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return nil, notChecked("there was no answer after " + vulnLimit.String())
	}
	if err != nil {
		return nil, err
	}
	if r.ExitCode != 0 {
		return nil, p.noAnswer(r)
	}
	report, err := vulnjson.Parse(bytes.NewReader(r.Stdout))
	if err != nil {
		return nil, notChecked(oneLine(err.Error()))
	}
	if report.Modified.IsZero() {
		// The tool asks for it and goes on without.
		return nil, notChecked(p.database() + " does not tell when it was last changed")
	}
	return report, nil
}

// noAnswer says why the tool has none.
func (p *Pipeline) noAnswer(r *engine.Result) error {
	text := string(r.Stderr)
	switch {
	case strings.Contains(text, "This application uses version go"):
		return notChecked("govulncheck was built with an older Go than " + p.Plan.BuildRelease)
	case strings.Contains(text, "There are errors with the provided package patterns"):
		_, text, _ = strings.Cut(text, "There are errors with the provided package patterns:")
		if text, _, _ = strings.Cut(text, "For details on package patterns"); text == "" {
			text = "the packages cannot be loaded"
		}
		return errNoPackages(excerpt([]byte(text), 10))
	case strings.Contains(text, "unrecognized vulndb format"):
		// The tool says so too when nobody answers.
		return notChecked(p.database() + " cannot be reached, or is no vulnerability database")
	}
	said := strings.TrimPrefix(cmp.Or(tail.Lines(r.Stderr, 3), "govulncheck ended without a word"), "govulncheck: ")
	return notChecked(p.database() + " gave no answer: " + oneLine(resolver.ReplaceAllString(said, "$1:")))
}

// resolver matches what tells of the network that a machine is in.
var resolver = regexp.MustCompile(`(lookup \S+) on \S+:`)

// database names the database in sentences.
func (p *Pipeline) database() string {
	switch db := p.Config.VulnDB; {
	case db == "":
		return "the public vulnerability database"
	case isURL(db):
		return "the vulnerability database " + db
	}
	return "the vulnerability database in the directory " + shownDatabase(p.Config.VulnDB)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func isURL(s string) bool { return strings.Contains(s, "://") }

// shownDatabase is a database as records name it, without the directories of this machine.
func shownDatabase(db string) string {
	if db == "" || isURL(db) {
		return db
	}
	return filepath.Base(db)
}

// checkVuln finds what is wrong with the configuration of the vulnerability check.
func (c Config) checkVuln() error {
	if !slices.Contains(vulnValues, c.Vuln) {
		return fault.Usagef(fault.Nearest(c.Vuln, vulnValues), "vuln: %q is not off, check or require", c.Vuln)
	}
	if !slices.Contains(vulnModes, c.VulnMode) {
		return fault.Usagef(fault.Nearest(c.VulnMode, vulnModes), "vuln-mode: %q is not source or binary", c.VulnMode)
	}
	if !isURL(c.VulnDB) {
		return nil
	}
	const next = "Write it as https://HOST/PATH, or as a directory."
	u, err := url.Parse(c.VulnDB)
	switch {
	case err != nil:
		return fault.Usagef(next, "vuln-db: this is not a URL")
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return fault.Usagef(next, "vuln-db: %q is not the URL of a web server", u.Redacted())
	case u.User != nil:
		return fault.Usagef("Let a server without passwords, or a directory, hold the copy.", "vuln-db: a password in a URL would be seen by every process")
	}
	return nil
}
