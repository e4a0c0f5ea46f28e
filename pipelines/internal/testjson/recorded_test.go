package testjson_test

import (
	"bytes"
	"compress/gzip"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/internal/testjson"
)

var record = flag.Bool("record", false, "run the toolchains and rewrite testdata")

// The releases whose output is recorded: before and after build events came, which was with Go 1.24.
var releases = []string{"1.20", "1.22", "1.27"}

var exact = map[string]string{"1.20": "1.20.14", "1.22": "1.22.12", "1.27": "1.27.4"}

// recording reads what a release said, or makes it say it again.
func recording(t *testing.T, release string) map[string][]byte {
	t.Helper()
	name := filepath.Join("testdata", "go"+release+".txtar")
	zipped := filepath.Join("testdata", "go"+release+"-huge.json.gz")
	if *record {
		run(t, release, name, zipped)
	}
	files := parse(name)
	f, err := os.Open(zipped)
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	files["huge.json"], err = io.ReadAll(z)
	require.NoError(t, err)
	return files
}

func parse(name string) map[string][]byte {
	a, err := txtar.ParseFile(name)
	if err != nil {
		panic(err)
	}
	files := map[string][]byte{}
	for _, f := range a.Files {
		files[f.Name] = f.Data
	}
	return files
}

func run(t *testing.T, release, name, zipped string) {
	module, err := txtar.ParseFile(filepath.Join("testdata", "module.txtar"))
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, txtar.Write(module, dir))
	command := func(env string, args ...string) (stdout, stderr []byte) {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOTOOLCHAIN=go"+exact[release], "GOFLAGS=", "CGO_ENABLED=0", env)
		var out, problems bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &problems
		_ = cmd.Run() // it fails
		return clean(out.Bytes(), dir), clean(problems.Bytes(), dir)
	}
	// The flags are those that the test stage gives.
	flags := []string{"test", "-json", "-trimpath", "-vet=off", "-timeout=3s"}
	cover := append(slices.Clone(flags), "-coverprofile="+filepath.Join(dir, "coverage.out"))
	a := &txtar.Archive{Comment: []byte("Recorded with Go " + exact[release] + "; see module.txtar.\n")}
	add := func(name string, stdout, stderr []byte) {
		a.Files = append(a.Files, txtar.File{Name: name + ".json", Data: stdout}, txtar.File{Name: name + ".stderr", Data: stderr})
	}
	out, problems := command("", append(cover, "./...")...)
	add("all", out, problems)
	out, problems = command("", append(cover, "./brokendep", "./pass")...)
	add("dependency", out, problems)
	command("", append(flags, "./pass", "./skip")...)
	out, problems = command("", append(flags, "./pass", "./skip")...)
	add("cached", out, problems)
	command("", append(cover, "./pass")...)
	out, problems = command("", append(cover, "./pass")...)
	add("cover", out, problems)
	out, problems = command("", append(cover, "./skip", "-nosuchflag")...)
	add("usage", out, problems)
	require.NoError(t, os.WriteFile(name, txtar.Format(a), 0o644))

	out, _ = command("HUGE=1", append(cover, "./huge")...)
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	require.NoError(t, err)
	_, err = z.Write(out)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	require.NoError(t, os.WriteFile(zipped, b.Bytes(), 0o644))
}

var clock = regexp.MustCompile(`"Time":"[^"]*",`)

// clean drops what is of one machine and moment only.
func clean(b []byte, dir string) []byte {
	b = clock.ReplaceAll(b, nil)
	return bytes.ReplaceAll(b, []byte(dir), []byte("/work"))
}

// said is what a test or a package is expected to come to, and parts of its output.
type said struct {
	result string
	output []string
}

var (
	pass = said{testjson.Pass, nil}
	fail = func(output ...string) said { return said{testjson.Fail, output} }
	skip = func(output ...string) said { return said{testjson.Skip, output} }
)

