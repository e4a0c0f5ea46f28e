package testjson_test

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/internal/testjson"
)

func read(lines ...string) testjson.Report {
	return readAll(strings.NewReader(strings.Join(lines, "\n")))
}

func readAll(from io.Reader) testjson.Report {
	var r testjson.Reader
	return r.Read(from)
}

// go test itself was killed, or its output ended for another reason.
func TestTruncated(t *testing.T) {
	r := read(
		`{"Action":"start","Package":"a"}`,
		`{"Action":"run","Package":"a","Test":"TestDone"}`,
		`{"Action":"pass","Package":"a","Test":"TestDone","Elapsed":0.5}`,
		`{"Action":"run","Package":"a","Test":"TestOpen"}`,
		`{"Action":"output","Package":"a","Test":"TestOpen","Output":"so far\n"}`,
		`{"Action":"start","Package":"b"}`,
		`{"Action":"pass","Package":"c"}`,
		`{"Action":"pass","Pack`,
	)
	assert.Equal(t, []testjson.Package{
		{Path: "a", Result: testjson.Fail, Tests: []testjson.Test{{Name: "TestDone", Result: testjson.Pass, Seconds: 0.5}, {Name: "TestOpen", Result: testjson.Fail, Output: "so far"}}},
		{Path: "b", Result: testjson.Fail},
		{Path: "c", Result: testjson.Pass},
	}, r.Packages)
	assert.Equal(t, `{"Action":"pass","Pack`+"\n", string(r.Stray))
}

func TestReadError(t *testing.T) {
	whole := `{"Action":"pass","Package":"a"}` + "\n"
	r := readAll(io.MultiReader(strings.NewReader(whole), iotest.ErrReader(io.ErrUnexpectedEOF)))
	assert.Equal(t, []testjson.Package{{Path: "a", Result: testjson.Pass}}, r.Packages)
	r = readAll(iotest.OneByteReader(strings.NewReader(whole)))
	assert.Equal(t, []testjson.Package{{Path: "a", Result: testjson.Pass}}, r.Packages)
}

func TestStray(t *testing.T) {
	r := read("go: downloading example.com/x v1.0.0", `{"not":"an event"}`, "null", "[]", "", `{"Action":"pass","Package":"a"}`+"\r")
	assert.Equal(t, "go: downloading example.com/x v1.0.0\n{\"not\":\"an event\"}\nnull\n[]\n", string(r.Stray))
	assert.Len(t, r.Packages, 1)

	r = readAll(strings.NewReader(strings.Repeat("noise\n", 1_000_000)))
	assert.Less(t, len(r.Stray), 1<<17, "bounded")

	// One line that never ends, and an event after it.
	r = readAll(io.MultiReader(strings.NewReader(strings.Repeat("x", 8<<20)), strings.NewReader("\n"+`{"Action":"pass","Package":"a"}`)))
	assert.Less(t, len(r.Stray), 2<<20)
	assert.Equal(t, []testjson.Package{{Path: "a", Result: testjson.Pass}}, r.Packages)
}

// The output of tests is cut, not kept.
func TestMemoryIsBounded(t *testing.T) {
	line := fmt.Sprintf(`{"Action":"output","Package":"a","Test":"T","Output":%q}`+"\n", strings.Repeat("y", 1000)+"\n")
	r := readAll(io.MultiReader(repeat(line, 5_000), strings.NewReader(`{"Action":"fail","Package":"a","Test":"T"}`+"\n"+`{"Action":"fail","Package":"a"}`)))
	require.Len(t, r.Packages[0].Tests, 1)
	assert.Less(t, len(r.Packages[0].Tests[0].Output), 1<<18)
}

func repeat(s string, n int) io.Reader {
	var readers []io.Reader
	for range n {
		readers = append(readers, strings.NewReader(s))
	}
	return io.MultiReader(readers...)
}

