package pipelines_test

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

var update = flag.Bool("update", false, "rewrite golden files")

// events are what go test -json prints for one package: its result, then "Test result output" for each test.
func events(pkg, result, output string, tests ...[3]string) string {
	var b strings.Builder
	emit := func(fields map[string]any) {
		fields["Package"] = pkg
		line, err := json.Marshal(fields)
		if err != nil {
			panic(err)
		}
		b.Write(append(line, '\n'))
	}
	for _, t := range tests {
		emit(map[string]any{"Action": "run", "Test": t[0]})
		if t[2] != "" {
			emit(map[string]any{"Action": "output", "Test": t[0], "Output": t[2]})
		}
		if t[1] != "" {
			emit(map[string]any{"Action": t[1], "Test": t[0], "Elapsed": 0.25})
		}
	}
	if output != "" {
		emit(map[string]any{"Action": "output", "Output": output})
	}
	emit(map[string]any{"Action": result, "Elapsed": 1.5})
	return b.String()
}

// answers is a fake whose tests say what is given for each release, and whether they say it for a module.
func answers(t *testing.T, say func(release, dir string) (stdout, stderr, profile string)) *fake {
	t.Helper()
	f := goModule("1.20")
	f.answer = func(c engine.Command) (*engine.Result, error) {
		if c.Args[1] != "test" {
			return nil, nil
		}
		stdout, stderr, profile := say(c.Toolchain, c.Dir)
		return testAnswer(c, []byte(stdout), []byte(stderr), profile)
	}
	return f
}

// tested runs the test stage under three releases and finishes.
func tested(t *testing.T, f *fake, c pipelines.Config) (*pipelines.TestResult, *pipelines.Pipeline, fs.FS) {
	t.Helper()
	if c.GoVersions == nil {
		c.GoVersions = []string{"1.20", "1.22", "1.27"}
	}
	dist := filepath.Join(t.TempDir(), "dist")
	p := mustPipeline(t, f, c, pipelines.Options{Output: dist})
	r, err := p.Test(t.Context())
	require.NoError(t, err)
	_, err = p.Finish()
	require.NoError(t, err)
	return r, p, os.DirFS(dist)
}

func stageOf(t *testing.T, p *pipelines.Pipeline, name string) *pipelines.StageRecord {
	t.Helper()
	i := slices.IndexFunc(p.Record.Stages, func(s *pipelines.StageRecord) bool { return s.Name == name })
	require.GreaterOrEqual(t, i, 0)
	return p.Record.Stages[i]
}