// wanted is what every release says of the packages of module.txtar: "package" or "package Test".
func wanted(release string) map[string]said {
	w := map[string]said{
		"broken":               fail("broken/broken_test.go:5:33: undefined: undefinedFunction", "[build failed]"),
		"brokendep":            fail("[build failed]"),
		"brokenx":              fail("brokenx/brokenx_test.go:5:37: ", "declared and not used", "[build failed]"),
		"setup":                fail("setup/setup_test.go:6:2: ", "no required module provides package example.com/suite/nowhere", "[setup failed]"),
		"syntax":               fail("syntax/syntax_test.go:3:18: expected ')', found '{'", "[setup failed]"),
		"bytes":                fail("FAIL"),
		"bytes TestBytes":      fail("raw \uFFFD\uFFFD\x00 bytes, \x1b[31mred\x1b[0m\n", "bytes_test.go:10: bad \uFFFD( bytes"),
		"exit0":                fail("FAIL"),
		"exit0 TestExit":       fail("panic: unexpected call to os.Exit(0) during test"),
		"exit1":                fail("FAIL"),
		"exit1 TestBefore":     pass,
		"exit1 TestExit":       fail("last words"),
		"fail":                 fail("FAIL"),
		"fail TestError":       fail("fail_test.go:9: before\n", "fail_test.go:10: first reason\n", "fail_test.go:11: second reason\n        on two lines"),
		"fail TestSub":         fail("--- FAIL: TestSub"),
		"fail TestSub/good":    pass,
		"fail TestSub/bad":     fail("fail_test.go:16: the subtest's reason"),
		"fail TestSub/skipped": skip("fail_test.go:17: not today"),
		"fail TestAfter":       pass,
		"fail ExampleWrong":    fail("got:\nthis\nwant:\nthat"),

		"goroutine":               fail("FAIL"),
		"goroutine TestGoroutine": fail("panic: in a goroutine", "goroutine_test.go:7"),
		"hangs":                   fail("FAIL"),
		"hangs TestBefore":        pass,
		"hangs TestHang":          fail(),
		"hangs TestHang/deep":     fail("panic: test timed out after 3s", "TestHang/deep (3s)"),
		"huge":                    pass,
		"huge TestHuge":           skip("huge_test.go:13: recorded apart"),
		"killed":                  fail("FAIL"),
		"killed TestKilled":       fail("signal: killed"),
		"mainfails":               fail("cleaning up failed"),
		"mainfails TestFine":      pass,
		"mainnever":               fail("no database"),
		"none":                    pass,
		"notests":                 skip(),

		"panics":                   fail("FAIL"),
		"panics TestBefore":        pass,
		"panics TestPaused":        fail("It had not ended"),
		"panics TestPanic":         fail("panic: what a pity", "panics_test.go:9"),
		"panicsub":                 fail("FAIL"),
		"panicsub TestOuter":       fail("panic: assignment to entry in nil map", "panics_test.go:9"),
		"panicsub TestOuter/fine":  pass,
		"panicsub TestOuter/inner": fail("--- FAIL: TestOuter/inner"),

		"parallel":            fail("FAIL"),
		"parallel TestA":      pass,
		"parallel TestB":      fail("    parallel_test.go:18: B logs\n    parallel_test.go:19: B fails\n"),
		"parallel TestC":      fail(),
		"parallel TestC/sub":  fail("parallel_test.go:26: C/sub fails"),
		"parallel TestC/fine": pass,

		"pass":          pass,
		"skip":          pass,
		"skip TestSkip": skip("skip_test.go:5: needs a database"), "skip TestSkipNow": skip(), "skip TestOther": pass,
	}
	for _, name := range []string{"TestPass", "TestTable", "TestTable/simple", "TestTable/with_space", "TestTable/a/b", `TestTable/quote"`, "TestTable/ünï", "TestTable/same", "TestTable/same#01",
		"TestParallel", "TestParallel/one", "TestParallel/two", "TestParallel/three", "TestParallel/one/inner", "TestParallel/two/inner", "TestParallel/three/inner", "TestLiar",
		"FuzzSeeds", "FuzzSeeds/seed#0", "ExampleHello"} {
		w["pass "+name] = pass
	}
	switch release {
	case "1.20":
		// It does not compile packages without tests, and names the used one not at all.
		w["brokendep"] = fail("brokenlib/lib.go:3:23: cannot use", "[build failed]")
		w["brokenx"] = fail("brokenx/brokenx_test.go:5:37: unused declared and not used", "[build failed]")
		w["killed TestKilled"] = fail("It had not ended")
	case "1.22":
		w["brokenlib"] = fail("brokenlib/lib.go:3:", "cannot use", "[build failed]")
		w["brokendep"] = fail("A package that it imports cannot be built.", "[build failed]")
		w["brokenx"] = fail("brokenx/brokenx_test.go:5:37: unused declared and not used", "[build failed]")
	case "1.27":
		// It drops escape characters.
		w["bytes TestBytes"] = fail("raw \uFFFD\uFFFD\x00 bytes, [31mred[0m\n", "bytes_test.go:10: bad \uFFFD( bytes")
		w["brokenlib"] = fail("brokenlib/lib.go:3:", "cannot use", "[build failed]")
		w["brokendep"] = fail("brokenlib/lib.go:3:", "cannot use", "[build failed]")
	}
	return w
}