// A test that runs more than once has failed if it did so once. What it printed then is what counts.
func TestCount(t *testing.T) {
	run := func(output, result string) string {
		return fmt.Sprintf(`{"Action":"run","Package":"a","Test":"T"}`+"\n"+`{"Action":"output","Package":"a","Test":"T","Output":%q}`+"\n"+`{"Action":%q,"Package":"a","Test":"T","Elapsed":%d}`, output+"\n", result, len(output))
	}
	failed := `{"Action":"fail","Package":"a"}`
	for name, c := range map[string]struct {
		lines []string
		want  testjson.Test
		flaky bool
	}{
		"first":             {[]string{run("one", "fail"), run("three", "pass"), failed}, testjson.Test{Result: testjson.Fail, Output: "one", Seconds: 5, Runs: 2, FailedRuns: 1}, true},
		"last":              {[]string{run("one", "pass"), run("two", "fail"), failed}, testjson.Test{Result: testjson.Fail, Output: "two", Seconds: 3, Runs: 2, FailedRuns: 1}, true},
		"middle":            {[]string{run("one", "pass"), run("two", "fail"), run("three", "fail"), run("four", "pass"), failed}, testjson.Test{Result: testjson.Fail, Output: "two", Seconds: 5, Runs: 4, FailedRuns: 2}, true},
		"always":            {[]string{run("one", "fail"), run("two", "fail"), failed}, testjson.Test{Result: testjson.Fail, Output: "one", Seconds: 3, Runs: 2, FailedRuns: 2}, false},
		"never":             {[]string{run("one", "pass"), run("two", "pass"), `{"Action":"pass","Package":"a"}`}, testjson.Test{Result: testjson.Pass, Seconds: 3, Runs: 2}, false},
		"hangs":             {[]string{run("one", "pass"), `{"Action":"run","Package":"a","Test":"T"}`, failed}, testjson.Test{Result: testjson.Fail, Output: "It had not ended when the tests of its package did.", Seconds: 3, Runs: 2, FailedRuns: 1}, true},
		"fails, then hangs": {[]string{run("one", "pass"), run("two", "fail"), `{"Action":"run","Package":"a","Test":"T"}`, failed}, testjson.Test{Result: testjson.Fail, Output: "two", Seconds: 3, Runs: 3, FailedRuns: 2}, true},
		"skips":             {[]string{run("one", "skip"), run("two", "fail"), failed}, testjson.Test{Result: testjson.Fail, Output: "two", Seconds: 3}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := read(c.lines...)
			require.Len(t, r.Packages[0].Tests, 1)
			c.want.Name = "T"
			assert.Equal(t, c.want, r.Packages[0].Tests[0])
			assert.Equal(t, c.flaky, r.Packages[0].Tests[0].Flaky())
		})
	}
}

// Parallel tests that wait for their turn are not among those that run.
func TestProgressParallel(t *testing.T) {
	var reader testjson.Reader
	event := func(action, test string) string {
		return fmt.Sprintf(`{"Action":%q,"Package":"a","Test":%q}`+"\n", action, test)
	}
	look := readerFunc(func() {
		now := reader.Progress()
		assert.Equal(t, testjson.Progress{Passed: 1, Package: "a", Running: []string{"A", "C/sub"}}, now)
	})
	reader.Read(io.MultiReader(strings.NewReader(
		`{"Action":"start","Package":"a"}`+"\n"+`{"Action":"start","Package":"b"}`+"\n"+
			event("run", "A")+event("pause", "A")+event("run", "B")+event("pause", "B")+event("run", "C")+event("run", "C/sub")+
			event("cont", "A")+event("run", "D")+event("pass", "D")), look))
}

// readerFunc is called where a reader ends.
type readerFunc func()

func (f readerFunc) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

