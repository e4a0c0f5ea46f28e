package pipelines

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1, "1000000": 1000000, "7B": 7, "2kB": 2000, "2MB": 2e6, "2GB": 2e9, "2KiB": 2048, "256MiB": 256 << 20, "1GiB": 1 << 30,
		fmt.Sprint(int64(1) << 62): 1 << 62, "4294967296GiB": 1 << 62,
	} {
		got, err := parseBytes("smoke.memory", text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "0", "0MiB", "-1", "-1MiB", "+1", "1.5GiB", "1e6", "MiB", "1 MiB", " 1", "1 ", "1Mib", "1mb", "1KB", "1TiB", "0x10", "01", "1\n", "1_000", "٣MiB",
		"4294967297GiB", "9223372036854775808", "99999999999999999999GiB"} {
		_, err := parseBytes("smoke.memory", text)
		require.Error(t, err, text)
		assert.Equal(t, fault.Usage, fault.Of(err))
		assert.ErrorContains(t, err, fmt.Sprintf("smoke.memory: %q is not a size", text))
	}
}

func TestPlatformEnv(t *testing.T) {
	for text, want := range map[string]string{
		"linux/amd64":            "GOOS=linux GOARCH=amd64 GOAMD64=v1",
		"linux/amd64/v1":         "GOOS=linux GOARCH=amd64 GOAMD64=v1",
		"linux/amd64/v3":         "GOOS=linux GOARCH=amd64 GOAMD64=v3",
		"linux/arm":              "GOOS=linux GOARCH=arm GOARM=7",
		"linux/arm/v6":           "GOOS=linux GOARCH=arm GOARM=6",
		"linux/arm64":            "GOOS=linux GOARCH=arm64 GOARM64=v8.0",
		"linux/arm64/v8":         "GOOS=linux GOARCH=arm64 GOARM64=v8.0",
		"linux/arm64/v9.1":       "GOOS=linux GOARCH=arm64 GOARM64=v9.1",
		"linux/386/sse2":         "GOOS=linux GOARCH=386 GO386=sse2",
		"linux/mips/softfloat":   "GOOS=linux GOARCH=mips GOMIPS=softfloat",
		"linux/ppc64le/power9":   "GOOS=linux GOARCH=ppc64le GOPPC64=power9",
		"linux/riscv64/rva22u64": "GOOS=linux GOARCH=riscv64 GORISCV64=rva22u64",
		"linux/s390x":            "GOOS=linux GOARCH=s390x",
		"windows/amd64":          "GOOS=windows GOARCH=amd64 GOAMD64=v1",
		"darwin/arm64":           "GOOS=darwin GOARCH=arm64 GOARM64=v8.0",
		"js/wasm":                "GOOS=js GOARCH=wasm",
	} {
		p, err := ParsePlatform(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, strings.Join(p.env(), " "), text)
		assert.NotContains(t, p.dirName(), "/")
	}
}

func TestMergeProfiles(t *testing.T) {
	for name, c := range map[string]struct {
		profiles []string
		want     string
		percent  float64
	}{
		"none":                 {nil, "mode: set\n", -1},
		"no statements":        {[]string{"mode: set\n"}, "mode: set\n", -1},
		"one":                  {[]string{"mode: set\na.go:1.2,3.4 2 1\na.go:5.2,6.4 1 0\n"}, "mode: set\na.go:1.2,3.4 2 1\na.go:5.2,6.4 1 0\n", 200.0 / 3},
		"all":                  {[]string{"mode: set\na.go:1.2,3.4 2 1\n"}, "mode: set\na.go:1.2,3.4 2 1\n", 100},
		"nothing ran":          {[]string{"mode: set\na.go:1.2,3.4 2 0\n"}, "mode: set\na.go:1.2,3.4 2 0\n", 0},
		"block twice":          {[]string{"mode: set\na.go:1.2,3.4 2 0\na.go:1.2,3.4 2 1\na.go:1.2,3.4 2 0\n"}, "mode: set\na.go:1.2,3.4 2 1\n", 100},
		"two modules":          {[]string{"mode: set\nb/b.go:1.2,3.4 1 1\n", "mode: set\na/a.go:1.2,3.4 3 0\n"}, "mode: set\na/a.go:1.2,3.4 3 0\nb/b.go:1.2,3.4 1 1\n", 25},
		"module without tests": {[]string{"mode: set\nb/b.go:1.2,3.4 1 1\n", "", "mode: set\n"}, "mode: set\nb/b.go:1.2,3.4 1 1\n", 100},
		"atomic, race":         {[]string{"mode: atomic\na.go:1.2,3.4 1 7\na.go:1.2,3.4 1 9\n"}, "mode: atomic\na.go:1.2,3.4 1 9\n", 100},
		"space in name":        {[]string{"mode: set\nexample.com/a b/c d.go:1.2,3.4 2 1\n"}, "mode: set\nexample.com/a b/c d.go:1.2,3.4 2 1\n", 100},
		"no newline":           {[]string{"mode: set\na.go:1.2,3.4 1 1"}, "mode: set\na.go:1.2,3.4 1 1\n", 100},
		"no mode newline":      {[]string{"mode: set", "mode: set\na.go:1.2,3.4 1 1\n"}, "mode: set\na.go:1.2,3.4 1 1\n", 100},
		"damaged":              {[]string{"mode: set\n\n \nx\na.go:1.2,3.4 one 1\na.go:1.2\na.go:1.2,3.4 1 1\n"}, "mode: set\na.go:1.2,3.4 1 1\n", 100},
	} {
		t.Run(name, func(t *testing.T) {
			var profiles [][]byte
			for _, p := range c.profiles {
				profiles = append(profiles, []byte(p))
			}
			got, percent := mergeProfiles(profiles)
			assert.Equal(t, c.want, string(got))
			assert.InDelta(t, c.percent, percent, 1e-9)
		})
	}
}

