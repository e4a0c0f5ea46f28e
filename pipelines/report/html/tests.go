package html

import (
	"bufio"
	"cmp"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// tests is what test.json and coverage.out say.
type tests struct {
	Releases []string
	Packages []testedPackage
	Coverage string
	Flaky    []flakyTest
	Slowest  []slowTest
	Skipped  []skippedTest
}

type testedPackage struct {
	Path     string
	Cells    []cell // one for each release
	Coverage string
}

type flakyTest struct {
	Name, Package, Release string
	Runs, Failed           int
}

type slowTest struct {
	Name, Package, Release string
	Seconds                string
	Parts                  []part
}

type skippedTest struct {
	Name, Package, Reason string
	Releases              string
}

const (
	maxSlowest  = 10
	maxSkipped  = 200
	noteworthy  = 0.01 // seconds
	maxPackages = 500
)

// newTests is nil for a run that tested nothing.
func newTests(r Run) *tests {
	result := load[pipelines.TestResult](r, "test.json")
	if result == nil || len(result.Legs) == 0 {
		return nil
	}
	t := &tests{}
	if result.Coverage >= 0 {
		t.Coverage = fmt.Sprintf("%.1f %%", result.Coverage)
	}
	type at struct{ pkg, release string }
	cells := map[at]cell{}
	type test struct{ pkg, name string }
	slow := map[test]slowTest{}
	seconds := map[test]float64{}
	skipped := map[test]*skippedTest{}
	packages := map[string]bool{}
	for _, l := range result.Legs {
		if !slices.Contains(t.Releases, l.Release) {
			t.Releases = append(t.Releases, l.Release)
		}
		for _, p := range l.Packages {
			packages[p.Path] = true
			n := map[string]int{}
			parents := map[string]bool{}
			for _, x := range p.Tests {
				n[x.Result]++
				for i := range x.Name {
					if x.Name[i] == '/' {
						parents[x.Name[:i]] = true
					}
				}
			}
			c := newCell(pipelines.Passed, "")
			switch p.Result {
			case "fail":
				c = newCell(pipelines.Failed, "")
			case "skip":
				c = newCell(pipelines.Skipped, "")
			}
			var counts []string
			for _, result := range []struct{ name, word string }{{"fail", "failed"}, {"pass", "passed"}, {"skip", "skipped"}} {
				if n[result.name] > 0 {
					counts = append(counts, fmt.Sprintf("%d %s", n[result.name], result.word))
				}
			}
			if len(counts) == 0 {
				counts = []string{"no tests"}
				if p.Result == "fail" {
					counts = []string{"no test ran"}
				}
			}
			c.Detail = strings.Join(counts, ", ")
			if p.Cached {
				c.Detail += ", known to go test"
			} else if p.Seconds >= noteworthy {
				c.Detail += fmt.Sprintf(", %.2fs", p.Seconds)
			}
			cells[at{p.Path, l.Release}] = c
			for _, x := range p.Tests {
				k := test{p.Path, x.Name}
				if x.Flaky() && p.SaysWhy(x) {
					t.Flaky = append(t.Flaky, flakyTest{x.Name, p.Path, l.Release, x.Runs, x.FailedRuns})
				}
				if x.Result == "skip" {
					if skipped[k] == nil {
						skipped[k] = &skippedTest{Name: x.Name, Package: p.Path, Reason: reason(x.Output)}
					} else {
						skipped[k].Releases += ", "
					}
					skipped[k].Releases += l.Release
				}
				// The time of a test holds that of its subtests, which say more.
				if !parents[x.Name] && x.Seconds >= noteworthy && x.Seconds > seconds[k] {
					seconds[k] = x.Seconds
					slow[k] = slowTest{Name: x.Name, Package: p.Path, Release: l.Release, Seconds: fmt.Sprintf("%.2fs", x.Seconds)}
				}
			}
		}
	}
	coverage := packageCoverage(r)
	for _, p := range slices.Sorted(maps.Keys(packages)) {
		row := testedPackage{Path: p, Coverage: coverage[p]}
		for _, release := range t.Releases {
			c, ok := cells[at{p, release}]
			if !ok {
				c = newCell("", "")
			}
			row.Cells = append(row.Cells, c)
		}
		t.Packages = append(t.Packages, row)
	}
	// What failed is never cut off.
	slices.SortStableFunc(t.Packages, func(a, b testedPackage) int { return cmp.Compare(b.failed(), a.failed()) })
	slices.SortFunc(t.Flaky, func(a, b flakyTest) int {
		return cmp.Or(cmp.Compare(a.Package, b.Package), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Release, b.Release))
	})
	names := slices.SortedFunc(maps.Keys(slow), func(a, b test) int {
		return cmp.Or(cmp.Compare(seconds[b], seconds[a]), cmp.Compare(a.pkg, b.pkg), cmp.Compare(a.name, b.name))
	})
	for _, k := range names[:min(len(names), maxSlowest)] {
		s := slow[k]
		s.Parts = parts(int64(1e6*seconds[names[0]]), int64(1e6*seconds[k]))
		t.Slowest = append(t.Slowest, s)
	}
	for _, k := range slices.SortedFunc(maps.Keys(skipped), func(a, b test) int {
		return cmp.Or(cmp.Compare(a.pkg, b.pkg), cmp.Compare(a.name, b.name))
	}) {
		t.Skipped = append(t.Skipped, *skipped[k])
	}
	return t
}

func (p testedPackage) failed() int {
	n := 0
	for _, c := range p.Cells {
		if c.Verdict == pipelines.Failed {
			n++
		}
	}
	return n
}

// Shown are the packages that have a place in the table.
func (t tests) Shown() []testedPackage { return t.Packages[:min(len(t.Packages), maxPackages)] }

// ShownFlaky are the flaky tests that have a place in the list.
func (t tests) ShownFlaky() []flakyTest { return t.Flaky[:min(len(t.Flaky), maxSkipped)] }

// ShownSkipped are the skipped tests that have a place in the list.
func (t tests) ShownSkipped() []skippedTest { return t.Skipped[:min(len(t.Skipped), maxSkipped)] }

// reason is what a skipped test said.
func reason(output string) string {
	s := report.Clean(output)
	if len(s) > maxLine {
		s = strings.ToValidUTF8(s[:maxLine], "") + "…"
	}
	return s
}

// packageCoverage reads the coverage of each package from the profile of the run.
func packageCoverage(r Run) map[string]string {
	if r.Files == nil {
		return nil
	}
	f, err := r.Files.Open("coverage.out")
	if err != nil {
		return nil
	}
	defer f.Close()
	return coverageByPackage(f)
}

func coverageByPackage(f fs.File) map[string]string {
	total, ran := map[string]int{}, map[string]int{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// example.com/app/file.go:12.34,15.2 3 1
		where, counts, ok := strings.Cut(lines.Text(), " ")
		i := strings.LastIndexByte(where, ':')
		number, count, _ := strings.Cut(counts, " ")
		statements, err := strconv.Atoi(number)
		if !ok || i < 0 || err != nil {
			continue
		}
		pkg := path.Dir(where[:i])
		total[pkg] += statements
		if count != "0" {
			ran[pkg] += statements
		}
	}
	all := map[string]string{}
	for pkg, n := range total {
		if n > 0 {
			all[pkg] = fmt.Sprintf("%.1f %%", 100*float64(ran[pkg])/float64(n))
		}
	}
	return all
}
