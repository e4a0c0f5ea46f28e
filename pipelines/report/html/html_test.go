package html

import (
	"bytes"
	"flag"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/html"

	"github.com/slipway-ci/slipway/pipelines"
)

var update = flag.Bool("update", false, "rewrite the pages in testdata")

// recorded reads a run of testdata.
func recorded(t testing.TB, name string) Run {
	dir := filepath.Join("testdata", name)
	r, err := pipelines.ReadRecord(filepath.Join(dir, "run.json"))
	require.NoError(t, err)
	return Run{Record: r, Files: os.DirFS(dir)}
}

func repeat(stage string, narrow map[string]string) string {
	s := "slipway " + stage
	for _, key := range []string{"go-versions", "packages", "vet-checks"} {
		if narrow[key] != "" {
			s += " --" + key + "=" + narrow[key]
		}
	}
	return s
}

func pageOf(t testing.TB, r Run, o Options) string {
	var b bytes.Buffer
	require.NoError(t, Write(&b, r, o))
	return b.String()
}

// pages are those of the runs in testdata: of the sample, of the sample again with nothing changed, and of a program
// with failed tests, a finding of vet and hostile names.
func pages(t testing.TB) map[string]string {
	o := Options{Repeat: repeat, Source: os.DirFS("testdata/failed/source")}
	all := map[string]string{}
	for _, name := range []string{"passed", "failed", "reused"} {
		all[name] = pageOf(t, recorded(t, name), o)
	}
	previous := recorded(t, "passed")
	o.Previous = &previous
	all["previous"] = pageOf(t, recorded(t, "reused"), o)
	var b bytes.Buffer
	require.NoError(t, WriteComparison(&b, recorded(t, "passed"), recorded(t, "failed")))
	all["comparison"] = b.String()
	return all
}

func TestPages(t *testing.T) {
	for name, page := range pages(t) {
		golden := filepath.Join("testdata", name+".html")
		if *update {
			require.NoError(t, os.WriteFile(golden, []byte(page), 0o644))
		}
		want, err := os.ReadFile(golden)
		require.NoError(t, err)
		require.Equal(t, string(want), page, name)
	}
}

// TestDeterministic writes the same pages several times, as maps have no order.
func TestDeterministic(t *testing.T) {
	first := pages(t)
	for range 5 {
		require.Equal(t, first, pages(t))
	}
}

// TestBareRecord has neither what lies beside a record nor the source.
func TestBareRecord(t *testing.T) {
	for _, name := range []string{"passed", "failed", "reused"} {
		r := recorded(t, name)
		r.Files = nil
		page := pageOf(t, r, Options{})
		require.Contains(t, page, "From source to registry")
		require.NotContains(t, page, "Slowest")
		require.NotContains(t, page, "to repeat")
	}
	r := recorded(t, "failed")
	r.Files = fstest.MapFS{"test.json": {Data: []byte(`{"legs": 7}`)}, "vuln.json": {Data: []byte("{")}, "coverage.out": {Data: []byte("mode: set\n::\na b c\n")}}
	pageOf(t, r, Options{Source: fstest.MapFS{}})
}

// TestOrder has what people need first.
func TestOrder(t *testing.T) {
	page := pages(t)["failed"]
	at := -1
	for _, s := range []string{
		"✗</span> failed</span> shop", "TestOldRuntime</a> fails under Go 1.20.14 only", `id="failures"`, "TestOldRuntime", "TestRounding", `id="stages"`, `id="chain"`, `id="timeline"`, `id="tests"`, `id="inputs"`, `id="reproduce"`,
	} {
		i := strings.Index(page[at+1:], s)
		require.Positive(t, i, s)
		at += i
	}
	require.Contains(t, page, "slipway test --go-versions=1.20.14 --packages=example.com/shop/store")
	require.Contains(t, page, "store/store_test.go:")
}

// TestOutline reads each page as a browser does: headings in order, tables with heads, no identifier twice, links that
// lead somewhere, nothing from elsewhere.
func TestOutline(t *testing.T) {
	for name, page := range pages(t) {
		doc, err := html.Parse(strings.NewReader(page))
		require.NoError(t, err)
		level := 0
		ids := map[string]bool{}
		var links []string
		for n := range doc.Descendants() {
			if n.Type != html.ElementNode {
				continue
			}
			a := map[string]string{}
			for _, x := range n.Attr {
				a[x.Key] = x.Val
				require.False(t, strings.HasPrefix(x.Key, "on"), "%s: %s", name, x.Key)
			}
			switch n.Data {
			case "script", "iframe", "img", "object", "embed", "form", "base":
				t.Errorf("%s has a %s", name, n.Data)
			case "h1", "h2", "h3", "h4":
				next := int(n.Data[1] - '0')
				require.LessOrEqual(t, next, level+1, "%s: %s after h%d", name, n.Data, level)
				level = next
			case "th":
				require.Contains(t, []string{"col", "row"}, a["scope"], name)
			case "a":
				links = append(links, a["href"])
			case "link":
				require.Equal(t, "data:,", a["href"])
			}
			if id := a["id"]; id != "" {
				require.False(t, ids[id], "%s: %s twice", name, id)
				ids[id] = true
			}
			for _, key := range []string{"aria-labelledby"} {
				if a[key] != "" {
					links = append(links, "#"+a[key])
				}
			}
		}
		for _, l := range links {
			require.True(t, ids[strings.TrimPrefix(l, "#")], "%s: %s leads nowhere", name, l)
		}
		require.NotRegexp(t, `(?i)\bsrc\s*=|url\(|@import`, strings.ReplaceAll(page, "&#34;", ""), name)
	}
}

