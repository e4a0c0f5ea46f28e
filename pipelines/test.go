package pipelines

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/tail"
	"github.com/slipway-ci/slipway/pipelines/internal/testjson"
)

// TestResult is what the tests said under every release.
type TestResult struct {
	Verdict Verdict   `json:"verdict"`
	Legs    []TestLeg `json:"legs"`
	// Coverage is the part of all statements that the tests of the building release ran, in percent; -1
	// when there are no statements.
	Coverage float64 `json:"coverage"`
}

// TestLeg is one run of a module's tests under one release.
type TestLeg struct {
	Release string `json:"release"`
	Module  string `json:"module"`
	// Ran is what the toolchain itself says that it is, asked in the environment of the tests.
	Ran      string             `json:"ran"`
	Verdict  Verdict            `json:"verdict"`
	Passed   int                `json:"passed"`
	Failed   int                `json:"failed"`
	Skipped  int                `json:"skipped"`
	Packages []testjson.Package `json:"packages"`
	// Message says why the leg failed when no package did.
	Message string `json:"message,omitempty"`
}

// broken counts what failed without a test that did: packages that cannot be built or whose TestMain
// fails, and go test itself.
func (l TestLeg) broken() int {
	n := 0
	for _, p := range l.Packages {
		if p.Result == testjson.Fail && !slices.ContainsFunc(p.Tests, func(t testjson.Test) bool { return t.Result == testjson.Fail }) {
			n++
		}
	}
	if l.Message != "" {
		n++
	}
	return n
}

// flaky counts the failed tests that also passed.
func (l TestLeg) flaky() int {
	n := 0
	for _, p := range l.Packages {
		for _, t := range p.Tests {
			if t.Flaky() && p.SaysWhy(t) {
				n++
			}
		}
	}
	return n
}

// summarize is the outcome of one release in a few words.
func summarize(legs []TestLeg) string {
	passed, failed, skipped, broken := 0, 0, 0, 0
	for _, l := range legs {
		passed, failed, skipped, broken = passed+l.Passed, failed+l.Failed, skipped+l.Skipped, broken+l.broken()
	}
	s := testCounts(passed, failed, skipped)
	if broken > 0 {
		s = plural(broken, "package", "packages") + " failed, " + s
	}
	return s
}

func testCounts(passed, failed, skipped int) string {
	s := fmt.Sprintf("%d passed", passed)
	if failed > 0 {
		s = fmt.Sprintf("%d failed, %s", failed, s)
	}
	if skipped > 0 {
		s += fmt.Sprintf(", %d skipped", skipped)
	}
	return s
}

// Test runs the tests of every module under every release. It writes junit.xml, test.json and
// coverage.out, whatever the verdict.
func (p *Pipeline) Test(ctx context.Context) (*TestResult, error) {
	return stored(p, "test", func() (*TestResult, error) { return p.runTest(ctx) })
}

func (r *TestResult) final() bool                              { return r.Verdict == Passed }
func (r *TestResult) more() any                                { return nil }
func (r *TestResult) restore(*Pipeline, json.RawMessage) error { return nil }