const module = "example.com/suite/"

// heard turns a report into what wanted describes, with the whole outputs.
func heard(r testjson.Report) map[string]said {
	h := map[string]said{}
	for _, p := range r.Packages {
		path := strings.TrimPrefix(p.Path, module)
		h[path] = said{p.Result, []string{p.Output}}
		for _, t := range p.Tests {
			h[path+" "+t.Name] = said{t.Result, []string{t.Output}}
		}
	}
	return h
}

func TestRecorded(t *testing.T) {
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			r := recording(t, release)
			report := readAll(bytes.NewReader(r["all.json"]))
			report.AddBuildErrors(r["all.stderr"])
			assert.Empty(t, string(report.Stray))
			got, want := heard(report), wanted(release)
			assert.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)))
			for name, w := range want {
				g, ok := got[name]
				if !ok {
					continue // said above
				}
				assert.Equal(t, w.result, g.result, name)
				for _, part := range w.output {
					assert.Contains(t, g.output[0], part, name)
				}
				if w.result == testjson.Pass {
					assert.Empty(t, g.output[0], name)
				}
				assert.NotContains(t, g.output[0], "=== ", name)
			}
			for _, p := range report.Packages {
				if p.Path == module+"hangs" {
					assert.GreaterOrEqual(t, p.Seconds, 3.0)
				}
				if p.Path == module+"pass" {
					assert.Positive(t, p.Seconds)
				}
			}
		})
	}
}

// What the tested packages import, and is not tested itself, cannot be built.
func TestRecordedDependency(t *testing.T) {
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			r := recording(t, release)
			report := readAll(bytes.NewReader(r["dependency.json"]))
			report.AddBuildErrors(r["dependency.stderr"])
			require.Len(t, report.Packages, 2)
			p := report.Packages[0]
			assert.Equal(t, module+"brokendep", p.Path)
			assert.Equal(t, testjson.Fail, p.Result)
			assert.Contains(t, p.Output, `brokenlib/lib.go:3:23: cannot use "text" (untyped string constant) as int value in return statement`)
			assert.Contains(t, p.Output, "[build failed]")
			assert.Equal(t, testjson.Pass, report.Packages[1].Result)
			assert.Empty(t, report.Packages[1].Output)
		})
	}
}

func TestRecordedCached(t *testing.T) {
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			r := recording(t, release)
			for _, p := range readAll(bytes.NewReader(r["cached.json"])).Packages {
				assert.True(t, p.Cached, p.Path)
				assert.Equal(t, testjson.Pass, p.Result)
			}
			// Before Go 1.24 a coverage profile is never cached.
			covered := readAll(bytes.NewReader(r["cover.json"]))
			require.Len(t, covered.Packages, 1)
			assert.Equal(t, release == "1.27", covered.Packages[0].Cached)
		})
	}
}

