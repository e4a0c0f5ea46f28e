// Package formats writes what a run came to for CI services and other programs.
//
// Everything here is made of the run record and of the results beside it, and nothing is made up: what has no file
// or line gets none, unless a format cannot do without. Names and messages come from the source and from the
// programs that were tested, so each format escapes them by its own rules.
package formats

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// The names of the files.
const (
	SARIFFile       = "slipway.sarif"
	CodeQualityFile = "gl-code-quality-report.json"
	CoberturaFile   = "cobertura.xml"
)

// Run is what the formats are made of. A result is nil if its stage did not run.
type Run struct {
	Record *pipelines.Record
	Vet    *pipelines.VetResult
	Test   *pipelines.TestResult
	Vuln   *pipelines.VulnResult
	// Coverage is a profile as go test writes it.
	Coverage []byte
	// Root is the slash-separated directory of the source in the repository, empty if it is the repository's root.
	// CI services look for files from there.
	Root string
}

// Write adds the files to what a run writes, and returns what they are made of. It comes before Finish.
func Write(p *pipelines.Pipeline, root string) (*Run, error) {
	r, err := Read(p.Record, p.Written(), root)
	if err != nil {
		return nil, err
	}
	files, err := r.Files()
	if err != nil {
		return nil, err
	}
	for name, text := range files {
		if err := p.WriteFile(name, text); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Read reads the results of the stages that have run from the directory that they were written to.
func Read(r *pipelines.Record, written fs.FS, root string) (*Run, error) {
	run := &Run{Record: r, Root: root}
	for name, result := range map[string]any{"vet.json": &run.Vet, "test.json": &run.Test, "vuln.json": &run.Vuln} {
		text, err := fs.ReadFile(written, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = json.Unmarshal(text, result)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	var err error
	if run.Coverage, err = fs.ReadFile(written, "coverage.out"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return run, nil
}

// Files are the reports that are files, by name.
func (r *Run) Files() (map[string][]byte, error) {
	files := map[string][]byte{}
	for name, format := range map[string]func() ([]byte, error){SARIFFile: r.SARIF, CodeQualityFile: r.CodeQuality, CoberturaFile: r.Cobertura} {
		text, err := format()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if text != nil {
			files[name] = text
		}
	}
	return files, nil
}

// issue is one thing that is wrong with the source, whichever stage found it.
type issue struct {
	// rule is the kind of issue. It stays the same from run to run: services group by it.
	rule    string
	message string
	// failed tells that it is a reason for a bad verdict.
	failed       bool
	security     bool
	file         string // from the root of the repository
	line, column int    // from 1; column is 0 if unknown
	fingerprint  string
}

func (r *Run) vetIssues() []issue {
	if r.Vet == nil {
		return nil
	}
	var all []issue
	seen := fingerprints{}
	for _, f := range r.Vet.Findings {
		i := issue{rule: f.Check, message: clean(f.Message), failed: true, file: r.place(f.File), line: max(f.Line, 1), column: f.Column}
		if f.Analyzer != "" {
			i.rule += "/" + f.Analyzer
		}
		i.fingerprint = seen.of(i.rule, i.file, place.ReplaceAllString(f.Message, ""))
		if p := r.Record.Plan; p != nil && len(f.Releases) > 0 && len(f.Releases) < len(p.Releases) {
			i.message += " (only Go " + strings.Join(f.Releases, ", ") + ")"
		}
		all = append(all, i)
	}
	return all
}

func (r *Run) vulnIssues() []issue {
	if r.Vuln == nil {
		return nil
	}
	var all []issue
	seen := fingerprints{}
	for _, v := range r.Vuln.Vulnerabilities {
		i := issue{rule: v.ID, failed: v.Affects(), security: true, file: r.place(path.Join(r.moduleDir(v.In), "go.mod")), line: 1}
		// Where the program's own code leads there; what is not called has its requirement only.
		if v.File != "" {
			i.file, i.line = r.place(path.Join(r.moduleDir(v.In), v.File)), max(v.Line, 1)
		}
		fixed := "No version is known that is without it."
		if v.Fixed != "" {
			fixed = "Fixed in " + v.Fixed + "."
		}
		called := "The program does not call what is vulnerable."
		if v.Affects() {
			called = strings.Join(v.Trace, "\n")
		}
		i.message = clean(v.Module + " " + v.Found + ": " + cmp.Or(v.Summary, v.ID) + "\n" + fixed + "\n" + called)
		i.fingerprint = seen.of(i.rule, v.In, v.Module)
		all = append(all, i)
	}
	return all
}

func (r *Run) moduleDir(modulePath string) string {
	if r.Record.Plan != nil {
		for _, m := range r.Record.Plan.Modules {
			if m.Path == modulePath {
				return m.Dir
			}
		}
	}
	return "."
}

// place is a file of the source from the root of the repository. What lies outside, such as a file of the
// toolchain, has a name that says something on one machine only. Go.mod stands for it.
func (r *Run) place(file string) string {
	if file == "." || !fs.ValidPath(file) {
		file = "go.mod"
		if r.Record.Plan != nil && len(r.Record.Plan.Modules) > 0 {
			file = path.Join(r.Record.Plan.Modules[0].Dir, file)
		}
	}
	return path.Join(r.Root, file)
}

// place matches line and column within a message, such as "other declaration at ./main.go:3:6".
var place = regexp.MustCompile(`:\d+(:\d+)?\b`)

// fingerprints counts what is equal.
type fingerprints map[string]int

// of identifies an issue by what does not change when lines are added above it. Equal ones are numbered in their
// order, as services show only one of several with the same fingerprint.
func (f fingerprints) of(parts ...string) string {
	key := strings.Join(parts, "\x00")
	f[key]++
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d", key, f[key]))
	return hex.EncodeToString(sum[:16])
}

// maxMessage bounds a message in bytes, and is far below what services cut or refuse.
const maxMessage = 8 << 10

// clean makes text of several lines fit for people, as report.Clean does with one line.
func clean(s string) string {
	var lines []string
	size := 0
	for line := range strings.Lines(strings.TrimRight(s, "\n")) {
		line = report.Clean(line)
		if size += len(line) + 1; size > maxMessage {
			lines = append(lines, "[the rest is cut]")
			break
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}