func TestParsePositions(t *testing.T) {
	text := strings.Join([]string{
		"# example.com/a",
		"a.go:3:2: fmt.Printf format %d has arg \"x\" of wrong type string",
		"./sub/b.go:7: missing return",
		"vet: ./main.go:6:9: undefined: x",
		"../outside/c.go:1:1: what",
		"with space/d e.go:12:34: message: with: colons",
		"/usr/local/go/src/fmt/print.go:5:6: in the toolchain",
		"\tindented.go:1:2: not a position of its own",
		"go.mod:5: unknown directive: foo",
		"asm_amd64.s:8:1: bad instruction",
		"exit status 1",
		"a.go:3: ",
		"notgo.txt:3:1: no",
		"windows.go:4:5: with a carriage return\r",
		"a.go:99999999999999999999:1: huge",
	}, "\n")
	got := parsePositions("vet", "1.22.12", "mod", []byte(text))
	want := []Finding{
		{File: "mod/a.go", Line: 3, Column: 2, Message: "fmt.Printf format %d has arg \"x\" of wrong type string"},
		{File: "mod/sub/b.go", Line: 7, Message: "missing return"},
		{File: "mod/main.go", Line: 6, Column: 9, Message: "undefined: x"},
		{File: "outside/c.go", Line: 1, Column: 1, Message: "what"},
		{File: "mod/with space/d e.go", Line: 12, Column: 34, Message: "message: with: colons"},
		{File: "/usr/local/go/src/fmt/print.go", Line: 5, Column: 6, Message: "in the toolchain"},
		{File: "mod/go.mod", Line: 5, Message: "unknown directive: foo"},
		{File: "mod/asm_amd64.s", Line: 8, Column: 1, Message: "bad instruction"},
		{File: "mod/a.go", Line: 3},
		{File: "mod/windows.go", Line: 4, Column: 5, Message: "with a carriage return"},
		{File: "mod/a.go", Column: 1, Message: "huge"},
	}
	for i := range want {
		want[i].Check, want[i].Releases = "vet", []string{"1.22.12"}
	}
	assert.Equal(t, want, got)
	assert.Nil(t, parsePositions("build", "", ".", []byte("a.go:1:1: x"))[0].Releases)
	assert.Equal(t, "a.go", parsePositions("build", "", ".", []byte("./a.go:1:1: x"))[0].File)
}

// gofmtDiff is what gofmt -d of Go 1.20 and newer prints.
const gofmtDiff = `diff a/first.go.orig a/first.go
--- a/first.go.orig
+++ a/first.go
@@ -1,6 +1,6 @@
 package a
 
-func  f() {}
+func f() {}
 
 func g() {
-x()
+	x()
@@ -20,3 +20,3 @@
 
-y
+	y
diff dir with space/second.go.orig dir with space/second.go
--- dir with space/second.go.orig
+++ dir with space/second.go
@@ -1,2 +1,1 @@
-
 package b
diff third.go.orig third.go
--- third.go.orig
+++ third.go
@@ -8,3 +8,4 @@
 a
 b
+c
 d
`

