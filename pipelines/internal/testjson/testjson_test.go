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
	return testjson.Read(strings.NewReader(strings.Join(lines, "\n")), nil)
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
	r := testjson.Read(io.MultiReader(strings.NewReader(whole), iotest.ErrReader(io.ErrUnexpectedEOF)), nil)
	assert.Equal(t, []testjson.Package{{Path: "a", Result: testjson.Pass}}, r.Packages)
	r = testjson.Read(iotest.OneByteReader(strings.NewReader(whole)), nil)
	assert.Equal(t, []testjson.Package{{Path: "a", Result: testjson.Pass}}, r.Packages)
}

func TestStray(t *testing.T) {
	r := read("go: downloading example.com/x v1.0.0", `{"not":"an event"}`, "null", "[]", "", `{"Action":"pass","Package":"a"}`+"\r")
	assert.Equal(t, "go: downloading example.com/x v1.0.0\n{\"not\":\"an event\"}\nnull\n[]\n", string(r.Stray))
	assert.Len(t, r.Packages, 1)

	r = testjson.Read(strings.NewReader(strings.Repeat("noise\n", 1_000_000)), nil)
	assert.Less(t, len(r.Stray), 1<<17, "bounded")

	// One line that never ends, and an event after it.
	r = testjson.Read(io.MultiReader(strings.NewReader(strings.Repeat("x", 8<<20)), strings.NewReader("\n"+`{"Action":"pass","Package":"a"}`)), nil)
	assert.Less(t, len(r.Stray), 2<<20)
	assert.Equal(t, []testjson.Package{{Path: "a", Result: testjson.Pass}}, r.Packages)
}

// The output of tests is cut, not kept.
func TestMemoryIsBounded(t *testing.T) {
	line := fmt.Sprintf(`{"Action":"output","Package":"a","Test":"T","Output":%q}`+"\n", strings.Repeat("y", 1000)+"\n")
	r := testjson.Read(io.MultiReader(repeat(line, 5_000), strings.NewReader(`{"Action":"fail","Package":"a","Test":"T"}`+"\n"+`{"Action":"fail","Package":"a"}`)), nil)
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

// A test that runs again (-count=2) has the last result and all outputs of failures.
func TestCount(t *testing.T) {
	r := read(
		`{"Action":"run","Package":"a","Test":"T"}`, `{"Action":"output","Package":"a","Test":"T","Output":"one\n"}`, `{"Action":"fail","Package":"a","Test":"T"}`,
		`{"Action":"run","Package":"a","Test":"T"}`, `{"Action":"output","Package":"a","Test":"T","Output":"two\n"}`, `{"Action":"pass","Package":"a","Test":"T"}`,
		`{"Action":"fail","Package":"a"}`,
	)
	require.Len(t, r.Packages[0].Tests, 1)
	assert.Equal(t, testjson.Test{Name: "T", Result: testjson.Fail, Output: "one\ntwo"}, r.Packages[0].Tests[0])
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
		ran := 0
		r := testjson.Read(bytes.NewReader(stdout), func(string, string) { ran++ })
		r.AddBuildErrors(stderr)
		require.LessOrEqual(t, ran, bytes.Count(stdout, []byte("\n"))+1)
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