// What is written to junit.xml, as far as these tests read it.
type suites struct {
	Tests    int `xml:"tests,attr"`
	Failures int `xml:"failures,attr"`
	Suites   []struct {
		Name       string `xml:"name,attr"`
		Tests      int    `xml:"tests,attr"`
		Failures   int    `xml:"failures,attr"`
		Skipped    int    `xml:"skipped,attr"`
		Properties []struct {
			Name  string `xml:"name,attr"`
			Value string `xml:"value,attr"`
		} `xml:"properties>property"`
		Cases []struct {
			Class   string  `xml:"classname,attr"`
			Name    string  `xml:"name,attr"`
			Failure *string `xml:"failure"`
			Skipped *struct {
				Message string `xml:"message,attr"`
			} `xml:"skipped"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

func parseJUnit(t *testing.T, dist fs.FS) (suites, string) {
	t.Helper()
	b, err := fs.ReadFile(dist, "junit.xml")
	require.NoError(t, err)
	var s suites
	require.NoError(t, xml.Unmarshal(b, &s), "%s", b)
	return s, string(b)
}

func TestJUnitGolden(t *testing.T) {
	f := answers(t, func(release, _ string) (string, string, string) {
		if release == "1.20.14" {
			return "", "go: errors parsing go.mod:\n\tgo.mod:3: <unknown> directive\n", ""
		}
		out := events("example.com/hello", "fail", "FAIL\n",
			[3]string{"TestGood", "pass", "not shown"},
			[3]string{"TestBad", "fail", "--- FAIL: TestBad\n    a_test.go:3: got <a> & \"b\" ]]> \x1b[31m\x00 \ufffe ü\n"},
			[3]string{"TestParent", "fail", "--- FAIL: TestParent (0.00s)\n"},
			[3]string{`TestParent/with_<"quotes">_&_ü`, "fail", "why\n"},
			[3]string{"TestSkipped", "skip", "    a_test.go:9: needs \"root\"\n--- SKIP: TestSkipped (0.00s)\n"},
			[3]string{"TestOpen", "", ""},
		) + events("example.com/hello/empty", "skip", "?   \texample.com/hello/empty\t[no test files]\n") +
			events("example.com/hello/main", "fail", "cleaning up failed\nFAIL\n", [3]string{"TestFine", "pass", ""}) +
			events("example.com/hello/ok", "pass", "ok\n", [3]string{"TestFine", "pass", ""})
		return out, "", ""
	})
	f.packages = ""
	_, _, dist := tested(t, f, pipelines.Config{GoVersions: []string{"1.20", "1.22"}})
	parsed, text := parseJUnit(t, dist)
	golden := filepath.Join("testdata", "junit.golden")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(golden, []byte(text), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(want), text)

	assert.Equal(t, 10, parsed.Tests)
	assert.Equal(t, 6, parsed.Failures)
	require.Len(t, parsed.Suites, 4)
	assert.Equal(t, "example.com/hello (Go 1.20.14)", parsed.Suites[0].Name)
	assert.Contains(t, *parsed.Suites[0].Cases[0].Failure, "go.mod:3: <unknown> directive")
	s := parsed.Suites[1]
	assert.Equal(t, "example.com/hello (Go 1.22.10)", s.Name)
	assert.Equal(t, []int{6, 4, 1}, []int{s.Tests, s.Failures, s.Skipped})
	assert.Equal(t, "go version go1.22.10 linux/amd64", s.Properties[0].Value)
	assert.Contains(t, *s.Cases[1].Failure, "got <a> & \"b\" ]]> \uFFFD[31m\uFFFD \uFFFD ü")
	assert.Equal(t, `TestParent/with_<"quotes">_&_ü`, s.Cases[3].Name)
	assert.Equal(t, `a_test.go:9: needs "root"`, s.Cases[4].Skipped.Message)
	assert.Equal(t, "It had not ended when the tests of its package did.", *s.Cases[5].Failure)
	assert.Equal(t, "package", parsed.Suites[2].Cases[1].Name)
	assert.Contains(t, *parsed.Suites[2].Cases[1].Failure, "cleaning up failed")
}

// recorded is what real toolchains said; see internal/testjson.
func recorded(t *testing.T, release string) (stdout, stderr string) {
	t.Helper()
	a, err := txtar.ParseFile(filepath.Join("internal", "testjson", "testdata", "go"+release+".txtar"))
	require.NoError(t, err)
	files := map[string]string{}
	for _, f := range a.Files {
		files[f.Name] = string(f.Data)
	}
	return files["all.json"], files["all.stderr"]
}

func TestRecordedReleases(t *testing.T) {
	f := answers(t, func(release, _ string) (string, string, string) {
		out, problems := recorded(t, release[:4])
		return out, problems, ""
	})
	result, p, dist := tested(t, f, pipelines.Config{})
	assert.Equal(t, pipelines.Failed, result.Verdict)
	assert.Equal(t, -1.0, result.Coverage)
	require.Len(t, result.Legs, 3)
	junit, _ := parseJUnit(t, dist)
	tests, failures := 0, 0
	for _, s := range junit.Suites {
		tests += s.Tests
		failures += s.Failures
	}
	assert.Equal(t, []int{tests, failures}, []int{junit.Tests, junit.Failures})
	for _, l := range result.Legs {
		assert.Equal(t, "go version go"+l.Release+" linux/amd64", l.Ran)
		// 18 tests fail in each release; Go 1.20 does not build a package that has no tests.
		broken := map[string]int{"1.20.14": 7, "1.22.10": 8, "1.27.4": 8}[l.Release]
		assert.Equal(t, []int{30, 18, 4}, []int{l.Passed, l.Failed, l.Skipped}, l.Release)
		inSuites := 0
		for _, s := range junit.Suites {
			if strings.HasSuffix(s.Name, "(Go "+l.Release+")") {
				inSuites += s.Failures
			}
		}
		assert.Equal(t, l.Failed+broken, inSuites)
		i := slices.IndexFunc(stageOf(t, p, "test").Tasks, func(x pipelines.TaskRecord) bool { return x.Name == "test "+l.Release })
		assert.Equal(t, fmt.Sprintf("%d packages failed, 18 failed, 30 passed, 4 skipped", broken), stageOf(t, p, "test").Tasks[i].Detail)
	}
	assert.Equal(t, "54 of 156 tests failed, 23 packages failed", stageOf(t, p, "test").Detail)

	byWhat := map[string]pipelines.Failure{}
	for _, f := range stageOf(t, p, "test").Failures {
		_, twice := byWhat[f.What]
		assert.False(t, twice, f.What)
		byWhat[f.What] = f
		assert.NotEmpty(t, f.Message, f.What)
		assert.True(t, f.Repeat["packages"] != "" && strings.HasPrefix(f.What, f.Repeat["packages"]))
	}
	const m = "example.com/suite/"
	assert.Contains(t, byWhat[m+"panicsub TestOuter"].Message, "assignment to entry in nil map", "a panic in a subtest is told by its parent")
	assert.Contains(t, byWhat[m+"fail TestSub/bad"].Message, "the subtest's reason")
	assert.NotContains(t, byWhat, m+"fail TestSub", "it says nothing itself")
	assert.Contains(t, byWhat[m+"mainfails"].Message, "cleaning up failed")
	assert.Contains(t, byWhat[m+"broken"].Message, "undefined: undefinedFunction")
	assert.Equal(t, "only Go 1.22.10, 1.27.4", byWhat[m+"brokenlib"].Where)
	assert.Equal(t, "Go 1.20.14, 1.22.10, 1.27.4", byWhat[m+"broken"].Where)
	assert.Equal(t, m+"brokenlib", stageOf(t, p, "test").Failures[0].What, "what does not fail everywhere comes first")
	for _, name := range []string{"test.json", "junit.xml", "coverage.out", "run.json"} {
		_, err := fs.Stat(dist, name)
		assert.NoError(t, err, "%s is written also when tests fail", name)
	}
}

func TestFailuresOrder(t *testing.T) {
	f := answers(t, func(release, _ string) (string, string, string) {
		fails := func(in ...string) string {
			if slices.Contains(in, release) {
				return "fail"
			}
			return "pass"
		}
		return events("example.com/hello", "fail", "",
			[3]string{"TestAll", "fail", "in " + release + "\n"},
			[3]string{"TestTwo", fails("1.20.14", "1.27.4"), "why\n"},
			[3]string{"TestNew", fails("1.27.4"), "why\n"},
			[3]string{"TestOld", fails("1.20.14"), "why\n"},
			[3]string{"TestAlso", "fail", "panic: it had no more to work with\n"},
			[3]string{"TestAlso/cause", "fail", "why\n"},
			[3]string{"TestAlsoThis", "fail", "why\n"},
		), "", ""
	})
	_, p, _ := tested(t, f, pipelines.Config{})
	var got [][3]string
	for _, f := range stageOf(t, p, "test").Failures {
		got = append(got, [3]string{f.What, f.Where, f.Repeat["go-versions"]})
		assert.Equal(t, "example.com/hello", f.Repeat["packages"])
	}
	assert.Equal(t, [][3]string{
		{"example.com/hello TestNew", "only Go 1.27.4", "1.27.4"},
		{"example.com/hello TestOld", "only Go 1.20.14", "1.20.14"},
		{"example.com/hello TestTwo", "only Go 1.20.14, 1.27.4", "1.20.14"},
		{"example.com/hello TestAll", "Go 1.20.14, 1.22.10, 1.27.4", "1.20.14"},
		{"example.com/hello TestAlso/cause", "Go 1.20.14, 1.22.10, 1.27.4", "1.20.14"},
		{"example.com/hello TestAlso", "Go 1.20.14, 1.22.10, 1.27.4", "1.20.14"},
		{"example.com/hello TestAlsoThis", "Go 1.20.14, 1.22.10, 1.27.4", "1.20.14"},
	}, got)
	assert.Equal(t, "in 1.20.14", stageOf(t, p, "test").Failures[3].Message, "of the oldest release that fails")
}

// Where go test itself fails there is no package to blame; each module has its own message.
func TestGoTestItselfFails(t *testing.T) {
	f := newFake(map[string]string{"go.work": "go 1.20\n\nuse (\n\t./a\n\t./b\n)\n", "a/go.mod": "module example.com/a\n\ngo 1.20\n", "b/go.mod": "module example.com/b\n\ngo 1.20\n"})
	f.answer = func(c engine.Command) (*engine.Result, error) {
		if c.Args[1] == "test" {
			return &engine.Result{ExitCode: 2, Stderr: []byte("go: module " + c.Dir + " is broken\n")}, nil
		}
		return nil, nil
	}
	result, p, dist := tested(t, f, pipelines.Config{GoVersions: []string{"1.22"}})
	assert.Equal(t, pipelines.Failed, result.Verdict)
	failures := stageOf(t, p, "test").Failures
	require.Len(t, failures, 2)
	for i, dir := range []string{"a", "b"} {
		assert.Equal(t, "go test of module example.com/"+dir, failures[i].What)
		assert.Equal(t, "go: module "+dir+" is broken", failures[i].Message)
	}
	assert.Equal(t, "0 tests, 2 packages failed", stageOf(t, p, "test").Detail)
	junit, _ := parseJUnit(t, dist)
	assert.Equal(t, 2, junit.Failures)
}

func TestCoverage(t *testing.T) {
	f := newFake(map[string]string{"go.work": "go 1.20\n\nuse (\n\t./a\n\t./b\n)\n", "a/go.mod": "module example.com/a\n\ngo 1.20\n", "b/go.mod": "module example.com/b\n\ngo 1.20\n"})
	f.answer = func(c engine.Command) (*engine.Result, error) {
		if c.Args[1] != "test" {
			return nil, nil
		}
		profile := "mode: set\nexample.com/" + c.Dir + "/x.go:1.2,3.4 1 0\n" // of a release that does not build
		if c.Toolchain == "1.27.4" {
			profile = map[string]string{"a": "mode: set\nexample.com/a/x.go:1.2,3.4 3 1\n", "b": "mode: set\nexample.com/b/x.go:1.2,3.4 1 0\n"}[c.Dir]
		}
		return testAnswer(c, []byte(events("example.com/"+c.Dir, "pass", "", [3]string{"TestX", "pass", ""})), nil, profile)
	}
	result, p, dist := tested(t, f, pipelines.Config{})
	assert.Equal(t, pipelines.Passed, result.Verdict)
	assert.InDelta(t, 75, result.Coverage, 1e-9)
	b, err := fs.ReadFile(dist, "coverage.out")
	require.NoError(t, err)
	assert.Equal(t, "mode: set\nexample.com/a/x.go:1.2,3.4 3 1\nexample.com/b/x.go:1.2,3.4 1 0\n", string(b))
	assert.Equal(t, "6 tests, 75.0% covered", stageOf(t, p, "test").Detail)
}

func TestFlagsOfTests(t *testing.T) {
	f := answers(t, func(string, string) (string, string, string) { return "", "", "" })
	tested(t, f, pipelines.Config{Race: true, Shuffle: "42", Tags: []string{"a", "b"}, Packages: []string{"./x", "./y/..."}, GoVersions: []string{"1.22"}})
	n := 0
	for _, c := range f.ran {
		if len(c.Args) > 1 && c.Args[1] == "test" {
			n++
			assert.Subset(t, c.Args, []string{"-race", "-shuffle=42", "-tags=a,b", "-json", "-trimpath", "-timeout=10m0s"})
			assert.Equal(t, []string{"./x", "./y/..."}, c.Args[len(c.Args)-2:])
			assert.True(t, c.CGO && c.Writes && !c.Network, "tests see no credentials")
		}
	}
	assert.Equal(t, 1, n)
}

func TestOtherReleaseThanAsked(t *testing.T) {
	f := goModule("1.20")
	f.answer = func(c engine.Command) (*engine.Result, error) {
		if c.Args[1] == "version" {
			return &engine.Result{Stdout: []byte("go version go1.22.1 linux/amd64\n")}, nil
		}
		return nil, nil
	}
	p := mustPipeline(t, f, pipelines.Config{GoVersions: []string{"1.22"}})
	_, err := p.Test(t.Context())
	requireFault(t, err, fault.Environment, "asked for Go 1.22.10", "go1.22.1 ")
}

func TestCancelledTests(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := goModule("1.20")
	f.answer = func(c engine.Command) (*engine.Result, error) {
		if c.Args[1] == "test" {
			cancel()
			return nil, ctx.Err()
		}
		return nil, nil
	}
	p := mustPipeline(t, f, pipelines.Config{})
	_, err := p.Test(ctx)
	assert.Equal(t, fault.Interrupted, fault.Of(err), "%v", err)
}

// Every task begins once and ends once, and the record has what the events said.
func TestEvents(t *testing.T) {
	var mu sync.Mutex
	var seen []pipelines.Event
	f := answers(t, func(string, string) (string, string, string) {
		return events("example.com/hello", "pass", "", [3]string{"TestX", "pass", ""}), "", ""
	})
	p := mustPipeline(t, f, pipelines.Config{}, pipelines.Options{Observe: func(e pipelines.Event) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, e)
	}})
	_, err := p.Test(t.Context())
	require.NoError(t, err)
	state := map[string]pipelines.EventKind{}
	for _, e := range seen {
		assert.False(t, e.Time.IsZero())
		switch e.Kind {
		case pipelines.EventStart:
			assert.Empty(t, state[e.Task], e.Task)
			state[e.Task] = e.Kind
		case pipelines.EventProgress:
			assert.Equal(t, pipelines.EventStart, state[e.Task])
		case pipelines.EventDone:
			assert.Equal(t, pipelines.EventStart, state[e.Task])
			state[e.Task] = e.Kind
			assert.Equal(t, pipelines.Passed, e.Verdict)
		}
	}
	for _, task := range []string{"plan", "modules", "test 1.20.14", "test 1.26.11", "test 1.27.4"} {
		assert.Equal(t, pipelines.EventDone, state[task], task)
	}
}
