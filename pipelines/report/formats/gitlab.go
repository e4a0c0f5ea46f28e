package formats

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/slipway-ci/slipway/pipelines"
)

// A codeQualityIssue is what GitLab reads of Code Climate's format
// (https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format).
type codeQualityIssue struct {
	Description string `json:"description"`
	CheckName   string `json:"check_name"`
	Fingerprint string `json:"fingerprint"`
	Severity    string `json:"severity"`
	Location    struct {
		Path  string `json:"path"`
		Lines struct {
			Begin int `json:"begin"`
		} `json:"lines"`
	} `json:"location"`
}

// CodeQuality lists what vet and vuln found; it is nil if neither ran. An empty list is not nothing: it tells GitLab
// that what was there before is mended.
func (r *Run) CodeQuality() ([]byte, error) {
	if r.Vet == nil && r.Vuln == nil {
		return nil, nil
	}
	all := []codeQualityIssue{}
	for _, i := range slices.Concat(r.vetIssues(), r.vulnIssues()) {
		q := codeQualityIssue{Description: i.message, CheckName: i.rule, Fingerprint: i.fingerprint, Severity: i.severity()}
		q.Location.Path, q.Location.Lines.Begin = strings.ToValidUTF8(i.file, "\uFFFD"), i.line
		all = append(all, q)
	}
	return indented(all)
}

// check is the check of the vet stage that found the issue, and the analyzer if there is one.
func (i issue) check() (check, analyzer string) {
	check, analyzer, _ = strings.Cut(i.rule, "/")
	return check, analyzer
}

func (i issue) severity() string {
	check, _ := i.check()
	switch {
	case !i.failed:
		return "info"
	case i.security || check == "verify":
		return "critical"
	case check == "vet":
		return "major"
	}
	return "minor"
}

// The elements of Cobertura's XML, whose definition is at
// https://github.com/cobertura/cobertura/blob/master/cobertura/src/site/htdocs/xml/coverage-04.dtd.
type (
	coverage struct {
		XMLName         xml.Name `xml:"coverage"`
		LineRate        string   `xml:"line-rate,attr"`
		BranchRate      string   `xml:"branch-rate,attr"`
		LinesCovered    int      `xml:"lines-covered,attr"`
		LinesValid      int      `xml:"lines-valid,attr"`
		BranchesCovered int      `xml:"branches-covered,attr"`
		BranchesValid   int      `xml:"branches-valid,attr"`
		Complexity      string   `xml:"complexity,attr"`
		Version         string   `xml:"version,attr"`
		Timestamp       int64    `xml:"timestamp,attr"` // milliseconds
		// Sources: GitLab takes file names for those of the repository where this is no directory that it knows.
		Sources  []string           `xml:"sources>source"`
		Packages []*coveragePackage `xml:"packages>package"`
	}
	coveragePackage struct {
		Name       string           `xml:"name,attr"`
		LineRate   string           `xml:"line-rate,attr"`
		BranchRate string           `xml:"branch-rate,attr"`
		Complexity string           `xml:"complexity,attr"`
		Classes    []*coverageClass `xml:"classes>class"`
	}
	coverageClass struct {
		Name       string         `xml:"name,attr"`
		Filename   string         `xml:"filename,attr"`
		LineRate   string         `xml:"line-rate,attr"`
		BranchRate string         `xml:"branch-rate,attr"`
		Complexity string         `xml:"complexity,attr"`
		Methods    struct{}       `xml:"methods"`
		Lines      []coverageLine `xml:"lines>line"`
	}
	coverageLine struct {
		Number int `xml:"number,attr"`
		Hits   int `xml:"hits,attr"`
	}
)

// block is one line of a coverage profile.
type block struct {
	file                          string // import path and base name
	first, last, statements, hits int
}