// TestHostile has names and output that want to be markup, or to reorder text.
func TestHostile(t *testing.T) {
	const evil = "</style></script><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31mred\x1b[0m\x00\x9b\u202e\u2028'\"`{{.}}-->]]>\r\n\tend"
	r := recorded(t, "failed")
	x := r.Record
	x.Plan.Name, x.Host, x.Engine, x.Started = evil, evil, evil, evil
	x.Slipway.Version, x.Notes, x.Platforms = evil, []string{evil}, []string{evil}
	x.Config[evil] = evil
	for _, s := range x.Stages {
		s.Detail, s.Reused = evil, ""
		for i := range s.Tasks {
			s.Tasks[i].Name, s.Tasks[i].Detail, s.Tasks[i].Verdict = evil, evil, pipelines.Verdict(evil)
		}
		for i := range s.Failures {
			f := &s.Failures[i]
			f.What, f.Where, f.Message, f.Next, f.File, f.Line = evil, "only "+evil, evil, evil, evil, -1
		}
	}
	x.Binaries = []pipelines.Binary{{Name: evil, Platform: evil, SHA256: evil, FullSHA256: evil, Full: evil, Path: evil}}
	x.Image = &pipelines.ImageResult{Verdict: pipelines.Passed, Digest: evil, Base: evil, Platforms: []pipelines.PlatformImage{{Platform: evil, Manifest: evil, Layers: []pipelines.Layer{{Kind: evil, Digest: evil, Size: -1}}}}}
	x.Published = []pipelines.PublishedTo{{Reference: evil, Digest: evil, Detail: evil}}
	before := recorded(t, "passed")
	page := pageOf(t, r, Options{Repeat: func(string, map[string]string) string { return evil }, Previous: &before})
	require.NotContains(t, page, "<script")
	require.NotContains(t, page, "<img")
	require.NotRegexp(t, "[\x00-\x08\x0b-\x1f\x7f\u0080-\u009f\u202a-\u202e\u200b-\u200f]", page)
	require.Equal(t, 1, strings.Count(page, "</style>"))
	doc, err := html.Parse(strings.NewReader(page))
	require.NoError(t, err)
	for n := range doc.Descendants() {
		require.False(t, n.Type == html.ElementNode && (n.Data == "script" || n.Data == "img"))
	}
}

func TestLongOutput(t *testing.T) {
	lines := make([]string, 5000)
	for i := range lines {
		lines[i] = "line " + strconv.Itoa(i)
	}
	s := shorten(strings.Join(lines, "\n"))
	require.True(t, strings.HasPrefix(s, "line 0\n"))
	require.True(t, strings.HasSuffix(s, "\nline 4999"))
	require.Contains(t, s, "lines left out")
	require.LessOrEqual(t, strings.Count(s, "\n"), maxLines)
	require.Len(t, shorten(strings.Repeat("x", 1<<20)), maxOutput+len("…"))
	require.Less(t, len(shorten(strings.Repeat(strings.Repeat("y", 5000)+"\n", 100))), maxOutput+100)
	require.Equal(t, "a\n\tb", shorten("\na\n\tb\n"))
}

func TestCriticalPath(t *testing.T) {
	task := func(name string, start, elapsed int) pipelines.TaskRecord {
		ms := pipelines.Milliseconds(1e6)
		return pipelines.TaskRecord{Name: name, Started: pipelines.Milliseconds(start) * ms, Elapsed: pipelines.Milliseconds(elapsed) * ms}
	}
	r := &pipelines.Record{Stages: []*pipelines.StageRecord{
		{Name: "plan", Tasks: []pipelines.TaskRecord{task("plan", 0, 10)}},
		{Name: "vet", Tasks: []pipelines.TaskRecord{task("vet 1", 10, 50), task("vet 2", 11, 80), task("vet 3", 60, 100)}},
		{Name: "test", Reused: "2026-01-01T00:00:00Z", Tasks: []pipelines.TaskRecord{task("old", 1, 9000)}},
		{Name: "build", Tasks: []pipelines.TaskRecord{task("build", 161, 0), task("archives", 161, 500)}},
	}}
	l := newTimeline(r)
	var path []string
	for _, x := range l.Path {
		path = append(path, x.Name)
	}
	require.Equal(t, []string{"plan", "vet 1", "vet 3", "build", "archives"}, path)
	require.Equal(t, "archives", l.Longest().Name)
	require.Equal(t, []string{"test"}, l.Reused)
	require.EqualValues(t, 661e6, l.Total)
	require.Empty(t, newTimeline(&pipelines.Record{}).Path)
}