func TestParseDiff(t *testing.T) {
	want := func(file string, line int) Finding {
		return Finding{Check: "gofmt", File: file, Line: line, Message: "m"}
	}
	for name, c := range map[string]struct {
		diff string
		want []Finding
	}{
		"empty": {"", nil},
		"gofmt": {gofmtDiff, []Finding{want("a/first.go", 3), want("dir with space/second.go", 1), want("third.go", 10)}},
		// Comments of a source may look like parts of a diff.
		"diff in a diff":        {"--- x.go.orig\n+++ x.go\n@@ -1,5 +1,5 @@\n /*\n---- y.go \n-+++ y.go \n-@@ -7 +7 @@ \n+--- y.go\n++++ y.go\n+@@ -7 +7 @@\n */\n", []Finding{want("x.go", 2)}},
		"added line with signs": {"--- x.go.orig\n+++ x.go\n@@ -3,2 +3,2 @@\n /*\n-++ y \n+++ y\n */\n@@ -30,1 +30,1 @@\n-  z\n+z\n", []Finding{want("x.go", 4)}},
		"no newline at end":     {"--- x.go.orig\n+++ x.go\n@@ -2,1 +2,1 @@\n-}\n\\ No newline at end of file\n+}\n", []Finding{want("x.go", 2)}},
		"time stamp":            {"--- x.go.orig\t2024-02-03 04:05:06 +0000\n+++ x.go\t2024-02-03 04:05:06 +0000\n@@ -2 +2 @@\n-}\n+ }\n", []Finding{want("x.go", 2)}},
		"carriage returns":      {"--- x.go.orig\r\n+++ x.go\r\n@@ -1,1 +1,1 @@\r\n-package x\r\n+package x\r\n", []Finding{want("x.go", 1)}},
		"new file":              {"--- /dev/null\n+++ x.go\n@@ -0,0 +1,1 @@\n+package x\n", []Finding{want("x.go", 1)}},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.want, parseDiff("gofmt", []byte(c.diff), "m"))
		})
	}
}

func FuzzParsePositions(f *testing.F) {
	for _, seed := range []string{"a.go:1:2: x", "vet: ./a.go:1: x\r\n", "# pkg\n/abs/a.go:1:1: y", "..//../a.go:0:0: ", "a.go:9:9: \xff", "C:\\x\\a.go:1:1: z"} {
		f.Add("", []byte(seed))
		f.Add("sub/dir", []byte(seed))
	}
	f.Fuzz(func(t *testing.T, dir string, text []byte) {
		for _, x := range parsePositions("vet", "", dir, text) {
			require.NotEmpty(t, x.File)
			require.GreaterOrEqual(t, x.Line, 0)
			require.GreaterOrEqual(t, x.Column, 0)
			require.NotContains(t, x.Message, "\n")
			require.Equal(t, path.Clean(x.File), x.File)
			_ = x.where()
		}
	})
}

func FuzzParseDiff(f *testing.F) {
	f.Add([]byte(gofmtDiff))
	f.Add([]byte("--- x\n+++ x\n@@ -1,1 +1,1 @@\n-+++ y\n++++ z\n"))
	f.Add([]byte("+++ \n@@ -0 +0 @@\n\n"))
	f.Add([]byte("@@ -99999999999999999999 +1 @@\n-\n"))
	f.Fuzz(func(t *testing.T, diff []byte) {
		seen := map[string]int{}
		for _, x := range parseDiff("gofmt", diff, "m") {
			require.NotEmpty(t, x.File)
			require.NotContains(t, x.File, "\n")
			require.GreaterOrEqual(t, x.Line, 0)
			seen[x.File]++
		}
		headers := strings.Count("\n"+string(diff), "\n+++ ")
		total := 0
		for _, n := range seen {
			total += n
		}
		require.LessOrEqual(t, total, headers, "one finding for each file at most")
	})
}

func FuzzParseConfig(f *testing.F) {
	for _, seed := range []string{
		"", "# comment", "race: true\n", "go-versions: [1.20, stable]\nsmoke:\n  probes:\n    - http: /x\n", "env: &a {x: y}\nlabels: *a\n", "a: &a [*a]\n", "<<: {}\n", "? [x]\n: y\n",
		"timeout: 10m\nrebuild: false\n", "- a\n- b\n", "--- !!binary x\n...\n---\n", "race: !!int 1\n", "smoke: !custom {}\n", "parallel: 1.5\n", "base: \"\\0\\xff\"\nto: [!!binary /w==]\n",
		"smoke: &a\n  probes: &b [*b, *a]\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseConfig("slipway.yaml", text, "")
		if err != nil {
			require.Equal(t, fault.Usage, fault.Of(err))
			require.True(t, strings.HasPrefix(err.Error(), "slipway.yaml:"), "%v", err)
			return
		}
		if c, err = c.withDefaults(); err != nil {
			require.NotEqual(t, 0, fault.Of(err))
			return
		}
		c.asMap() // what stands in the run record
	})
}

func TestExchangeBySteps(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, d := range []string{a, b} {
		require.NoError(t, os.Mkdir(d, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(d, "of-"+filepath.Base(d)), nil, 0o644))
	}
	for i, swap := range []func(a, b string) error{exchange, exchangeBySteps} {
		require.NoError(t, swap(a, b))
		of := []string{"of-b", "of-a"}
		assert.FileExists(t, filepath.Join(a, of[i%2]))
		assert.FileExists(t, filepath.Join(b, of[(i+1)%2]))
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		assert.Len(t, left, 2)
	}
	assert.Error(t, exchangeBySteps(filepath.Join(dir, "missing"), b))
}