// parseBlock reads a line as described in golang.org/x/tools/cover: file:line.column,line.column statements count.
func parseBlock(line string) (b block, ok bool) {
	i := strings.LastIndexByte(line, ':')
	if i < 0 {
		return b, false
	}
	b.file = line[:i]
	var column int
	n, _ := fmt.Sscanf(line[i+1:], "%d.%d,%d.%d %d %d", &b.first, &column, &b.last, &column, &b.statements, &b.hits)
	return b, n == 6 && b.first > 0 && b.statements > 0 && b.last-b.first < maxBlock
}

// maxBlock is more lines than a block of statements has. A profile comes from a directory that tests can write to.
const maxBlock = 100_000

// Cobertura is the coverage by lines; nil if there is none. A line that belongs to several blocks of statements
// counts as often as the one that ran most: the line of an if statement ran whatever came of it.
func (r *Run) Cobertura() ([]byte, error) {
	if r.Record.Plan == nil {
		return nil, nil
	}
	hits := map[string]map[int]int{} // file, line
	for line := range strings.Lines(string(r.Coverage)) {
		b, ok := parseBlock(strings.TrimSpace(line))
		if !ok {
			continue
		}
		if hits[b.file] == nil {
			hits[b.file] = map[int]int{}
		}
		for n := b.first; n <= b.last; n++ {
			hits[b.file][n] = max(hits[b.file][n], b.hits)
		}
	}
	c := coverage{
		BranchRate: "0", Complexity: "0", Version: "slipway " + r.Record.Slipway.Version, Timestamp: r.Record.Plan.Source.Time * 1000, Sources: []string{"."},
	}
	var total rate
	for _, name := range slices.Sorted(maps.Keys(hits)) {
		file, ok := r.sourceFile(name)
		if !ok {
			continue
		}
		class := &coverageClass{Name: path.Base(name), Filename: file, BranchRate: "0", Complexity: "0"}
		var own rate
		for _, n := range slices.Sorted(maps.Keys(hits[name])) {
			class.Lines = append(class.Lines, coverageLine{n, hits[name][n]})
			own.add(hits[name][n])
			total.add(hits[name][n])
		}
		class.LineRate = own.String()
		at := slices.IndexFunc(c.Packages, func(p *coveragePackage) bool { return p.Name == path.Dir(name) })
		if at < 0 {
			at = len(c.Packages)
			c.Packages = append(c.Packages, &coveragePackage{Name: path.Dir(name), BranchRate: "0", Complexity: "0"})
		}
		p := c.Packages[at]
		p.Classes = append(p.Classes, class)
	}
	if total.lines == 0 {
		return nil, nil
	}
	for _, p := range c.Packages {
		var own rate
		for _, class := range p.Classes {
			for _, line := range class.Lines {
				own.add(line.Hits)
			}
		}
		p.LineRate = own.String()
	}
	c.LineRate, c.LinesCovered, c.LinesValid = total.String(), total.covered, total.lines
	text, err := xml.MarshalIndent(c, "", " ")
	return slices.Concat([]byte(xml.Header), text, []byte("\n")), err
}

// rate counts lines.
type rate struct{ covered, lines int }

func (r *rate) add(hits int) {
	r.lines++
	if hits > 0 {
		r.covered++
	}
}

func (r rate) String() string {
	return fmt.Sprintf("%.4f", float64(r.covered)/float64(max(r.lines, 1)))
}

// sourceFile is the file that a profile names by import path, from the root of the repository. The longest path of
// a module that fits counts, as modules may lie within each other.
func (r *Run) sourceFile(name string) (string, bool) {
	modules := slices.Clone(r.Record.Plan.Modules)
	slices.SortFunc(modules, func(a, b pipelines.Module) int { return cmp.Compare(len(b.Path), len(a.Path)) })
	for _, m := range modules {
		if rest, ok := strings.CutPrefix(name, m.Path+"/"); ok {
			return path.Join(r.Root, m.Dir, rest), true
		}
	}
	return "", false
}