func (p *Pipeline) runTest(ctx context.Context) (*TestResult, error) {
	s := p.stage("test")
	s.record.Seed = seed(p.Config.Shuffle)
	legs := make([][]TestLeg, len(p.Plan.Releases))
	profiles := make([][]byte, len(p.Plan.Modules))
	err := p.parallel(ctx, len(legs), func(ctx context.Context, i int) error {
		release := p.Plan.Releases[i].Exact
		return s.task(ctx, "test "+release, func(ctx context.Context, progress func(string)) (Verdict, string, error) {
			verdict := Passed
			for j, m := range p.Plan.Modules {
				patterns := p.Plan.patterns(m, p.Config.Packages)
				if len(patterns) == 0 {
					continue
				}
				leg, profile, err := p.testLeg(ctx, release, m, patterns, s.record.Seed, progress)
				if err != nil {
					return "", "", err
				}
				if release == p.Plan.BuildRelease {
					profiles[j] = profile
				}
				legs[i] = append(legs[i], *leg)
				if leg.Verdict != Passed {
					verdict = Failed
				}
			}
			return verdict, summarize(legs[i]), nil
		})
	})
	if err != nil {
		return nil, err
	}
	result := &TestResult{Verdict: Passed, Legs: slices.Concat(legs...)}
	for _, l := range result.Legs {
		if l.Verdict != Passed {
			result.Verdict = Failed
		}
	}
	profile, coverage := mergeProfiles(profiles)
	result.Coverage = coverage
	failures := result.failures(p.Plan, p.Config.Count)
	for i := range failures {
		p.place(&failures[i])
		if p.Config.Shuffle == "on" {
			failures[i].Repeat["shuffle"] = s.record.Seed
		}
	}
	s.fail(failures...)
	s.end(result.Verdict, result.summary())
	return result, p.writeTestReports(result, profile)
}

func (r *TestResult) summary() string {
	tests, failed, flaky, broken := 0, 0, 0, 0
	for _, l := range r.Legs {
		tests += l.Passed + l.Failed + l.Skipped
		failed += l.Failed
		flaky += l.flaky()
		broken += l.broken()
	}
	s := plural(tests, "test", "tests")
	if failed > 0 {
		s = fmt.Sprintf("%d of %s failed", failed, s)
	}
	if flaky > 0 {
		s += fmt.Sprintf(" (%d flaky)", flaky)
	}
	if broken > 0 {
		s += ", " + plural(broken, "package", "packages") + " failed"
	}
	if r.Coverage >= 0 {
		s += fmt.Sprintf(", %.1f%% covered", r.Coverage)
	}
	return s
}

// seed is that of the order of tests, empty where they are not shuffled. One that go test chose would be another for
// each package and release, and no flag could repeat them all.
func seed(shuffle string) string {
	switch shuffle {
	case "off":
		return ""
	case "on":
		return strconv.FormatInt(time.Now().UnixNano(), 10)
	}
	return shuffle
}

