package html

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// comparison is what differs between two runs.
type comparison struct {
	Name          string
	Before, After *pipelines.Record
	Was, Is       cell // verdicts of the runs
	*pipelines.Explanation
	Stages []stageChange
	Sizes  []sizeChange
	// Tests are those with another result. Flaky tells that the source is the same, so that they are not to be
	// trusted.
	Tests      []testChange
	MoreTests  int
	SameSource bool
}

type stageChange struct {
	Name          string
	Was, Is       cell
	Before, After pipelines.Milliseconds
	Change        string
	Differ        bool
}

type sizeChange struct {
	What                  string
	Before, After, Change string
}

type testChange struct {
	Package, Name, Releases string
	Was, Is                 cell
}

const maxChanges = 500

func newComparison(before, after Run) *comparison {
	a, b := before.Record, after.Record
	c := &comparison{Before: a, After: b, Was: newCell(a.Verdict, ""), Is: newCell(b.Verdict, ""), Name: cmp.Or(b.Plan.Name, a.Plan.Name, "run")}
	c.Explanation = pipelines.Explain(a, b)
	c.SameSource = a.Plan.Source.Digest == b.Plan.Source.Digest
	c.stages()
	c.sizes()
	c.tests(before, after)
	return c
}

func (c *comparison) stages() {
	var names []string
	for _, r := range []*pipelines.Record{c.Before, c.After} {
		for _, s := range r.Stages {
			if !slices.Contains(names, s.Name) {
				names = append(names, s.Name)
			}
		}
	}
	for _, n := range names {
		a, b := find(c.Before, n), find(c.After, n)
		x := stageChange{Name: n, Was: newCell("", ""), Is: newCell("", "")}
		if a != nil {
			x.Was, x.Before = newCell(a.Verdict, ""), a.Elapsed
		}
		if b != nil {
			x.Is, x.After = newCell(b.Verdict, ""), b.Elapsed
		}
		if a != nil && b != nil {
			// The time of a stage that was not done again is no news.
			x.Change = "reused"
			if a.Reused == "" && b.Reused == "" {
				x.Change = slower(a.Elapsed, b.Elapsed)
			}
		}
		x.Differ = x.Was.Verdict != x.Is.Verdict
		c.Stages = append(c.Stages, x)
	}
}

// slower is how a time has changed, in words.
func slower(was, is pipelines.Milliseconds) string {
	switch d := time.Duration(is - was).Round(100 * time.Millisecond); {
	case d > 0:
		return "+" + report.Elapsed(d)
	case d < 0:
		return "−" + report.Elapsed(-d)
	}
	return "the same"
}

// sizes finds the programs, layers and images of both runs that have another size.
func (c *comparison) sizes() {
	of := func(r *pipelines.Record) (names []string, sizes map[string]int64) {
		sizes = map[string]int64{}
		add := func(name string, size int64) {
			if _, ok := sizes[name]; !ok {
				names = append(names, name)
			}
			sizes[name] += size
		}
		for _, b := range r.Binaries {
			add(b.Name+" "+b.Platform, b.Size)
		}
		if r.Image != nil {
			for _, m := range r.Image.Platforms {
				for _, l := range m.Layers {
					add("layer "+l.Kind+" "+m.Platform, l.Size)
				}
				add("image "+m.Platform, m.Size)
			}
		}
		return names, sizes
	}
	_, was := of(c.Before)
	names, is := of(c.After)
	for _, n := range names {
		if before, ok := was[n]; ok && before != is[n] {
			c.Sizes = append(c.Sizes, sizeChange{n, report.Bytes(before), report.Bytes(is[n]), change(before, is[n])})
		}
	}
}

// tests finds the tests that have another result, in releases that both runs have tested with.
func (c *comparison) tests(before, after Run) {
	type test struct{ pkg, name, release string }
	results := func(r Run) (map[test]string, map[string]bool) {
		all, releases := map[test]string{}, map[string]bool{}
		result := load[pipelines.TestResult](r, "test.json")
		if result == nil {
			return all, releases
		}
		for _, l := range result.Legs {
			releases[l.Release] = true
			for _, p := range l.Packages {
				if p.Result == "fail" { // also where no test of it has failed
					all[test{p.Path, "", l.Release}] = p.Result
				} else {
					all[test{p.Path, "", l.Release}] = "pass"
				}
				for _, t := range p.Tests {
					all[test{p.Path, t.Name, l.Release}] = t.Result
				}
			}
		}
		return all, releases
	}
	was, releases := results(before)
	is, both := results(after)
	type key struct{ pkg, name, was, is string }
	changed := map[key][]string{}
	verdict := map[string]pipelines.Verdict{"pass": pipelines.Passed, "fail": pipelines.Failed, "skip": pipelines.Skipped}
	for _, x := range []map[test]string{was, is} {
		for t := range x {
			k := key{t.pkg, t.name, was[t], is[t]}
			if k.was == k.is || !releases[t.release] || !both[t.release] || slices.Contains(changed[k], t.release) {
				continue
			}
			changed[k] = append(changed[k], t.release)
		}
	}
	keys := slices.SortedFunc(maps.Keys(changed), func(a, b key) int {
		rank := func(k key) int { // what fails now comes first
			return slices.Index([]string{"fail", "", "skip", "pass"}, k.is)
		}
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.pkg, b.pkg), cmp.Compare(a.name, b.name), cmp.Compare(a.was, b.was))
	})
	for _, k := range keys {
		// That of a package as a whole is told by its tests, if they tell it.
		if k.name == "" && slices.ContainsFunc(keys, func(t key) bool { return t.pkg == k.pkg && t.name != "" }) {
			continue
		}
		in := changed[k]
		slices.Sort(in)
		c.Tests = append(c.Tests, testChange{k.pkg, k.name, strings.Join(in, ", "), absent(verdict[k.was]), absent(verdict[k.is])})
	}
	if c.MoreTests = max(0, len(c.Tests)-maxChanges); c.MoreTests > 0 {
		c.Tests = c.Tests[:maxChanges]
	}
}

// absent is the cell of a test that may not be there.
func absent(v pipelines.Verdict) cell {
	c := newCell(v, "")
	if v == "" {
		c.Verdict = "not there"
	}
	return c
}

// Flaky tells that tests had another result although nothing of the source has changed.
func (c *comparison) Flaky() bool {
	return c.SameSource && slices.ContainsFunc(c.Tests, func(t testChange) bool {
		return t.Was.Verdict == pipelines.Passed && t.Is.Verdict == pipelines.Failed || t.Was.Verdict == pipelines.Failed && t.Is.Verdict == pipelines.Passed
	})
}