func TestRecordedHuge(t *testing.T) {
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			r := recording(t, release)
			require.Greater(t, len(r["huge.json"]), 400_000)
			report := readAll(bytes.NewReader(r["huge.json"]))
			require.Len(t, report.Packages, 1)
			require.Len(t, report.Packages[0].Tests, 1)
			huge := report.Packages[0].Tests[0]
			assert.Equal(t, testjson.Fail, huge.Result)
			assert.True(t, strings.HasPrefix(huge.Output, "[earlier output cut]\n"), "%.100q", huge.Output)
			assert.Contains(t, huge.Output, "the reason stands at the end")
			assert.Contains(t, huge.Output, "\n3999 x")
			assert.NotContains(t, huge.Output, "\n10 x")
			assert.Greater(t, len(huge.Output), 60<<10)
			assert.Less(t, len(huge.Output), 130<<10)
			assert.NotContains(t, huge.Output, "\uFFFD", "no character was cut in two")
		})
	}
}

// A flag that the tests do not know.
func TestRecordedUsage(t *testing.T) {
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			r := recording(t, release)
			report := readAll(bytes.NewReader(r["usage.json"]))
			report.AddBuildErrors(r["usage.stderr"])
			require.Len(t, report.Packages, 1)
			assert.Equal(t, testjson.Fail, report.Packages[0].Result)
			assert.Contains(t, report.Packages[0].Output, "flag provided but not defined: -nosuchflag")
			assert.Empty(t, report.Packages[0].Tests)
		})
	}
}

func TestSaysWhy(t *testing.T) {
	r := recording(t, "1.27")
	why := map[string]bool{}
	for _, p := range readAll(bytes.NewReader(r["all.json"])).Packages {
		for _, x := range p.Tests {
			if x.Result == testjson.Fail {
				why[strings.TrimPrefix(p.Path, module)+" "+x.Name] = p.SaysWhy(x)
			}
		}
	}
	assert.Equal(t, map[string]bool{
		"bytes TestBytes": true, "exit0 TestExit": true, "exit1 TestExit": true, "fail ExampleWrong": true, "fail TestError": true,
		"fail TestSub": false, "fail TestSub/bad": true, "goroutine TestGoroutine": true, "hangs TestHang": false, "hangs TestHang/deep": true, "killed TestKilled": true,
		"panics TestPanic": true, "panics TestPaused": true, "panicsub TestOuter": true, "panicsub TestOuter/inner": true,
		"parallel TestB": true, "parallel TestC": false, "parallel TestC/sub": true,
	}, why)
}

// While tests run, one sees those of the package that began first.
func TestProgress(t *testing.T) {
	r := recording(t, "1.22")
	var seen []string
	var reader testjson.Reader
	lines := bytes.SplitAfter(r["all.json"], []byte("\n"))
	look := func() {
		now := reader.Progress()
		text := fmt.Sprintf("%d %d %d %s %s", now.Passed, now.Failed, now.Skipped, path.Base(now.Package), strings.Join(now.Running, " "))
		if len(seen) == 0 || seen[len(seen)-1] != text {
			seen = append(seen, text)
		}
	}
	report := reader.Read(&watched{lines, look})
	look()
	count := map[string]int{}
	for _, p := range report.Packages {
		for _, x := range p.Tests {
			count[x.Result]++
		}
	}
	last := reader.Progress()
	assert.Empty(t, last.Package)
	assert.Equal(t, count[testjson.Pass], last.Passed)
	assert.Equal(t, count[testjson.Skip], last.Skipped)
	assert.LessOrEqual(t, last.Failed, count[testjson.Fail], "some never end")
	assert.Subset(t, seen, []string{"1 3 0 fail TestSub/good", "2 3 0 fail TestSub", "4 6 2 hangs TestHang/deep"})
}

// watched hands out one line at a time and looks at the reader before each.
type watched struct {
	lines [][]byte
	look  func()
}

func (w *watched) Read(b []byte) (int, error) {
	w.look()
	if len(w.lines) == 0 {
		return 0, io.EOF
	}
	n := copy(b, w.lines[0])
	if w.lines[0] = w.lines[0][n:]; len(w.lines[0]) == 0 {
		w.lines = w.lines[1:]
	}
	return n, nil
}