func (p *Pipeline) testLeg(ctx context.Context, release string, m Module, patterns []string, seed string, progress func(string)) (*TestLeg, []byte, error) {
	command := engine.Command{
		Name: "go test (" + release + ")", Toolchain: release, Dir: m.Dir, Env: p.Plan.env(), Writes: true, CGO: p.Config.CGO || p.Config.Race,
	}
	ask := command
	ask.Name, ask.Args = "go version ("+release+")", []string{"go", "version"}
	r, err := p.run(ctx, ask)
	if err != nil {
		return nil, nil, err
	}
	leg := &TestLeg{Release: release, Module: m.Path, Ran: strings.TrimSpace(string(r.Stdout)), Verdict: Passed}
	if !strings.HasPrefix(leg.Ran, "go version go"+release+" ") {
		return nil, nil, fault.Environmentf(nil, "", "asked for Go %s, but the engine runs %q", release, leg.Ran)
	}

	out, err := os.MkdirTemp(p.dist.temp, "test-")
	if err != nil {
		return nil, nil, p.dist.error(err)
	}
	command.OutputDir, command.Outputs = out, []string{"coverage.out"}
	// Built as the release build is, so that it finds its packages compiled. Vet is a stage of its own.
	command.Args = []string{"go", "test", "-json", "-trimpath", "-vet=off", "-timeout=" + p.Config.Timeout.String(), "-coverprofile=" + engine.OutDir + "/coverage.out"}
	if p.Config.Race {
		command.Args = append(command.Args, "-race")
	}
	if seed != "" {
		command.Args = append(command.Args, "-shuffle="+seed)
	}
	count := p.Config.Count
	if p.Config.Fresh { // go test has a cache of its own
		count = max(count, 1)
	}
	if count > 0 {
		command.Args = append(command.Args, "-count="+strconv.Itoa(count))
	}
	command.Args = append(append(command.Args, tagFlags(p.Config.Tags)...), patterns...)

	reader, writer := io.Pipe()
	command.Stdout = writer
	var tests testjson.Reader
	parsed := make(chan testjson.Report, 1)
	go func() {
		report := tests.Read(reader)
		_, _ = io.Copy(io.Discard, reader)
		parsed <- report
	}()
	stop := every(time.Second/10, func() { progress(running(tests.Progress(), m.Path)) })
	r, err = p.run(ctx, command)
	stop()
	_ = writer.Close()
	report := <-parsed
	if err != nil {
		return nil, nil, err
	}
	report.AddBuildErrors(r.Stderr)
	leg.Packages = report.Packages
	for i := range leg.Packages {
		// Where the copy of the source lies is nobody's business.
		pkg := &leg.Packages[i]
		pkg.Output = p.explain(ctx, m, []string{pkg.Path}, strings.ReplaceAll(pkg.Output, r.Dir, "."))
		for j := range pkg.Tests {
			pkg.Tests[j].Output = strings.ReplaceAll(pkg.Tests[j].Output, r.Dir, ".")
		}
	}
	for _, pkg := range leg.Packages {
		for _, t := range pkg.Tests {
			switch t.Result {
			case testjson.Pass:
				leg.Passed++
			case testjson.Fail:
				leg.Failed++
			case testjson.Skip:
				leg.Skipped++
			}
		}
		if pkg.Result == testjson.Fail {
			leg.Verdict = Failed
		}
	}
	if r.ExitCode != 0 && leg.Verdict == Passed {
		text := tail.Lines(append(report.Stray, r.Stderr...), 20)
		leg.Verdict, leg.Message = Failed, p.explain(ctx, m, patterns, cmp.Or(text, fmt.Sprintf("go test ended with exit code %d", r.ExitCode)))
		if p.Config.Race && strings.Contains(leg.Message, "C compiler") {
			return nil, nil, fault.Environmentf(fmt.Errorf("%s", leg.Message), "The race detector needs a C compiler: install gcc, or test without --race.", "go test -race under Go %s", release)
		}
	}
	profile, err := os.ReadFile(filepath.Join(out, "coverage.out"))
	if err != nil && !os.IsNotExist(err) {
		return nil, nil, p.dist.error(err)
	}
	return leg, profile, nil
}

// every calls f again and again until the function that it returns has been called, and not after.
func every(interval time.Duration, f func()) (stop func()) {
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				f()
			}
		}
	})
	return func() {
		close(done)
		wait.Wait()
	}
}

// running says what the tests of a module do now: "12 passed; store: TestPut, TestGet/empty".
func running(now testjson.Progress, module string) string {
	s := testCounts(now.Passed, now.Failed, now.Skipped)
	if now.Package == "" {
		return strings.TrimPrefix(s+"; compiling", "0 passed; ")
	}
	pkg := strings.TrimPrefix(strings.TrimPrefix(now.Package, module), "/")
	tests := strings.Join(now.Running, ", ")
	return s + "; " + strings.TrimSuffix(strings.TrimPrefix(pkg+": "+tests, ": "), ": ")
}