func TestLocate(t *testing.T) {
	source := fstest.MapFS{"sub/pkg/a_test.go": {Data: []byte("1\n2\n3\n4\n5\n6\n7\n8\n")}, "sub/b.go": {Data: []byte("b\n")}}
	plan := &pipelines.Plan{Modules: []pipelines.Module{{Dir: ".", Path: "example.com/m"}, {Dir: "sub", Path: "example.com/m/v"}}}
	for message, want := range map[string]string{
		"    a_test.go:3: no":                        "sub/pkg/a_test.go:3",
		"panic: x\n\texample.com/m/v/b.go:1 +0x1d\n": "sub/b.go:1",
		"testing.go:12\n\t./sub/b.go:1\n":            "sub/b.go:1",
		"# pkg\npkg/a_test.go:8:2: undefined: x":     "sub/pkg/a_test.go:8",
		"a_test.go:9: the file is shorter":           "",
		"../../../etc/passwd.go:1: no":               "",
		"no place":                                   "",
	} {
		e := locate(pipelines.Failure{Message: message, Repeat: map[string]string{"packages": "example.com/m/v/pkg"}}, plan, source)
		got := ""
		if e != nil {
			got = e.File + ":" + strconv.Itoa(e.Line)
			require.NotEmpty(t, e.Lines)
		}
		require.Equal(t, want, got, message)
	}
	e := locate(pipelines.Failure{File: "sub/pkg/a_test.go", Line: 3, Message: "a_test.go:3: x\na_test.go:5: y"}, plan, source)
	require.Len(t, e.Lines, 5)
	require.True(t, e.Lines[2].Here)
	require.True(t, e.Lines[4].Here)
	require.False(t, e.Lines[3].Here)
	require.Equal(t, &excerpt{File: "sub/pkg/a_test.go", Line: 3}, locate(pipelines.Failure{Message: "a_test.go:3: no", Repeat: map[string]string{"packages": "example.com/m/v/pkg"}}, plan, nil))
}

func TestFlaky(t *testing.T) {
	test := func(result string) fs.FS {
		return fstest.MapFS{"test.json": {Data: []byte(`{"legs":[{"release":"1.22.12","packages":[{"path":"m","result":"` + result + `","tests":[{"name":"TestA","result":"` + result + `"},{"name":"TestB","result":"pass"}]}]}]}`)}}
	}
	a, b := recorded(t, "passed"), recorded(t, "passed")
	a.Files, b.Files = test("pass"), test("fail")
	c := newComparison(a, b)
	require.True(t, c.Flaky())
	require.Len(t, c.Tests, 1)
	require.Equal(t, "TestA", c.Tests[0].Name)
	b.Record.Plan.Source.Digest = "sha256:" + strings.Repeat("0", 64)
	require.False(t, newComparison(a, b).Flaky())
	require.Empty(t, newComparison(a, a).Tests)
}

// TestContrast has each colour of text on each background that it comes with.
func TestContrast(t *testing.T) {
	css, err := os.ReadFile("style.css")
	require.NoError(t, err)
	root := regexp.MustCompile(`(?s):root \{(.*?)\}`)
	variable := regexp.MustCompile(`--(\w+): (#[0-9a-f]+)`)
	schemes := root.FindAllStringSubmatch(string(css), -1)
	require.Len(t, schemes, 2)
	for _, scheme := range schemes {
		colour := map[string]string{}
		for _, m := range variable.FindAllStringSubmatch(scheme[1], -1) {
			colour[m[1]] = m[2]
		}
		for _, back := range []string{"back", "soft", "here"} {
			for _, text := range []string{"text", "dim", "good", "bad", "warn", "link"} {
				if back == "here" && text != "text" && text != "dim" {
					continue
				}
				require.GreaterOrEqual(t, contrast(t, colour[text], colour[back]), 4.5, "%s on %s: %s", text, back, scheme[1])
			}
		}
		for _, bar := range []string{"a", "b", "bad"} {
			require.GreaterOrEqual(t, contrast(t, colour[bar], colour["back"]), 3.0, bar)
		}
	}
}

// contrast is that of WCAG 2.
func contrast(t *testing.T, a, b string) float64 {
	luminance := func(s string) float64 {
		s = strings.TrimPrefix(s, "#")
		if len(s) == 3 {
			s = string([]byte{s[0], s[0], s[1], s[1], s[2], s[2]})
		}
		n, err := strconv.ParseUint(s, 16, 32)
		require.NoError(t, err)
		sum := 0.0
		for i, weight := range []float64{0.0722, 0.7152, 0.2126} {
			c := float64(n>>(8*i)&255) / 255
			if c <= 0.04045 {
				c /= 12.92
			} else {
				c = math.Pow((c+0.055)/1.055, 2.4)
			}
			sum += weight * c
		}
		return sum
	}
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

func BenchmarkWrite(b *testing.B) {
	r := recorded(b, "passed")
	for b.Loop() {
		pageOf(b, r, Options{Repeat: repeat})
	}
}