func TestAddBuildErrors(t *testing.T) {
	failed := func(path string) testjson.Package {
		return testjson.Package{Path: path, Result: testjson.Fail, Output: "FAIL\t" + path + " [build failed]"}
	}
	for name, c := range map[string]struct {
		packages []testjson.Package
		stderr   string
		want     []string
	}{
		"own":      {[]testjson.Package{failed("a"), failed("b")}, "go: downloading x\n# a\na.go:1:1: one\n# b [b.test]\nb.go:1:1: two\n", []string{"a.go:1:1: one\nFAIL\ta [build failed]", "b.go:1:1: two\nFAIL\tb [build failed]"}},
		"external": {[]testjson.Package{failed("a")}, "# a_test [a.test]\r\na_test.go:1:1: one\r\n", []string{"a_test.go:1:1: one\r\nFAIL\ta [build failed]"}},
		"linker":   {[]testjson.Package{failed("a")}, "# a.test\nlink: no main\n", []string{"link: no main\nFAIL\ta [build failed]"}},
		"imported": {[]testjson.Package{failed("a"), {Path: "b", Result: testjson.Pass}}, "# c\nc.go:1:1: one\n# d\nd.go:2:2: two\n", []string{"c.go:1:1: one\nd.go:2:2: two\nFAIL\ta [build failed]", ""}},
		"imported and tested": {[]testjson.Package{failed("a"), failed("b")}, "# b\nb.go:1:1: one\n",
			[]string{"A package that it imports cannot be built.\nFAIL\ta [build failed]", "b.go:1:1: one\nFAIL\tb [build failed]"}},
		"nothing said":  {[]testjson.Package{failed("a")}, "exit status 1\n", []string{"FAIL\ta [build failed]"}},
		"ran":           {[]testjson.Package{{Path: "a", Result: testjson.Fail, Output: "FAIL\ta\t0.1s"}}, "# a\nnote: a warning\n", []string{"FAIL\ta\t0.1s"}},
		"ran and built": {[]testjson.Package{{Path: "a", Result: testjson.Pass}}, "# a\nld: a warning\n", []string{""}},
	} {
		t.Run(name, func(t *testing.T) {
			r := testjson.Report{Packages: c.packages}
			r.AddBuildErrors([]byte(c.stderr))
			var got []string
			for _, p := range r.Packages {
				got = append(got, p.Output)
			}
			assert.Equal(t, c.want, got)
		})
	}
}

func FuzzTestJSON(f *testing.F) {
	for _, release := range []string{"1.20", "1.27"} {
		lines := bytes.SplitAfter(parse("testdata/go" + release + ".txtar")["all.json"], []byte("\n"))
		for chunk := range slices.Chunk(lines, 40) {
			f.Add(bytes.Join(chunk, nil), []byte("# example.com/a [example.com/a.test]\na.go:1:2: three\n"))
		}
	}
	f.Add([]byte("FAIL\ta\xff [build failed]\n"), []byte("# a\xff\n\xfe\n"))
	f.Fuzz(func(t *testing.T, stdout, stderr []byte) {
		var reader testjson.Reader
		r := reader.Read(bytes.NewReader(stdout))
		r.AddBuildErrors(stderr)
		now := reader.Progress()
		require.LessOrEqual(t, now.Passed+now.Failed+now.Skipped+len(now.Running), bytes.Count(stdout, []byte("\n"))+1)
		require.True(t, slices.IsSortedFunc(r.Packages, func(a, b testjson.Package) int { return cmp.Or(cmp.Compare(a.Path, b.Path), 1) }), "sorted, and none twice")
		size := 0
		for _, p := range r.Packages {
			require.Contains(t, []string{testjson.Pass, testjson.Fail, testjson.Skip}, p.Result)
			require.True(t, utf8.ValidString(p.Path) && utf8.ValidString(p.Output))
			require.True(t, p.Result == testjson.Fail || p.Output == "")
			size += len(p.Output)
			for _, x := range p.Tests {
				require.Contains(t, []string{testjson.Pass, testjson.Fail, testjson.Skip}, x.Result)
				require.NotEmpty(t, x.Name)
				require.True(t, utf8.ValidString(x.Output))
				require.True(t, x.Result != testjson.Pass || x.Output == "")
				p.SaysWhy(x)
				size += len(x.Output)
			}
		}
		require.LessOrEqual(t, size, 10*len(stdout)+100*(len(stderr)+100)*(len(r.Packages)+1))
	})
}