// failures lists what failed, with the releases in which it did. What fails under some releases only comes
// first, and what also passes, under any of them, last: which releases those are is chance.
func (r *TestResult) failures(plan *Plan, count int) []Failure {
	type key struct{ module, pkg, test string }
	releases := map[key][]string{}
	output := map[key]string{}
	flaky := map[key][]string{}
	add := func(k key, l TestLeg, text string) {
		releases[k] = append(releases[k], l.Release)
		if output[k] == "" {
			output[k] = text
		}
	}
	for _, l := range r.Legs {
		if l.Message != "" {
			add(key{module: l.Module}, l, l.Message)
		}
		for _, pkg := range l.Packages {
			if pkg.Result != testjson.Fail {
				continue
			}
			named := false
			for _, t := range pkg.Tests {
				if t.Result == testjson.Fail && pkg.SaysWhy(t) {
					k := key{l.Module, pkg.Path, t.Name}
					add(k, l, t.Output)
					named = true
					if t.Flaky() {
						flaky[k] = append(flaky[k], fmt.Sprintf("%d of %d runs under Go %s", t.FailedRuns, t.Runs, l.Release))
					}
				}
			}
			if !named {
				add(key{l.Module, pkg.Path, ""}, l, pkg.Output)
			}
		}
	}
	all := plan.exact()
	var failures, uncertain []Failure
	for k, in := range releases {
		slices.Sort(in)
		in = slices.Compact(in)
		f := Failure{What: strings.TrimSpace(k.pkg + " " + k.test), Message: output[k], Repeat: map[string]string{"go-versions": in[0]}}
		if f.What == "" {
			f.What = "go test of module " + k.module
		}
		if k.pkg != "" {
			f.Repeat["packages"] = k.pkg
		}
		f.Where = "Go " + strings.Join(in, ", ")
		if flaky[k] != nil {
			f.Message = "flaky: failed in " + strings.Join(flaky[k], ", ") + "\n" + f.Message
			uncertain = append(uncertain, f)
			continue
		}
		if len(in) < len(all) {
			f.Where = "only Go " + strings.Join(in, ", ")
			if k.test != "" && count < 2 {
				f.Next = "Whether the release decides or chance shows with --count=20."
			}
		}
		failures = append(failures, f)
	}
	for _, s := range [][]Failure{failures, uncertain} {
		slices.SortFunc(s, func(a, b Failure) int {
			// Subtests come before their parent: what it says is often only what follows from them.
			return cmp.Or(cmp.Compare(strings.Count(a.Where, ","), strings.Count(b.Where, ",")), cmp.Compare(a.What+"/\xff", b.What+"/\xff"))
		})
	}
	return append(failures, uncertain...)
}

func (p *Pipeline) writeTestReports(r *TestResult, profile []byte) error {
	if err := p.writeJSON("test.json", r); err != nil {
		return err
	}
	junit, err := r.junit()
	if err != nil {
		return err
	}
	if err := p.writeFile("junit.xml", junit); err != nil {
		return err
	}
	return p.writeFile("coverage.out", profile)
}

// mergeProfiles puts the coverage profiles of several modules into one and counts their statements.
// A profile is described in golang.org/x/tools/cover: a mode line, then a line for each block with its
// number of statements and how often it ran. Blocks may come more than once.
func mergeProfiles(profiles [][]byte) ([]byte, float64) {
	type block struct{ statements, count int }
	blocks := map[string]block{}
	mode := "mode: set\n"
	for _, profile := range profiles {
		for line := range bytes.Lines(profile) {
			s := string(line)
			if strings.HasPrefix(s, "mode: ") {
				mode = s
				continue
			}
			i := strings.LastIndexByte(strings.TrimSpace(s), ' ')
			if i < 0 {
				continue
			}
			where := s[:i]
			var b block
			if n, _ := fmt.Sscanf(s[strings.LastIndexByte(where, ' ')+1:], "%d %d", &b.statements, &b.count); n != 2 {
				continue
			}
			b.count = max(b.count, blocks[where].count)
			blocks[where] = b
		}
	}
	var text strings.Builder
	text.WriteString(mode)
	total, ran := 0, 0
	for _, where := range slices.Sorted(maps.Keys(blocks)) {
		b := blocks[where]
		fmt.Fprintf(&text, "%s %d\n", where, b.count)
		total += b.statements
		if b.count > 0 {
			ran += b.statements
		}
	}
	if total == 0 {
		return []byte(text.String()), -1
	}
	return []byte(text.String()), 100 * float64(ran) / float64(total)
}
